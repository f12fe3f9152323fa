"""How the process gets its memory from the operating system, where the host itself computes."""

import ctypes

import jax

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # parameters of glibc's mallopt(3)


def keep_freed_memory() -> None:
    """On a CPU, lets the next step reuse the memory of the last; to be called before there are large arrays.

    XLA allocates the temporary buffers of a program in each run of it. They are so large that glibc would map them
    anew and give them back each time, and the kernel would have to clear all their pages in every step: a third of the
    time of a small model's training step. Does nothing without glibc or with another backend.
    """
    if jax.default_backend() != "cpu":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
