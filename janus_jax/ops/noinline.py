"""A wrapper that keeps a function as a separate function when XLA compiles the program around it."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax
from jax.experimental.xla_metadata import set_xla_metadata

P = ParamSpec("P")
R = TypeVar("R")


def noinline(function: Callable[P, R], static_argnames: str | tuple[str, ...] = ()) -> Callable[P, R]:
    """Compiles `function` as a call, so that its results are computed once and every user reads the same values.

    XLA would otherwise inline it. It then computes a cheap result again for each of its users, inside of their loops,
    and may round it differently in each (seen in compiled CPU programs, jaxlib 0.10.2: tests/ops/test_noinline.py).
    """
    compiled = jax.jit(function, static_argnames=static_argnames)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with set_xla_metadata(inlineable="false"):
            return compiled(*args, **kwargs)

    return call
