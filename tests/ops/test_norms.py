import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from janus_jax.ops import norms

rms_norm = jax.jit(norms.rms_norm, static_argnums=2)


def torch_rms_norm(x, scale, eps, dtype):
    norm = LlamaRMSNorm(x.shape[-1], eps=eps).to(dtype)
    norm.weight.data = torch.tensor(scale).to(dtype)
    with torch.no_grad():
        return norm(torch.tensor(x).to(dtype)).float().numpy()


def random_input(width=256, rows=64):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, rows // 4, width), np.float32) * 3
    return x, (1 + rng.standard_normal(width, np.float32)).astype(np.float32)


@pytest.mark.parametrize("magnitude", [1.0, 1e-3, 1e4])
def test_equals_transformers_in_float32(magnitude):
    x, scale = random_input()
    x = x * np.float32(magnitude)
    out = rms_norm(jnp.asarray(x), jnp.asarray(scale), 1e-6)
    np.testing.assert_allclose(out, torch_rms_norm(x, scale, 1e-6, torch.float32), rtol=1e-5, atol=1e-6)


def test_bfloat16_is_rounded_before_the_scale_is_applied():
    x, scale = random_input()
    args = jnp.asarray(x, jnp.bfloat16), jnp.asarray(scale, jnp.bfloat16)
    out = rms_norm(*args, 1e-6)
    assert out.dtype == jnp.bfloat16
    expected = torch_rms_norm(x, scale, 1e-6, torch.bfloat16)
    np.testing.assert_array_equal(np.asarray(out, np.float32), expected)

    wide = args[0].astype(jnp.float32)
    other_order = wide * jax.lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + 1e-6) * args[1].astype(jnp.float32)
    wrong = np.asarray(other_order.astype(jnp.bfloat16), np.float32)
    assert (wrong != expected).mean() > 0.05  # this test sees the order of the cast


def test_global_response_norm_and_its_gradients_equal_pytorch():
    rng = np.random.default_rng(3)
    x, scale, bias, weights = (rng.standard_normal(shape) for shape in ((2, 3, 4, 6), 6, 6, (2, 3, 4, 6)))

    def loss(*inputs):
        y = norms.global_response_norm(*inputs, 1e-6)
        return jnp.sum(y * jnp.float32(weights)), y

    ours = (jnp.float32(x), jnp.float32(scale), jnp.float32(bias))
    gradients, y = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*ours)
    theirs = [torch.tensor(value, requires_grad=True) for value in (x, scale, bias)]
    response = torch.linalg.vector_norm(theirs[0], dim=(1, 2), keepdim=True)
    relative = response / (response.mean(-1, keepdim=True) + 1e-6)
    expected = theirs[2] + (theirs[1] * relative + 1) * theirs[0]
    (expected * torch.tensor(weights)).sum().backward()
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=0, atol=1e-5)
    for gradient, tensor in zip(gradients, theirs, strict=True):
        np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=0, atol=1e-5)


def test_global_response_norm_of_an_empty_channel_has_a_finite_gradient():
    x = jnp.ones((1, 2, 2, 3)).at[..., 1].set(0)
    ones = jnp.ones(3)
    gradient = jax.jit(jax.grad(lambda x: norms.global_response_norm(x, ones, ones, 1e-6).sum()))(x)
    assert np.isfinite(np.asarray(gradient)).all()


@pytest.mark.parametrize(("groups", "swish"), [(1, False), (3, False), (6, False), (3, True)])
def test_group_norm_and_its_gradient_equal_torch(groups, swish):
    rng = np.random.default_rng(0)
    x, dy = ((rng.standard_normal((2, 4, 5, 6)) + shift).astype(np.float32) for shift in (20, 0))
    scale, bias = (rng.standard_normal(6).astype(np.float32) for _ in range(2))
    layer = torch.nn.GroupNorm(groups, 6, eps=1e-6).double()
    layer.load_state_dict({"weight": torch.tensor(scale), "bias": torch.tensor(bias)})
    pixels = torch.tensor(x.transpose(0, 3, 1, 2), dtype=torch.float64, requires_grad=True)
    expected = torch.nn.functional.silu(layer(pixels)) if swish else layer(pixels)
    expected.backward(torch.tensor(dy.transpose(0, 3, 1, 2), dtype=torch.float64))

    y, gradient = jax.vjp(
        lambda *inputs: norms.group_norm(*inputs, groups, 1e-6, swish=swish), *map(jnp.asarray, (x, scale, bias))
    )
    dx, dscale, dbias = gradient(jnp.asarray(dy))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-5)
    close(y, expected.detach().numpy().transpose(0, 2, 3, 1))
    close(dx, pixels.grad.numpy().transpose(0, 2, 3, 1))
    close(dscale, layer.weight.grad)
    close(dbias, layer.bias.grad)


def test_group_norm_of_bfloat16_keeps_the_precision_of_each_gradient():
    x, scale, bias = jnp.ones((1, 2, 2, 4), jnp.bfloat16), jnp.ones(4), jnp.zeros(4)
    y, gradient = jax.vjp(lambda *inputs: norms.group_norm(*inputs, 2, 1e-6, jnp.bfloat16, swish=True), x, scale, bias)
    assert [y.dtype, *(array.dtype for array in gradient(y))] == [jnp.bfloat16, jnp.bfloat16, jnp.float32, jnp.float32]
