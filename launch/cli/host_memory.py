"""How a training process on a CPU gets its memory from the operating system."""

import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # parameters of glibc's mallopt(3)


def keep_freed_memory() -> None:
    """Lets each training step on a CPU reuse the memory of the step before. Call it before there are large arrays.

    XLA allocates the temporary buffers of a program anew in each run. They are so large that glibc would map them from
    the kernel and give them back each time, and the kernel would clear all their pages in every step. In a step of the
    quickstart's model that was 10,400 page faults instead of under 1,100, and 20 to 26 % of the CPU time (measured on
    two CPU cores with glibc 2.36 and jaxlib 0.10.2). A buffer over 64 MB, which no heap of a thread holds, is still
    mapped anew; see `janus_jax.compiler_options.CPU_SMALL_BUFFERS`. Without glibc, or with another backend than the
    CPU, this function does nothing.
    """
    import jax  # late, so that --help needs no JAX

    if jax.default_backend() != "cpu":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_TOP_PAD, 64 * 2**20)  # else the heap of a thread is given back as soon as it is empty
