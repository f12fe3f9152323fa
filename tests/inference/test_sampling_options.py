"""The numbers of sampling are arguments of a program, and mean what they mean as constants."""

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.inference.sampling import Sampling
from janus_jax.ops.sampling import sample_tokens

STRUCTURES = {  # temperature, top_p, top_k: what one program draws
    "greedy": [(0.0, 1.0, 0), (0.0, 0.5, 3)],
    "temperature": [(0.7, 1.0, 0), (1.3, 1.0, 0), (1e-6, 1.0, 0)],
    "top_p and top_k": [(0.7, 0.6, 5), (1.5, 0.9, 5), (1.0, 1e-60, 5)],
}


def test_one_program_draws_at_every_temperature_and_top_p_what_constants_draw():
    traced = []

    @jax.jit
    def draw(sampling, keys, logits):
        traced.append(sampling)
        return sampling(keys, jnp.int32(3), logits)

    logits = jnp.asarray(np.random.default_rng(0).normal(0, 3, (500, 20)), jnp.float32)
    keys = jax.random.split(jax.random.key(1), len(logits))
    step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, 3)
    greedy = np.argmax(logits, axis=-1)
    for number, cases in enumerate(STRUCTURES.values(), start=1):
        for temperature, top_p, top_k in cases:
            drawn = draw(Sampling.of(temperature, top_p, top_k), keys, logits)
            narrow = top_p < 1e-30  # as a constant it keeps no token
            constants = dict(temperature=temperature or None, top_k=top_k, top_p=None if top_p == 1 else top_p)
            expected = greedy if narrow else sample_tokens(step_keys, logits, **constants)
            assert np.mean(drawn == expected) > 0.99, (temperature, top_p, top_k)  # ties of rounding aside
            assert (np.mean(drawn == greedy) > 0.99) == (narrow or temperature < 1e-3)
        assert len(traced) == number
    assert traced[0].temperature is None


def test_greedy_has_no_numbers_to_pass():
    assert jax.tree.leaves(Sampling.of(0, 0.5, 3)) == []
    assert Sampling.of(0, 0.5, 3) == Sampling()
