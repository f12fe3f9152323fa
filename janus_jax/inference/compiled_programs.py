"""How the decoding programs are compiled, and a count of how many there are.

Every program of this package is made here, so that the compiler options stand in one place.
"""

import collections
import functools
from collections.abc import Callable
from typing import Any

import jax

from janus_jax.ops.cpu.gemv import COMPILER_OPTIONS

# Number of programs traced in this process, by name: each new shape or static option traces and compiles another one.
traced: collections.Counter[str] = collections.Counter()

# The loop over image codes on a TPU: XLA may copy data into VMEM only if it is then read at least 3/4 as many bytes as
# are copied in and back. Weights are read once per copy (ratio 1) and still go there. The keys of a layer are copied
# in and, although a step changes only one slot, back as a whole (ratio 1/2): without this option XLA keeps them in
# VMEM for a step (compiler estimate; tests/compile_check/test_compiled_decode.py).
TPU_LOOP_OPTIONS = {"xla_tpu_msa_inefficient_use_to_copy_ratio": 0.75}


def program(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorator: `jax.jit` with these options of it, and the compiler options that decoding needs on every platform."""
    return functools.partial(jax.jit, compiler_options=COMPILER_OPTIONS, **options)


def loop_program(function: Callable[..., Any], platform: str, **options: Any) -> Any:
    """`program` for a loop of decoding steps, whose compiler options depend on the platform: "cpu", "gpu" or "tpu"."""
    compiler_options = COMPILER_OPTIONS | (TPU_LOOP_OPTIONS if platform == "tpu" else {})
    return jax.jit(function, compiler_options=compiler_options, **options)
