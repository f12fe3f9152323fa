import jax
import jax.numpy as jnp
import numpy as np
import torch

from janus_jax.ops.representation_alignment import alignment_loss, on_coarser_grid


def test_loss_and_gradient_equal_pytorch_and_the_encoder_gets_none():
    rng = np.random.default_rng(0)
    predicted, features = rng.standard_normal((2, 5, 8)), 3 * rng.standard_normal((2, 5, 8))
    weights = np.array([0.3, 1.1])

    def weighted(predicted, features):
        return jnp.sum(jnp.float32(weights) * alignment_loss(predicted, features))

    grad = jax.jit(jax.value_and_grad(weighted, argnums=(0, 1)))
    value, (gradient, stopped) = grad(jnp.float32(predicted), jnp.float32(features))
    p = torch.tensor(predicted, requires_grad=True)
    similarity = torch.nn.functional.cosine_similarity(p, torch.tensor(features), dim=-1).mean(1)
    expected = -(torch.tensor(weights) * similarity).sum()
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, p.grad.numpy(), rtol=0, atol=1e-6)
    assert (np.asarray(stopped) == 0).all()


def test_same_direction_gives_minus_one_and_zero_features_a_finite_gradient():
    features = jnp.asarray(np.random.default_rng(1).standard_normal((1, 4, 6)), jnp.bfloat16)
    loss = alignment_loss(7 * features, features)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, -1, rtol=1e-6)
    gradient = jax.jit(jax.grad(lambda p: alignment_loss(p, features).sum()))(jnp.zeros((1, 4, 6)))
    assert np.isfinite(np.asarray(gradient)).all()


def test_a_finer_grid_is_averaged_over_the_cells_of_a_coarser_one():
    values = np.arange(2 * 36 * 3, dtype=np.float32).reshape(2, 36, 3) ** 2
    pooled = torch.nn.functional.avg_pool2d(torch.tensor(values).reshape(2, 6, 6, 3).permute(0, 3, 1, 2), 3)
    expected = pooled.permute(0, 2, 3, 1).reshape(2, 4, 3).numpy()
    np.testing.assert_allclose(on_coarser_grid(jnp.asarray(values), 4), expected, rtol=1e-6)
    np.testing.assert_array_equal(on_coarser_grid(jnp.asarray(values), 36), values)
