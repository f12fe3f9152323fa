"""The Pallas kernels of attention and RoPE, interpreted on a CPU, against NumPy in float64 and XLA's attention."""

import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.ops import attention
from janus_jax.ops.attention import BACKENDS, attend_packed
from janus_jax.ops.rope import rope_angles
from janus_jax.ops.tpu import flash_attention
from janus_jax.ops.tpu.flash_attention import LOG2_E, flash_attend, flash_fits, segment_starts
from janus_jax.ops.tpu.rope import rotate
from tests.helpers import REPOSITORY

LENGTH, HEAD_DIM = 384, 128
# Segments that end inside a block, on its edge, and one that spans three blocks; 0 is padding.
SEGMENTS = np.array(
    [
        [1] * 100 + [2] * 28 + [3] * 200 + [0] * 56,
        [1] * 384,
    ],
    np.int32,
)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Makes blocks of 128 tokens, so that a row has three blocks, as one of 1536 tokens has with blocks of 512."""
    monkeypatch.setattr(flash_attention, "BLOCK", 128)


def inputs(heads, kv_heads):
    rng = np.random.default_rng(heads)
    return tuple(rng.standard_normal((2, LENGTH, n, HEAD_DIM), np.float32) for n in (heads, kv_heads, kv_heads))


def reference(q, k, v, d_context):
    """Context, and gradients of sum(context * d_context), by the definition in float64."""
    q, k, v, d_context = (x.astype(np.float64) for x in (q, k, v, d_context))
    group = q.shape[2] // k.shape[2]
    k_wide, v_wide = (np.repeat(x, group, axis=2) for x in (k, v))
    scores = np.einsum("btnh,bsnh->bnts", q, k_wide) * HEAD_DIM**-0.5
    visible = (SEGMENTS[:, :, None] == SEGMENTS[:, None, :]) & np.tri(LENGTH, dtype=bool)
    weights = np.exp(scores - scores.max(-1, keepdims=True)) * visible[:, None]
    weights /= weights.sum(-1, keepdims=True)
    context = np.einsum("bnts,bsnh->btnh", weights, v_wide)
    d_weights = np.einsum("btnh,bsnh->bnts", d_context, v_wide)
    d_scores = weights * (d_weights - (weights * d_weights).sum(-1, keepdims=True)) * HEAD_DIM**-0.5
    dq = np.einsum("bnts,bsnh->btnh", d_scores, k_wide)
    dk, dv = np.einsum("bnts,btnh->bsnh", d_scores, q), np.einsum("bnts,btnh->bsnh", weights, d_context)
    per_group = (2, LENGTH, k.shape[2], group, HEAD_DIM)
    return context, dq, dk.reshape(per_group).sum(3), dv.reshape(per_group).sum(3)


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (2, 1)])
def test_context_and_gradients_equal_float64(heads, kv_heads):
    q, k, v = inputs(heads, kv_heads)
    d_context = np.random.default_rng(9).standard_normal(q.shape).astype(np.float32)

    def loss(q, k, v):
        context = flash_attend(q * (HEAD_DIM**-0.5 * LOG2_E), k, v, jnp.asarray(SEGMENTS), interpret=True)
        return jnp.sum(context * d_context), context

    (_, context), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    for ours, theirs in zip((context, *gradients), reference(q, k, v, d_context), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)


def test_segments_start_where_the_id_changes():
    starts = segment_starts(jnp.array([[1, 1, 2, 2, 2, 0, 0]]))
    np.testing.assert_array_equal(starts, [[0, 0, 2, 2, 2, 5, 5]])


def test_a_row_that_does_not_fit_the_blocks_is_refused():
    assert flash_fits(384, 128) and flash_fits(4096, 128)
    assert not flash_fits(100, 128) and not flash_fits(384, 64)
    q = jnp.zeros((1, 100, 2, 128))
    with pytest.raises(ValueError, match="T=100"):
        flash_attend(q, q, q, jnp.ones((1, 100), jnp.int32), interpret=True)


def test_rotation_and_its_gradient_equal_float64():
    x = np.random.default_rng(0).standard_normal((2, LENGTH, 2, HEAD_DIM)).astype(np.float32)
    slope = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    positions = np.stack([np.arange(LENGTH), np.arange(LENGTH) % 100])
    angles = rope_angles(jnp.asarray(positions), HEAD_DIM, 1e4)
    wide = np.concatenate([angles, angles], -1).astype(np.float64)[:, :, None]

    def turn(x, sign):
        half = HEAD_DIM // 2
        turned = np.concatenate([-x[..., half:], x[..., :half]], -1)
        return 0.3 * (x * np.cos(wide) + sign * turned * np.sin(wide))

    @jax.jit
    def run(x, slope):
        out, pull_back = jax.vjp(lambda x: rotate(x, angles, 0.3, interpret=True), x)
        return out, pull_back(slope)[0]

    out, gradient = run(x, slope)
    np.testing.assert_allclose(out, turn(x.astype(np.float64), 1), rtol=0, atol=1e-5)
    np.testing.assert_allclose(gradient, turn(slope.astype(np.float64), -1), rtol=0, atol=1e-5)


def test_the_backends_agree(monkeypatch):
    """Compares RoPE, scale and masks of the backends at all positions but padding. Positions have a gap."""
    for name in ("rotate", "flash_attend"):
        monkeypatch.setattr(attention, name, functools.partial(getattr(attention, name), interpret=True))
    q, k, v = map(jnp.asarray, inputs(2, 1))
    segments = jnp.asarray(SEGMENTS)
    positions = jnp.arange(LENGTH) - segment_starts(segments)
    positions = jnp.where(positions > 0, positions + 9, 0)
    angles = rope_angles(positions, HEAD_DIM, 1e4)
    run = jax.jit(attend_packed, static_argnums=6)
    contexts = [run(q, k, v, angles, positions, segments, backend) for backend in BACKENDS]
    assert len(contexts) == 2
    filled = SEGMENTS > 0
    np.testing.assert_allclose(np.asarray(contexts[0])[filled], np.asarray(contexts[1])[filled], rtol=0, atol=1e-5)


def test_heads_divided_over_tensor_give_what_one_device_gives():
    """Context and gradients under remat, on four CPU devices with fsdp=2 and tensor=2, in a separate process."""
    command = [sys.executable, "-m", "tests.helpers.divided_attention"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["heads"] == [2]  # of four
    assert min(result["scale"]) > 1 and max(result["difference"]) < 1e-5, result
