"""How the decoding programs are compiled, and a count of how many there are.

Every program of this package is made here, so that the compiler options are chosen in one place, and that its
compilation is a phase that can be shown and can begin before the weights are read.
"""

import collections
import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from janus_jax.compiler_options import compiler_options
from janus_jax.phases import phase

# Number of programs traced in this process, by name: each new shape or static option traces and compiles another one.
traced: collections.Counter[str] = collections.Counter()


@functools.cache
def _compiler() -> ThreadPoolExecutor:
    """Threads that compile programs ahead. Only the last part of a compilation uses several threads by itself."""
    return ThreadPoolExecutor(2)


class Program:
    """`jax.jit` of a function, whose compilation is a phase (`phases`) and can be done ahead."""

    def __init__(self, name: str, function: Callable[..., Any], static_argnames: Sequence[str] = (), **options: Any):
        functools.update_wrapper(self, function)
        self._name, self._static = name, static_argnames
        self._parameters = inspect.signature(function)
        self._local = threading.local()
        self._ahead: dict[Any, Future[Any]] = {}

        @functools.wraps(function)
        def traced_function(*args: Any, **kwargs: Any) -> Any:
            traced[name] += 1
            phases = getattr(self._local, "phases", None)
            if phases is not None:  # None: shapes are asked for, and nothing is compiled
                phases.enter_context(phase(f"compiling: {name}"))
            return function(*args, **kwargs)

        self._jit = jax.jit(traced_function, static_argnames=static_argnames, **options)
        self.lower, self.eval_shape = self._jit.lower, self._jit.eval_shape

    @classmethod
    def of(cls, name: str, **options: Any) -> Callable[[Callable[..., Any]], "Program"]:
        """Decorator: the program of a function, with these options of `jax.jit`."""
        return lambda function: cls(name, function, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._ahead:
            key, dynamic = self._key(args, kwargs)
            if key in self._ahead:
                return self._ahead[key].result()(**dynamic)
        with self._shown():
            return self._jit(*args, **kwargs)

    def compile_ahead(self, *args: Any, **kwargs: Any) -> None:
        """Compiles the program, in a thread of its own, for arguments of which only shapes and dtypes count.

        A call with such arguments waits for it, and raises an error of the compiler. On one device only.
        """
        key, _ = self._key(args, kwargs)
        if key not in self._ahead:
            self._ahead[key] = _compiler().submit(self._compile, args, kwargs)

    def _compile(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with self._shown():
            return self._jit.lower(**self._parameters.bind(*args, **kwargs).arguments).compile()

    @contextlib.contextmanager
    def _shown(self) -> Any:
        """Shows the compilation of a program, if this block compiles one."""
        with contextlib.ExitStack() as stack:
            self._local.phases = stack
            try:
                yield
            finally:
                self._local.phases = None

    def _key(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """What a compiled program depends on, and the arguments that it takes, by name."""
        named = self._parameters.bind(*args, **kwargs).arguments
        static = tuple((name, value) for name, value in named.items() if name in self._static)
        dynamic = {name: value for name, value in named.items() if name not in self._static}
        leaves, tree = jax.tree.flatten(dynamic)
        return (static, tree, tuple((np.shape(leaf), getattr(leaf, "dtype", None)) for leaf in leaves)), dynamic


def program(name: str, **options: Any) -> Callable[[Callable[..., Any]], Program]:
    """Decorator: `Program` with these options of `jax.jit`, and the compiler options that decoding needs everywhere."""
    return lambda function: Program(name, function, compiler_options=compiler_options("decode"), **options)


def image_loop_program(name: str, function: Callable[..., Any], platform: str, **options: Any) -> Program:
    """`program` for the loop over image codes, whose compiler options depend on the platform: "cpu", "gpu" or "tpu"."""
    return Program(name, function, compiler_options=compiler_options("image_loop", platform=platform), **options)
