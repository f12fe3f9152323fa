"""How the decoding programs are compiled, and a count of how many there are.

Every program of this package is made here, so that the compiler options are chosen in one place.
"""

import collections
import functools
from collections.abc import Callable
from typing import Any

import jax

from janus_jax.compiler_options import compiler_options

# Number of programs traced in this process, by name: each new shape or static option traces and compiles another one.
traced: collections.Counter[str] = collections.Counter()


def program(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorator: `jax.jit` with these options of it, and the compiler options that decoding needs on every platform."""
    return functools.partial(jax.jit, compiler_options=compiler_options("decode"), **options)


def image_loop_program(function: Callable[..., Any], platform: str, **options: Any) -> Any:
    """`program` for the loop over image codes, whose compiler options depend on the platform: "cpu", "gpu" or "tpu"."""
    return jax.jit(function, compiler_options=compiler_options("image_loop", platform=platform), **options)
