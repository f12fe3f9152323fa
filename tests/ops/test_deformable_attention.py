"""Deformable attention and windows against PyTorch, and against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from janus_jax.ops.deformable_attention import deformable_attention, sample_bilinear, sine_positions
from janus_jax.ops.windows import cut_windows, join_windows, relative_positions, shifted_mask

RNG = np.random.default_rng(0)


def test_points_are_read_as_pytorch_does_also_outside():
    values = RNG.standard_normal((2, 5, 7, 3, 4)).astype(np.float32)
    points = RNG.uniform(-0.3, 1.3, (2, 6, 3, 8, 2)).astype(np.float32)
    found = jax.jit(sample_bilinear)(jnp.asarray(values), jnp.asarray(points))
    maps = torch.tensor(values).permute(0, 3, 4, 1, 2).reshape(6, 4, 5, 7)
    grid = torch.tensor(2 * points - 1).transpose(1, 2).reshape(6, 6, 8, 2)
    expected = torch.nn.functional.grid_sample(maps, grid, padding_mode="zeros", align_corners=False)
    np.testing.assert_allclose(found, expected.reshape(2, 3, 4, 6, 8).permute(0, 3, 1, 4, 2), rtol=0, atol=1e-5)


def test_points_on_positions_read_single_values():
    values = RNG.standard_normal((1, 2 * 3 + 1, 1, 4)).astype(np.float32)
    places = np.array([[0.5 / 3, 1.5 / 2], [2.5 / 3, 0.5 / 2]], np.float32)  # row 1, column 0; row 0, column 2
    locations = np.zeros((1, 1, 1, 2, 2, 2), np.float32)
    locations[..., 0, :, :], locations[..., 1, :, :] = places, 0.5
    weights = np.array([0.1, 0.2, 0.3, 0.4], np.float32).reshape(1, 1, 1, 2, 2)
    run = jax.jit(lambda v, x, w: deformable_attention(v, [(2, 3), (1, 1)], x, w))
    found = run(values, locations, weights)
    rows = values[0, :, 0]
    np.testing.assert_allclose(found[0, 0, 0], 0.1 * rows[3] + 0.2 * rows[2] + 0.7 * rows[6], rtol=0, atol=1e-6)


def test_sine_positions_have_the_row_first_and_end_at_a_whole_turn():
    embedded = np.asarray(jax.jit(lambda: sine_positions(3, 5, 16))()).reshape(3, 5, 16)
    np.testing.assert_allclose(embedded[-1, 0, :2], [0, 1], atol=1e-5)  # sine and cosine of 2 pi
    np.testing.assert_allclose(embedded[0, 0, :2], [np.sin(2 * np.pi / 3), np.cos(2 * np.pi / 3)], atol=1e-5)
    np.testing.assert_allclose(
        embedded[1, 2, 10:12], [np.sin(x := 6 * np.pi / 5 / 10000 ** (2 / 8)), np.cos(x)], atol=1e-5
    )


def test_windows_come_back_and_see_only_their_own_region():
    x = jnp.arange(2 * 8 * 12 * 3, dtype=jnp.float32).reshape(2, 8, 12, 3)
    windows = cut_windows(x, 4)
    np.testing.assert_array_equal(windows[1], x[0, :4, 4:8].reshape(16, 3))
    np.testing.assert_array_equal(join_windows(windows, 4, 8, 12), x)
    mask = shifted_mask(8, 12, 4, 2)
    assert mask.shape == (6, 16, 16) and mask[0].all() and not mask[2].all()
    # In the last window of a row the first two columns come from the right side of the image, the others from the left.
    assert mask[2][0, 1] and not mask[2][0, 2] and mask[2][2, 3]
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(mask[2], mask[5])


def test_relative_positions_count_offsets_row_by_row():
    index = relative_positions(3)
    assert index[4, 4] == 12 and index[0, 8] == 0 and index[8, 0] == 24
    assert index[1, 0] == 13 and index[3, 0] == 17
