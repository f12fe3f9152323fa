"""Parts of a program that stay functions of their own when XLA compiles it."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax
from jax.experimental.xla_metadata import set_xla_metadata

P = ParamSpec("P")
R = TypeVar("R")


def outlined(function: Callable[P, R], static_argnames: str | tuple[str, ...] = ()) -> Callable[P, R]:
    """`jax.jit` of a function whose results are computed once, however often the program around it uses them.

    XLA else computes cheap results again for each use, and may round them otherwise there.
    """
    compiled = jax.jit(function, static_argnames=static_argnames)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with set_xla_metadata(inlineable="false"):
            return compiled(*args, **kwargs)

    return call
