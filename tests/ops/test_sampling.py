import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import TopKLogitsWarper, TopPLogitsWarper

from janus_jax.ops import sampling
from janus_jax.ops.sampling import guide, sample_tokens

keep_top_k = jax.jit(sampling.keep_top_k, static_argnums=1)
keep_top_p = jax.jit(sampling.keep_top_p)  # one program for all probabilities


def random_logits(rows=6, classes=40, scale=3.0, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, classes), np.float32) * np.float32(scale)


def keys(rows, seed=0):
    return jax.random.split(jax.random.key(seed), rows)


def softmax(x):
    x = np.exp(np.asarray(x, np.float64) - np.max(x, axis=-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def test_guidance_of_weight_one_is_conditional_and_of_zero_unconditional():
    conditional, unconditional = (jnp.asarray(random_logits(seed=seed)) for seed in (1, 2))
    np.testing.assert_allclose(guide(conditional, unconditional, 1.0), conditional, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(guide(conditional, unconditional, 0.0), unconditional)


@pytest.mark.parametrize("weight", [5.0, 2.5, -1.0])
def test_guidance_extrapolates_in_float32(weight):
    narrow = [jnp.asarray(random_logits(seed=seed), jnp.bfloat16) for seed in (1, 2)]
    conditional, unconditional = (np.asarray(x, np.float64) for x in narrow)
    out = guide(*narrow, weight)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(
        out, unconditional + weight * (conditional - unconditional), rtol=0, atol=1e-5 * max(1, abs(weight))
    )


@pytest.mark.parametrize("top_k", [1, 2, 7, 40, 41, 0])
def test_top_k_equals_transformers(top_k):
    logits = random_logits()
    expected = TopKLogitsWarper(top_k)(None, torch.tensor(logits)).numpy() if top_k else logits
    np.testing.assert_array_equal(keep_top_k(jnp.asarray(logits), top_k), expected)


@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.8, 0.95, 0.999])
def test_top_p_equals_transformers(top_p):
    logits = random_logits()
    expected = TopPLogitsWarper(top_p)(None, torch.tensor(logits)).numpy()
    np.testing.assert_array_equal(keep_top_p(jnp.asarray(logits), top_p), expected)


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9])
def test_top_p_keeps_the_smallest_set_that_reaches_the_probability(top_p):
    logits = random_logits(rows=20, seed=3)
    kept = np.isfinite(np.asarray(keep_top_p(jnp.asarray(logits), top_p)))
    for row, probabilities in enumerate(softmax(logits)):
        best_first = np.argsort(-probabilities)
        size = int(np.searchsorted(np.cumsum(probabilities[best_first]), top_p)) + 1
        assert set(np.flatnonzero(kept[row])) == set(best_first[:size])


def test_no_temperature_is_argmax():
    logits = random_logits(rows=50)
    out = sample_tokens(keys(50), jnp.asarray(logits), temperature=None, top_k=3, top_p=0.1)
    np.testing.assert_array_equal(out, logits.argmax(1))


def test_the_token_of_a_row_is_independent_of_its_batch():
    logits, row_keys = jnp.asarray(random_logits(rows=16, scale=0.5)), keys(16)
    sample = jax.jit(functools.partial(sample_tokens, temperature=1.0, top_k=30, top_p=0.9))
    together = sample(row_keys, logits)
    assert together.tolist() == [int(sample(row_keys[i : i + 1], logits[i : i + 1])[0]) for i in range(16)]
    order = np.random.default_rng(0).permutation(16)
    np.testing.assert_array_equal(sample(row_keys[order], logits[order]), np.asarray(together)[order])
    assert len(set(together.tolist())) > 5  # rows do not share one random number


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, None), (0.5, 0, None), (2.0, 4, None), (1.0, 0, 0.7), (2.0, 4, 0.7)]
)
def test_frequencies_follow_temperature_then_top_k_then_top_p(temperature, top_k, top_p):
    draws = 20000
    logits = random_logits(rows=1, classes=8, scale=1.0, seed=4)
    expected = softmax(logits[0] / temperature)
    if top_k:
        expected[np.argsort(-expected)[top_k:]] = 0
        expected /= expected.sum()
    best_first = np.argsort(-expected)
    keep = best_first[: int(np.searchsorted(np.cumsum(expected[best_first]), (top_p or 1) - 1e-9)) + 1]
    expected = np.where(np.isin(np.arange(8), keep), expected, 0)
    expected /= expected.sum()

    sample = jax.jit(functools.partial(sample_tokens, temperature=temperature, top_k=top_k, top_p=top_p))
    tokens = sample(keys(draws), jnp.broadcast_to(logits, (draws, 8)))
    frequencies = np.bincount(np.asarray(tokens), minlength=8) / draws
    assert (frequencies[expected == 0] == 0).all()
    np.testing.assert_array_less(np.abs(frequencies - expected), 5 * np.sqrt(0.25 / draws))
