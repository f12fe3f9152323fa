"""Memory that is free on devices and on the host, limits of control groups (containers) included."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
# Files of a control group (version 2, version 1): its limit, and the memory that it uses.
_GROUP_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))


def free_bytes(devices: Sequence[Any]) -> int | None:
    """Memory that is free on each of the devices; None where neither they nor Linux report it."""
    stats = [device.memory_stats() or {} for device in devices]
    if all("bytes_limit" in each for each in stats):
        return min(each["bytes_limit"] - each["bytes_in_use"] for each in stats)
    return free_host_bytes() if jax.default_backend() == "cpu" else None


def free_host_bytes() -> int | None:
    """Memory of the host that this process may still take; None where Linux does not report it."""
    if not (PROC / "meminfo").exists():
        return None
    kibibytes = dict(line.split(":") for line in (PROC / "meminfo").read_text().splitlines())
    available = int(kibibytes["MemAvailable"].split()[0]) * 1024
    return int(min([available, *map(_free_of_group, _control_groups())]))


def _control_groups() -> Iterator[Path]:
    """Folders of the control groups that this process is in, from the innermost to the outermost."""
    for line in (PROC / "self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):  # version 2, version 1
            root = CGROUPS / controllers
            innermost = root / path.lstrip("/")
            yield from (folder for folder in (innermost, *innermost.parents) if folder.is_relative_to(root))


def _free_of_group(folder: Path) -> float:
    """Memory that the limit of a control group leaves; its file cache counts as free, since it is given back."""
    for limit, used in _GROUP_FILES:
        if (folder / limit).exists() and (text := (folder / limit).read_text().strip()) != "max":
            counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            file_cache = int(counts["active_file"]) + int(counts["inactive_file"])
            return int(text) - int((folder / used).read_text()) + file_cache
    return math.inf
