"""Weight matrices in 8 bits: symmetric int8 with one float32 scale per output channel.

The products stay in the compute dtype: `models.layers.Linear` multiplies with the integers and then multiplies the
result by the scales, which equals the product with the rounded weights.

We do not use qwix for this. Its version 0.1.8 represents a weight as a `WithAux` object around integers and scales,
and patches `nn.Module.param` and `jax.lax.dot_general` to understand it. That object has no transpose, which decoding
on a CPU needs (`weights.weight_layout`), and it is made from a whole tree of parameters, while `weights.load` reads
slice by slice. Here a quantised weight stays an array at a path, which is loaded, sharded and counted like any other.
"""

import numpy as np

from janus_jax.models.layers import SCALE

QUANTIZATIONS = ("int8",)
LARGEST = 127
ROWS = 256  # rows of a matrix that are quantised at a time


def is_quantized(path: str) -> bool:
    """Whether a parameter is a weight matrix of the language model, of its head or of the image head."""
    return path.startswith(("llm/", "gen_head/")) and path.endswith("/kernel")


def scale_path(path: str) -> str:
    """The path of the scales of a weight matrix."""
    return path.removesuffix("kernel") + SCALE


def quantize(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rounds a weight matrix to int8.

    Args:
        matrix: [in, out].

    Returns:
        int8 [in, out] and float32 scales [out]; their product differs from the matrix by at most half a scale.
    """
    # Some rows at a time: the copies in float32 are then small beside the result.
    parts = [slice(start, start + ROWS) for start in range(0, len(matrix), ROWS)]
    largest = np.max([np.abs(matrix[part].astype(np.float32)).max(axis=0) for part in parts], axis=0)
    scales = np.where(largest == 0, 1, largest / LARGEST).astype(np.float32)
    integers = np.empty(matrix.shape, np.int8, order="F" if matrix.flags.f_contiguous else "C")
    for part in parts:
        integers[part] = np.round(matrix[part].astype(np.float32) / scales)
    return integers, scales
