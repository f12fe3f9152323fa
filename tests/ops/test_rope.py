import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from janus_jax.ops import rope

apply_rope = jax.jit(rope.apply_rope)
rope_angles = jax.jit(rope.rope_angles, static_argnums=(1, 2))


def torch_rope(x, positions, theta):
    """x [B, T, N, H] rotated by transformers."""
    head_dim = x.shape[-1]
    config = LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=16384,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
    )
    x = torch.tensor(x).transpose(1, 2)  # [B, N, T, H]
    cos, sin = LlamaRotaryEmbedding(config)(x, torch.tensor(positions))
    return apply_rotary_pos_emb(x, x, cos, sin)[0].transpose(1, 2).numpy()


@pytest.mark.parametrize(("head_dim", "theta"), [(8, 10000.0), (48, 10000.0), (128, 500000.0)])
def test_rotation_equals_transformers(head_dim, theta):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 6, 3, head_dim), np.float32)
    positions = np.array([[0, 1, 2, 3, 4, 5], [0, 0, 7, 63, 200, 511]])
    out = apply_rope(jnp.asarray(x), rope_angles(jnp.asarray(positions), head_dim, theta))
    # an angle of up to 511 radians in float32 is good to 511 * 2^-23 = 6e-5
    np.testing.assert_allclose(out, torch_rope(x, positions, theta), rtol=0, atol=3e-4)
    np.testing.assert_allclose(out[:, :2], torch_rope(x, positions, theta)[:, :2], rtol=0, atol=1e-6)


def test_angles_equal_the_closed_form():
    positions = np.array([[0, 1, 17, 4095, 16383]])
    frequencies = 10000.0 ** (-2 * np.arange(64) / 128)
    expected = positions[..., None] * frequencies
    angles = rope_angles(jnp.asarray(positions), 128, 10000.0)
    assert angles.dtype == jnp.float32
    np.testing.assert_allclose(angles, expected, rtol=2e-6)


def test_scores_depend_on_the_distance_only():
    rng = np.random.default_rng(1)
    q, k = (jnp.asarray(rng.standard_normal((1, 1, 1, 64), np.float32)) for _ in range(2))

    def score(query_position, key_position):
        angles = [rope_angles(jnp.array([[position]]), 64, 10000.0) for position in (query_position, key_position)]
        return float(jnp.sum(apply_rope(q, angles[0]) * apply_rope(k, angles[1])))

    assert score(105, 100) == pytest.approx(score(5, 0), abs=1e-3)
    assert abs(score(5, 0) - score(6, 0)) > 1e-2


def test_bfloat16_rotation_is_the_rounded_float32_rotation():
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.standard_normal((1, 5, 2, 16), np.float32)).astype(jnp.bfloat16)
    angles = rope_angles(jnp.array([[0, 3, 50, 400, 4000]]), 16, 10000.0)
    out = apply_rope(x, angles)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        np.asarray(out, np.float32),
        np.asarray(apply_rope(x.astype(jnp.float32), angles).astype(jnp.bfloat16), np.float32),
    )


def test_cosines_are_computed_once_for_all_layers():
    """The loops over the heads of each layer do not compute them again."""

    def layers(x, angles):
        rotation = rope.rotation_once(angles)
        for _ in range(3):
            x = jnp.tanh(rope.apply_rotation(x, rotation))
        return x

    x, angles = jnp.ones((2, 1, 4, 8)), rope_angles(jnp.array([[3], [7]]), 8, 10000.0)
    assert jax.jit(layers).lower(x, angles).compile().as_text().count(" cosine(") == 1
    np.testing.assert_array_equal(rope.apply_rotation(x, rope.rotation_once(angles)), rope.apply_rope(x, angles))
