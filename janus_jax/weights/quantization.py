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
    matrix = np.asarray(matrix, np.float32)
    scales = np.abs(matrix).max(axis=0) / LARGEST
    scales = np.where(scales == 0, 1, scales).astype(np.float32)
    return np.round(matrix / scales).astype(np.int8), scales
