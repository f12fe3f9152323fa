"""Moving image tokens to and from their positions in packed rows, with static shapes.

Letters: B rows, L tokens per row, M image tokens per row.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped


def place_in_order(
    row: Shaped[Array, "B L *D"], mask: Bool[Array, "B L"], values: Shaped[Array, "B M *D"]
) -> Shaped[Array, "B L *D"]:
    """Writes values[k] to the k-th True position of each row's mask; the other positions keep the value of `row`.

    This is a gather whose index follows from the mask, so that no shape depends on the data.
    """
    index = jnp.clip(jnp.cumsum(mask, axis=1) - 1, 0, values.shape[1] - 1)  # [B, L]
    gathered = jax.vmap(lambda row_values, row_index: row_values[row_index])(values, index)  # copies whole vectors
    return jnp.where(mask.reshape(*mask.shape, *(1,) * (row.ndim - 2)), gathered, row)


def take_in_order(row: Shaped[Array, "B L *D"], mask: Bool[Array, "B L"], number: int) -> Shaped[Array, "B M *D"]:
    """Reads the first `number` True positions of each row, the inverse of `place_in_order`.

    Where a row has fewer of them, the rest of the result comes from other positions and has no meaning.
    """
    order = jnp.argsort(~mask, axis=1, stable=True)[:, :number]  # [B, M]
    return jax.vmap(lambda row_values, row_order: row_values[row_order])(row, order)


def segments_with(segment_ids: Int[Array, "B L"], mask: Bool[Array, "B L"]) -> Bool[Array, "B L"]:
    """True at every position of a segment that has a True anywhere in `mask`."""
    rows = jnp.arange(segment_ids.shape[0])[:, None]
    found = jnp.zeros((segment_ids.shape[0], segment_ids.shape[1] + 1), bool)  # ids are at most L
    return found.at[rows, segment_ids].max(mask)[rows, segment_ids]
