import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from janus_jax.models.layers import Conv, GroupNorm, Linear, gelu, layer_norm
from tests.helpers.small_models import random_array


def apply(module, x, **params):
    return np.asarray(jax.jit(module.apply)({"params": params}, x))


def test_linear_equals_torch():
    x, kernel, bias = random_array(3, 5), random_array(5, 7, seed=1), random_array(7, seed=2)
    out = apply(Linear(7, (None, None), jnp.float32), x, kernel=kernel, bias=bias)
    expected = torch.nn.functional.linear(*(torch.tensor(np.array(a)) for a in (x, kernel.T, bias)))
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5)
    without_bias = apply(Linear(7, (None, None), jnp.float32, use_bias=False), x, kernel=kernel)
    np.testing.assert_allclose(without_bias, expected.numpy() - np.asarray(bias), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kernel_size", "padding", "stride"), [(3, (1, 1), 1), (3, (0, 1), 2), (1, (0, 0), 1), (4, (0, 0), 4)]
)
def test_convolution_equals_torch_with_explicit_padding(kernel_size, padding, stride):
    x, kernel = random_array(2, 8, 12, 3), random_array(kernel_size, kernel_size, 3, 5, seed=1)
    bias = random_array(5, seed=2)
    out = apply(Conv(5, kernel_size, jnp.float32, padding, stride), x, kernel=kernel, bias=bias)
    x, kernel = torch.tensor(np.array(x)).permute(0, 3, 1, 2), torch.tensor(np.array(kernel)).permute(3, 2, 0, 1)
    x = torch.nn.functional.pad(x, (*padding, *padding))
    expected = torch.nn.functional.conv2d(x, kernel, torch.tensor(np.array(bias)), stride).permute(0, 2, 3, 1)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_norms_equal_torch_in_float64_also_far_from_zero(eps):
    """With a mean of 100 the fast variance E[x^2] - E[x]^2 would be wrong in the third digit."""
    x = random_array(2, 4, 4, 6) + 100
    scale, bias = 1 + random_array(6, seed=1), random_array(6, seed=2)
    exact = torch.tensor(np.array(x, np.float64))
    affine = [torch.tensor(np.array(a, np.float64)) for a in (scale, bias)]

    out = apply(layer_norm(eps, jnp.float32, None), x, scale=scale, bias=bias)
    expected = torch.nn.functional.layer_norm(exact, (6,), *affine, eps=eps)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-4)

    out = apply(GroupNorm(3, eps, jnp.float32), x, scale=scale, bias=bias)
    expected = torch.nn.functional.group_norm(exact.permute(0, 3, 1, 2), 3, *affine, eps=eps).permute(0, 2, 3, 1)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-4)


def test_gelu_is_the_exact_one():
    x = np.linspace(-6, 6, 101, dtype=np.float32)
    exact = torch.nn.functional.gelu(torch.tensor(x)).numpy()
    np.testing.assert_allclose(gelu(jnp.asarray(x)), exact, rtol=0, atol=1e-6)
    tanh = torch.nn.functional.gelu(torch.tensor(x), approximate="tanh").numpy()
    assert np.abs(tanh - exact).max() > 1e-4  # so the tolerance above tells them apart


@pytest.mark.parametrize("module", [Linear(4, (None, None), jnp.bfloat16), Conv(4, 1, jnp.bfloat16)])
def test_compute_dtype_is_the_modules_whatever_comes_in(module):
    x = random_array(1, 2, 2, 3)
    kernel = random_array(3, 4) if isinstance(module, Linear) else random_array(1, 1, 3, 4)
    out = module.apply({"params": {"kernel": kernel, "bias": jnp.zeros(4)}}, x)
    assert out.dtype == jnp.bfloat16
