"""The order of axes of the kernels that every decoding step reads.

XLA:CPU multiplies few rows with a kernel [out, in] faster than with one [in, out]: 1.3 times for 1 or 2 rows and 1.9
for 8, at width 2048 in float32; not in bfloat16. Such a kernel has another path, so that none is taken for the other;
`models.layers.Linear` takes both.
"""

import numpy as np

from janus_jax.inference.quantization import is_quantized
from janus_jax.models.layers import TRANSPOSED
from janus_jax.models.parameters import Params, flatten, unflatten


def transposed_path(path: str) -> str:
    """Where a kernel is as [out, in]."""
    return path.removesuffix("kernel") + TRANSPOSED


def transpose_kernels(params: Params) -> Params:
    """Of a model with layers apart: [in, out] -> [out, in]."""
    flat = flatten(params)
    return unflatten(
        {transposed_path(path): leaf.T for path, leaf in flat.items() if is_quantized(path)}
        | {path: leaf for path, leaf in flat.items() if not is_quantized(path)}
    )


def restore_kernels(params: Params) -> Params:
    """The inverse, without copies: views on the memory of the host."""
    flat = flatten(params)
    kernels = {path: np.asarray(leaf).T for path, leaf in flat.items() if path.endswith("/" + TRANSPOSED)}
    others = {path: leaf for path, leaf in flat.items() if path not in kernels}
    return unflatten({path.removesuffix(TRANSPOSED) + "kernel": leaf for path, leaf in kernels.items()} | others)
