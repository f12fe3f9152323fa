"""Windows of Swin Transformer (Liu et al., 2021): images cut into squares, and what tokens of a square see.

Letters: B images, R C rows and columns, W side of a window, M windows of an image, D width, N heads.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


def cut_windows(x: Float[Array, "B R C D"], side: int) -> Float[Array, "BM T D"]:
    """The tokens of each window, T = side^2, windows row by row. Rows and columns must be multiples of `side`."""
    batch, rows, columns, width = x.shape
    x = x.reshape(batch, rows // side, side, columns // side, side, width).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, side * side, width)


def join_windows(windows: Float[Array, "BM T D"], side: int, rows: int, columns: int) -> Float[Array, "B R C D"]:
    """The inverse of `cut_windows`."""
    width = windows.shape[-1]
    x = windows.reshape(-1, rows // side, columns // side, side, side, width).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, rows, columns, width)


def shifted_mask(rows: int, columns: int, side: int, shift: int) -> Bool[np.ndarray, "M T T"]:
    """True where tokens of a window were neighbours before the image was rolled by `shift`."""

    def regions(size: int) -> np.ndarray:
        index = np.arange(size)
        return (index >= size - side).astype(int) + (index >= size - shift)

    labels = 3 * regions(rows)[:, None] + regions(columns)
    windows = labels.reshape(rows // side, side, columns // side, side).transpose(0, 2, 1, 3).reshape(-1, side * side)
    return windows[:, :, None] == windows[:, None, :]


def relative_positions(side: int) -> Int[np.ndarray, "T T"]:
    """Row of the table of position biases for each pair of tokens of a window: (2 side - 1)^2 offsets, row by row."""
    place = np.stack(np.divmod(np.arange(side * side), side))
    rows, columns = place[:, :, None] - place[:, None, :] + side - 1
    return rows * (2 * side - 1) + columns


def attend_windows(
    q: Float[Array, "BM T N H"],
    k: Float[Array, "BM T N H"],
    v: Float[Array, "BM T N H"],
    bias: Float[Array, "N T T"],
    mask: Bool[np.ndarray, "M T T"] | None,
) -> Float[Array, "BM T N H"]:
    """Attention inside windows with a bias for each pair of tokens, and float32 scores.

    Args:
        mask: True where a token may see another in each window of an image; None means everywhere.
    """
    scores = jnp.einsum("BTNH,BSNH->BNTS", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5 + bias
    if mask is not None:
        of_images = scores.reshape(-1, len(mask), *scores.shape[1:])
        scores = jnp.where(mask[:, None], of_images, -1e30).reshape(scores.shape)
    return jnp.einsum("BNTS,BSNH->BTNH", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)
