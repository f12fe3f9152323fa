"""Weights in 8 bits: the large kernels that decoding steps read, symmetric, with a scale per output channel.

The products stay in the compute dtype: `models.layers.Linear` multiplies with the integers and its result with the
scales, which is the product with the rounded weights.

Ours and not qwix's, whose version 0.1.8 installs beside our jax and flax: there a weight in the tree of parameters is a
`WithAux` object around integers and scales, which works because `nn.Module.param` and `jax.lax.dot_general` are
patched. It has no transpose, which decoding on CPUs needs (`kernels`), and it is made of a whole tree, where `loading`
reads tensor by tensor. Here it stays an array at a path, which loads, shards and counts like any other; what qwix would
replace is `quantize`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.models.layers import SCALE
from janus_jax.models.params import Params, flatten, unflatten

QUANTIZATIONS = ("int8",)
LARGEST = 127


def is_quantized(path: str) -> bool:
    """Whether a parameter is a kernel of the LLM, its head or the image head."""
    return path.startswith(("llm/", "gen_head/")) and path.endswith("/kernel")


def scale_path(path: str) -> str:
    """Where the scales of a kernel are."""
    return path.removesuffix("kernel") + SCALE


def quantize(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[in, out] -> int8 [in, out] and float32 scales [out], whose product is within half a scale of the kernel."""
    kernel = np.asarray(kernel, np.float32)
    scales = np.abs(kernel).max(axis=0) / LARGEST
    scales = np.where(scales == 0, 1, scales).astype(np.float32)
    return np.round(kernel / scales).astype(np.int8), scales


def quantize_params(params: Params) -> Params:
    """Of a model with layers apart."""
    result: dict[str, jax.Array] = {}
    for path, leaf in flatten(params).items():
        if is_quantized(path):
            kernel, scales = quantize(np.asarray(leaf))
            result |= {path: jnp.asarray(kernel), scale_path(path): jnp.asarray(scales)}
        else:
            result[path] = leaf
    return unflatten(result)
