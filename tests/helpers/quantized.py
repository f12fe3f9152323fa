"""Parameters in int8 as `weights.load` makes them slice by slice, here of a whole tree in memory."""

import jax.numpy as jnp
import numpy as np

from janus_jax.models.params import flatten, unflatten
from janus_jax.weights.quantization import is_quantized, quantize, scale_path


def quantize_params(params):
    """Quantises the parameters of a model whose layers are unrolled."""
    result = {}
    for path, leaf in flatten(params).items():
        if is_quantized(path):
            matrix, scales = quantize(np.asarray(leaf))
            result |= {path: jnp.asarray(matrix), scale_path(path): jnp.asarray(scales)}
        else:
            result[path] = leaf
    return unflatten(result)
