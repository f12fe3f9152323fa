"""Memory of devices and of the host, in all and free, limits of control groups (containers) included."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
# Files of a control group (version 2, version 1): its limit, and the memory that it uses.
_GROUP_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))


def total_bytes(devices: Sequence[Any]) -> int | None:
    """Memory of each of the devices, used or not; None where neither they nor Linux report it.

    The devices of a CPU share the memory of the host. The answer is the same at every start on the same machine.
    """
    if devices[0].platform == "cpu":
        host = _host_bytes("MemTotal", lambda group: group.limit)
        return None if host is None else host // len(devices)
    return min(limits) if all(limits := [_stats(device).get("bytes_limit", 0) for device in devices]) else None


def free_bytes(devices: Sequence[Any]) -> int | None:
    """Memory that is free on each of the devices; None where neither they nor Linux report it."""
    stats = [_stats(device) for device in devices]
    if all("bytes_limit" in each for each in stats):
        return min(each["bytes_limit"] - each["bytes_in_use"] for each in stats)
    return free_host_bytes() if jax.default_backend() == "cpu" else None


def free_host_bytes() -> int | None:
    """Memory of the host that this process may still take; None where Linux does not report it."""
    return _host_bytes("MemAvailable", lambda group: group.free())


def _stats(device: Any) -> dict[str, int]:
    return device.memory_stats() or {}


class _Group(NamedTuple):
    """A control group whose memory is limited."""

    folder: Path
    limit: int  # bytes
    usage_file: str

    def free(self) -> int:
        """Memory that the limit leaves; the group's file cache counts as free, since it is given back."""
        counts = dict(line.split() for line in (self.folder / "memory.stat").read_text().splitlines())
        file_cache = int(counts["active_file"]) + int(counts["inactive_file"])
        return self.limit - int((self.folder / self.usage_file).read_text()) + file_cache


def _host_bytes(entry: str, of_group: Callable[[_Group], int]) -> int | None:
    """The smallest of an entry of /proc/meminfo and of a figure of each control group; None without that file."""
    if not (PROC / "meminfo").exists():
        return None
    kibibytes = dict(line.split(":") for line in (PROC / "meminfo").read_text().splitlines())
    return min([int(kibibytes[entry].split()[0]) * 1024, *map(of_group, _limited_groups())])


def _limited_groups() -> Iterator[_Group]:
    for folder in _control_groups():
        for limit_file, usage_file in _GROUP_FILES:
            if (folder / limit_file).exists() and (text := (folder / limit_file).read_text().strip()) != "max":
                yield _Group(folder, int(text), usage_file)
                break


def _control_groups() -> Iterator[Path]:
    """Folders of the control groups that this process is in, from the innermost to the outermost."""
    for line in (PROC / "self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):  # version 2, version 1
            root = CGROUPS / controllers
            innermost = root / path.lstrip("/")
            yield from (folder for folder in (innermost, *innermost.parents) if folder.is_relative_to(root))
