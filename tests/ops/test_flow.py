"""Rectified flow: path, loss, times, and solvers on a Gaussian whose flow is known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from janus_jax.ops.flow import (
    SOLVERS,
    flow_loss,
    integrate,
    interpolate,
    logit_normal_time,
    sinusoidal_embedding,
)

MEAN = np.array([0.5, -1.0, 2.0])
COVARIANCE = np.array([[1.5, 0.6, 0.1], [0.6, 0.8, -0.2], [0.1, -0.2, 0.3]])


def gaussian_velocity(z, time):
    """E[x - z_0 | z_t = z] for x ~ N(m, S), z_0 ~ N(0, I): m + (t S - (1-t) I) (t^2 S + (1-t)^2 I)^-1 (z - t m)."""
    identity = jnp.eye(3)
    gain = time * COVARIANCE - (1 - time) * identity
    spread = time**2 * COVARIANCE + (1 - time) ** 2 * identity
    return MEAN + (z - time * MEAN) @ jnp.linalg.solve(spread, gain.T)


def exact_flow(noise):
    """The point to which the flow moves noise: m + S^(1/2) z_0, because S commutes with I."""
    values, vectors = np.linalg.eigh(COVARIANCE)
    return MEAN + noise @ (vectors * np.sqrt(values)) @ vectors.T


def test_velocity_target_is_the_derivative_of_the_path():
    rng = np.random.default_rng(0)
    data, noise = (jnp.float32(rng.standard_normal((4, 3, 5))) for _ in range(2))
    time = jnp.array([0.0, 0.25, 0.5, 1.0])
    expected = time[:, None, None] * data + (1 - time[:, None, None]) * noise
    np.testing.assert_allclose(interpolate(data, noise, time), expected, rtol=0, atol=1e-6)
    _, derivative = jax.jvp(lambda t: interpolate(data, noise, t), (time,), (jnp.ones_like(time),))
    np.testing.assert_allclose(flow_loss(derivative, data, noise), 0, atol=1e-12)


def test_loss_and_gradient_equal_pytorch():
    rng = np.random.default_rng(1)
    velocity, data, noise = (rng.standard_normal((3, 4, 4, 2)) for _ in range(3))
    weights = np.array([0.2, 1.0, 0.5])

    def weighted(v):
        return jnp.sum(jnp.asarray(weights, jnp.float32) * flow_loss(v, jnp.float32(data), jnp.float32(noise)))

    value, gradient = jax.jit(jax.value_and_grad(weighted))(jnp.float32(velocity))
    v = torch.tensor(velocity, requires_grad=True)
    per_sample = torch.nn.functional.mse_loss(v, torch.tensor(data - noise), reduction="none").mean((1, 2, 3))
    expected = (torch.tensor(weights) * per_sample).sum()
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient, v.grad.numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("location", "scale"), [(0.0, 1.0), (-0.5, 0.7)])
def test_times_are_logit_normal(location, scale):
    """Mean, spread and skewness of the logits are right within five standard errors."""
    time = np.asarray(logit_normal_time(jax.random.key(0), (100, 200), location, scale), np.float64)
    assert time.shape == (100, 200) and 0 < time.min() < time.max() < 1
    logits = np.log(time / (1 - time))
    assert abs(logits.mean() - location) < 5 * scale / np.sqrt(time.size)
    assert abs(logits.std() / scale - 1) < 5 / np.sqrt(2 * time.size)
    skewness = np.mean(((logits - location) / scale) ** 3)
    assert abs(skewness) < 5 * np.sqrt(15 / time.size)


def test_time_embedding_has_cosines_first_and_half_as_divisor():
    time = jnp.array([0.0, 333.3333, 999.0])
    frequencies = np.exp(-np.log(10000) * np.arange(4) / 4)
    angles = np.asarray(time, np.float64)[:, None] * frequencies
    expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    np.testing.assert_allclose(sinusoidal_embedding(time, 8), expected, rtol=0, atol=1e-4)  # float32 angles near 1000


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_order_of_convergence(solver, order):
    with jax.enable_x64(True):
        noise = np.random.default_rng(2).standard_normal((50, 3))
        errors = []
        for steps in (32, 64):
            solve = jax.jit(lambda z, steps=steps: integrate(gaussian_velocity, z, steps, solver))
            errors.append(np.abs(np.asarray(solve(jnp.asarray(noise))) - exact_flow(noise)).max())
    assert abs(np.log2(errors[0] / errors[1]) - order) < 0.15, errors


@pytest.mark.parametrize(("solver", "steps"), [("euler", 1000), ("heun", 60)])
def test_samples_have_the_mean_and_covariance_of_the_data(solver, steps):
    """Within five standard errors of the Monte-Carlo estimate."""
    number = 20_000
    noise = jax.random.normal(jax.random.key(3), (number, 3))
    samples = np.asarray(jax.jit(lambda z: integrate(gaussian_velocity, z, steps, solver))(noise), np.float64)
    variances = np.diag(COVARIANCE)
    assert (np.abs(samples.mean(0) - MEAN) < 5 * np.sqrt(variances / number)).all()
    standard_error = np.sqrt((np.outer(variances, variances) + COVARIANCE**2) / number)
    assert (np.abs(np.cov(samples.T) - COVARIANCE) < 5 * standard_error).all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_straight_path_takes_one_step(solver):
    noise = jnp.ones((2, 3))
    result = integrate(lambda z, time: jnp.full_like(z, 2.0), noise, 1, solver)
    np.testing.assert_array_equal(result, np.full((2, 3), 3.0))
