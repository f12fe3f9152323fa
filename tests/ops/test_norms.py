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
