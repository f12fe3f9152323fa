"""The numbers of sampling are arguments of a program and mean what they mean as constants; each sample has its key."""

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.inference.sampling import Sampling, sample_keys
from janus_jax.ops.sampling import sample_tokens

STRUCTURES = {  # temperature, top_p, top_k: what one program samples
    "greedy": [(0.0, 1.0, 0), (0.0, 0.5, 3)],
    "temperature": [(0.7, 1.0, 0), (1.3, 1.0, 0), (1e-6, 1.0, 0)],
    "top_p and top_k": [(0.7, 0.6, 5), (1.5, 0.9, 5), (1.0, 1e-60, 5)],
}


def test_one_program_samples_at_every_temperature_and_top_p_what_constants_sample():
    traced = []

    @jax.jit
    def sample(sampling, keys, logits):
        traced.append(sampling)
        return sampling(keys, jnp.int32(3), logits)

    logits = jnp.asarray(np.random.default_rng(0).normal(0, 3, (500, 20)), jnp.float32)
    keys = jax.random.split(jax.random.key(1), len(logits))
    step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, 3)
    greedy = np.argmax(logits, axis=-1)
    for number, cases in enumerate(STRUCTURES.values(), start=1):
        for temperature, top_p, top_k in cases:
            tokens = sample(Sampling.of(temperature, top_p, top_k), keys, logits)
            narrow = top_p < 1e-30  # as a constant it keeps no token
            constants = dict(temperature=temperature or None, top_k=top_k, top_p=None if top_p == 1 else top_p)
            expected = greedy if narrow else sample_tokens(step_keys, logits, **constants)
            assert np.mean(tokens == expected) > 0.99, (temperature, top_p, top_k)  # ties of rounding aside
            assert (np.mean(tokens == greedy) > 0.99) == (narrow or temperature < 1e-3)
        assert len(traced) == number
    assert traced[0].temperature is None


def test_greedy_has_no_numbers_to_pass():
    assert jax.tree.leaves(Sampling.of(0, 0.5, 3)) == []
    assert Sampling.of(0, 0.5, 3) == Sampling()


def test_each_sample_has_the_key_of_its_seed_prompt_number_and_image_number():
    seeds, numbers = [3, 3, 2**32 - 1, 2**31], [0, 7, 2**32 - 1, 0]
    keys = jax.random.key_data(sample_keys(seeds, numbers, 2))
    for row, (seed, number) in enumerate(zip(seeds, numbers, strict=True)):
        for image in range(2):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), np.uint32(number)), image)
            np.testing.assert_array_equal(keys[row, image], jax.random.key_data(key))
    assert len({tuple(key) for key in np.asarray(keys).reshape(8, -1).tolist()}) == 8
