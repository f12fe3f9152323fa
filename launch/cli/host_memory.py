"""How a training process on a CPU gets its memory from the operating system."""

import ctypes
import os
import sys
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # parameters of glibc's mallopt(3)
_TUNABLES = "GLIBC_TUNABLES"
WHEN_GIVEN = Path("/sys/kernel/mm/transparent_hugepage/enabled")  # "always [madvise] never": madvise is chosen


def keep_freed_memory() -> None:
    """Lets each training step on a CPU reuse the memory of the step before. Call it before there are large arrays.

    XLA allocates the temporary buffers of a program anew in each run. They are so large that glibc would map them from
    the kernel and give them back each time, and the kernel would clear all their pages in every step. In a step of the
    quickstart's model that was 10,400 page faults instead of under 1,100, and 20 to 26 % of the CPU time (measured on
    two CPU cores with glibc 2.36 and jaxlib 0.10.2). What is over 64 MB a thread of XLA still maps anew, hence
    `use_huge_pages`. Without glibc, or with another backend than the CPU, this function
    does nothing.
    """
    import jax  # late, so that --help needs no JAX

    if jax.default_backend() != "cpu":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def use_huge_pages() -> None:
    """Lets the arrays of a command lie in pages of 2 MiB, where Linux gives these only to programs that ask for them.

    glibc asks if GLIBC_TUNABLES says so when a process starts. So this starts the command once more, in the same
    process. Call it before anything else. A step of the tiny image tokenizer of `benchmarks.tokenizer`, whose temporary
    buffers are new in each step, then takes 160 instead of 187 ms on two CPU cores: it has 420 page faults instead of
    26,500. Does nothing where huge pages are always or never given, if the variable is set
    already, or if the program was not started with `python -m`.
    """
    module = getattr(sys.modules["__main__"], "__spec__", None)
    is_command = module is not None and sys.orig_argv[1:3] == ["-m", module.name]
    on_request = WHEN_GIVEN.exists() and "[madvise]" in WHEN_GIVEN.read_text()
    if is_command and on_request and _TUNABLES not in os.environ:
        environment = {**os.environ, _TUNABLES: "glibc.malloc.hugetlb=1"}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
