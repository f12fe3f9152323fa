"""Rows that are computed in parts add up to those that are computed at once."""

import jax.numpy as jnp
import numpy as np

from janus_jax.training.fsdp import sum_over_parts


def test_parts_add_up_also_where_rows_have_no_image_slots():
    """A run on text alone has pixels without any slot."""
    rows = {"tokens": jnp.arange(24.0).reshape(8, 3), "pixels": jnp.zeros((8, 0, 2, 2, 3))}

    def total(part):
        assert len(part["tokens"]) == len(part["pixels"])
        return jnp.sum(part["tokens"] ** 2, axis=0) + jnp.sum(part["pixels"])

    expected = np.sum(np.arange(24.0).reshape(8, 3) ** 2, axis=0)
    for parts in (1, 2, 8):
        np.testing.assert_allclose(sum_over_parts(total, rows, parts), expected)
