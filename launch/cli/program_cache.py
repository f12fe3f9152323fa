"""Keeps compiled programs between runs, in JAX's persistent compilation cache.

JAX's keys contain the program, the options and versions of JAX and XLA, and the kind of device. Programs for a CPU also
depend on the instructions that it has, which the keys leave out (jax 0.10.2): so each kind of machine has a folder of
its own, also where several share a home folder. A damaged entry is a warning, after which JAX compiles the program.
"""

import hashlib
import os
import platform
from pathlib import Path

MAX_BYTES = 4 << 30  # at the start of a command, the programs that were used longest ago are removed down to this size
CPU_INFO = "/proc/cpuinfo"
MIN_COMPILE_SECONDS = 0.5  # faster ones are not worth a file


def keep_programs(folder: Path) -> None:
    """Lets JAX keep the programs that this process compiles in a folder. Raises OSError if it cannot be written."""
    import jax  # not before a command has checked its flags: the import takes long

    folder.mkdir(parents=True, exist_ok=True)
    prune(folder, MAX_BYTES)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def folder_of_machine(folder: str | None) -> Path:
    """The folder for this kind of machine in a folder, or in the user's cache folder if it is None."""
    if folder is None:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "janus_jax" / "programs"
    else:
        root = Path(folder)
    return root / machine()


def machine() -> str:
    """A name for all machines whose CPUs have the same instructions."""
    try:
        lines = Path(CPU_INFO).read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    kinds = ("flags", "Features", "model name")  # x86 and Arm name them differently
    kind = [line for line in lines if line.startswith(kinds)][:2] or lines[:1]
    return f"{platform.machine()}-{hashlib.sha256(repr(kind).encode()).hexdigest()[:12]}"


def prune(folder: Path, max_bytes: int) -> None:
    """Removes files that were used longest ago, until the others have at most `max_bytes` bytes."""
    found = []
    for path in folder.iterdir():
        try:
            status = path.stat()
        except FileNotFoundError:  # another command has just removed it
            continue
        found.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    size = sum(each for _, each, _ in found)
    for _, each, path in sorted(found):
        if size <= max_bytes:
            return
        path.unlink(missing_ok=True)
        size -= each
