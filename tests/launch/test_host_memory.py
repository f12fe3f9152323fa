import ctypes
import subprocess
import sys

import pytest

from janus_jax.compiler_options import CPU_SMALL_BUFFERS

# Prints the page faults of ten runs of a program with 16 temporaries of 8 MB, which are all needed at the same time.
# In the runs before, each thread that may run the program has got its memory.
PROGRAM = """
import resource

import jax
import jax.numpy as jnp

from launch.cli.host_memory import keep_freed_memory


def largest(x):
    kept = jax.lax.optimization_barrier([x + k for k in range(16)])
    total = sum(a.sum() for a in kept)
    return sum((a * total).max() for a in kept)


keep_freed_memory()
run = jax.jit(largest, compiler_options={options})
x = jnp.arange(2_000_000, dtype=jnp.float32)
for _ in range(60):
    run(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    run(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="memory is kept only with glibc")
def test_the_temporaries_of_a_program_are_mapped_once_if_they_lie_in_small_buffers():
    faults = []
    for options in ({}, dict(CPU_SMALL_BUFFERS)):
        command = [sys.executable, "-c", PROGRAM.replace("{options}", repr(options))]
        faults.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    one_buffer, small_buffers = faults
    assert small_buffers < one_buffer / 5
