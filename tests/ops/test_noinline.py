"""A function that is kept separate is called in the compiled program, and every user reads the same values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.ops.noinline import noinline


@pytest.fixture(autouse=True)
def optimizations():
    """What XLA inlines and fuses only shows with its optimisations."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def scaled(x, y):
    return jnp.exp(x) / y


@pytest.mark.parametrize(("keep", "calls"), [(noinline, 1), (jax.jit, 0)])
def test_the_compiled_program_calls_the_function(keep, calls):
    def program(x, y):
        z = keep(scaled)(x, y)
        return jnp.sum(z), jnp.max(z), z + 1

    numbers = jnp.linspace(-3, 3, 1000), jnp.linspace(1, 7, 1000)
    compiled = jax.jit(program).lower(*numbers).compile()
    assert compiled.as_text().count(" call(") == calls
    np.testing.assert_allclose(compiled(*numbers)[2], np.exp(numbers[0]) / numbers[1] + 1, rtol=1e-5)
