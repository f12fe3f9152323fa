import jax
import jax.numpy as jnp
import numpy as np
import torch

from janus_jax.ops import codebook as ops
from janus_jax.ops.codebook import straight_through

l2_normalize, lookup_codes, nearest_codes = (
    jax.jit(function) for function in (ops.l2_normalize, ops.lookup_codes, ops.nearest_codes)
)


def random_codebook(rows=64, width=8):
    """A codebook whose rows have very different lengths."""
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.uniform(-1, 2, (rows, 1)))
    return (rng.standard_normal((rows, width)) * lengths).astype(np.float32)


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def nearest_rows(latents, codebook):
    """Nearest rows by brute force, and the smallest distance between a best and a second-best row."""
    distances = np.square(latents[:, None] - codebook[None]).sum(-1)
    ordered = np.sort(distances, axis=1)
    return distances.argmin(1), (ordered[:, 1] - ordered[:, 0]).min()


def test_nearest_is_the_brute_force_argmin_of_normalised_distances():
    codebook = random_codebook()
    latents = np.random.default_rng(1).standard_normal((3, 40, 8), np.float32)
    expected, gap = nearest_rows(unit(latents).reshape(-1, 8), unit(codebook))
    assert gap > 1e-5  # float32 can tell the two apart
    codes = np.asarray(nearest_codes(jnp.asarray(latents), jnp.asarray(codebook)))
    assert codes.dtype == np.int32 and codes.shape == (3, 40)
    np.testing.assert_array_equal(codes.reshape(-1), expected)

    without_normalisation, _ = nearest_rows(latents.reshape(-1, 8).astype(np.float64), codebook.astype(np.float64))
    assert (without_normalisation != expected).mean() > 0.3  # the lookup of Hugging Face's encoder is another one


def test_nearest_ignores_the_length_of_a_latent():
    codebook = jnp.asarray(random_codebook())
    latents = jnp.asarray(np.random.default_rng(2).standard_normal((50, 8), np.float32))
    np.testing.assert_array_equal(nearest_codes(latents * 1e-3, codebook), nearest_codes(latents * 1e3, codebook))


def test_lookup_returns_unit_rows_and_is_inverse_to_nearest():
    codebook = random_codebook()
    codes = jnp.asarray(np.random.default_rng(3).permutation(64).reshape(8, 8).astype(np.int32))
    rows = lookup_codes(codes, jnp.asarray(codebook))
    np.testing.assert_allclose(rows, unit(codebook)[np.asarray(codes)], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(nearest_codes(rows, jnp.asarray(codebook)), codes)


def test_l2_normalize_equals_torch_also_for_tiny_vectors():
    x = np.random.default_rng(4).standard_normal((30, 8), np.float32) * 10.0 ** np.arange(-10, 20)[:, None]
    x[0] = 0
    x = x.astype(np.float32)
    expected = torch.nn.functional.normalize(torch.tensor(x), dim=-1).numpy()
    moderate = slice(0, 25)  # float32 squares overflow beyond 1e19 in both
    np.testing.assert_allclose(l2_normalize(jnp.asarray(x))[moderate], expected[moderate], rtol=1e-5, atol=1e-7)


def test_l2_normalize_has_a_finite_gradient_at_zero():
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(l2_normalize(x))))(jnp.zeros(4))
    assert np.isfinite(gradient).all()


def test_straight_through_takes_the_value_of_one_and_the_gradient_of_the_other():
    rng = np.random.default_rng(5)
    latents, quantized, weight = (jnp.asarray(rng.standard_normal((6, 8), np.float32)) for _ in range(3))
    np.testing.assert_allclose(straight_through(latents, quantized), quantized, rtol=0, atol=1e-6)
    gradient = jax.jit(jax.grad(lambda z, q: jnp.sum(weight * straight_through(z, q)), argnums=(0, 1)))
    gradients = gradient(latents, quantized)
    np.testing.assert_array_equal(gradients[0], weight)
    np.testing.assert_array_equal(gradients[1], jnp.zeros_like(quantized))
