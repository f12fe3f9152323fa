"""Limits of the operating system that the data stream needs to know before it starts.

Where they are too low, a process would otherwise be ended by a signal in the middle of a run, or read whole files as
damaged.
"""

import os
import resource
import shutil

from janus_jax.errors import UserError

SHARED_MEMORY = "/dev/shm"  # where Linux keeps the shared memory of processes
OTHER_FILES = 256  # Number of open files that a process needs for anything but data.


def require_shared_memory(needed: int, workers: int) -> None:
    """Raises UserError when `needed` bytes of shared memory are not free.

    Linux gives a process shared memory that it does not have, and ends the process by SIGBUS when it writes there.
    Containers have 64 MiB by default. Does nothing where the size cannot be found out.
    """
    if not os.path.isdir(SHARED_MEMORY):
        return
    free = shutil.disk_usage(SHARED_MEMORY).free
    if needed > free:
        enough = -(-needed // 2**26) * 64
        raise UserError(
            f"data.workers={workers} need up to {needed / 2**20:.1f} MiB of shared memory, but {SHARED_MEMORY} has "
            f"{free / 2**20:.1f} MiB free: make it larger (docker run --shm-size={enough}m; Kubernetes: mount an "
            "emptyDir with medium: Memory there), or set data.shared_memory=False, which is slower, or data.workers=0"
        )


def require_open_files(count: int) -> None:
    """Lets this process, and those that it starts, have this many files of data open.

    A file stays open from its first record on. When no more can be opened, its records could not be told from damaged
    ones.

    Raises:
        UserError: the system does not allow so many.
    """
    needed = count + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY in (soft, hard):
        return
    if needed > hard:
        raise UserError(
            f"the {count} files of data.sources need {needed} open files, but the limit of this process is {hard}: "
            f"raise it (ulimit -n {needed}), or prepare the data again with fewer files (--num_output_files)"
        )
    if needed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
