"""Weights as a CPU holds them for decoding: matrices transposed to [out, in], in the dtype of the file.

`ops.cpu.gemv` sums along the rows of such a matrix in float32, whatever the matrix's dtype. A bfloat16 matrix is half
the memory to hold and, at every step, to read, and one that was stored in bfloat16 has the same values in a float32
run. So has the table of token embeddings, which keeps its dtype too.

Layers stay stacked. A loop over them reads each where it lies (`Execution.scan_in_place`), so that compile time does
not grow with depth.

A transposed matrix has another path than a usual one, so that neither is taken for the other. `models.layers.Linear`
accepts both, and rounds activations to the dtype of the run in either case.
"""

from typing import Any

import numpy as np
from jax.typing import DTypeLike

from janus_jax.models.layers import TRANSPOSED
from janus_jax.models.params import Params, flatten, unflatten
from janus_jax.models.scan_layers import is_stacked

EMBEDDING = "llm/embed_tokens"
ROW_MAJOR = ("llm/", "gen_head/", "gen_aligner/", "siglip/layers", "aligner/", "semantic/layers")


def is_row_major(path: str) -> bool:
    """Whether a parameter is a matrix that is transposed: those of the language model, its heads and aligners, and of
    the layers of SigLIP and of a semantic decoder."""
    return path.startswith(ROW_MAJOR) and path.endswith("/kernel")


def keeps_dtype(path: str) -> bool:
    """Whether a parameter stays in the dtype of the file, if that is narrower than the run's."""
    return is_row_major(path) or path == EMBEDDING


def transposed_path(path: str) -> str:
    """The path of a weight matrix when it is stored as [out, in]."""
    return path.removesuffix("kernel") + TRANSPOSED


def has_transposed_stacks(params: Params) -> bool:
    """Whether layers are stacked, and their matrices transposed."""
    return any(is_stacked(path) and path.endswith("/" + TRANSPOSED) for path in flatten(params))


def undo_transposed(params: Params, dtype: DTypeLike) -> Params:
    """The same parameters with every weight matrix as [in, out], in the dtype of the run (int8 stays int8).

    Matrices that were transposed become views of NumPy arrays in host memory.
    """
    flat = flatten(params)
    transposed = {path: np.asarray(leaf) for path, leaf in flat.items() if path.endswith("/" + TRANSPOSED)}
    matrices = {path: _cast(leaf.swapaxes(-1, -2), dtype) for path, leaf in transposed.items()}
    others = {path: leaf for path, leaf in flat.items() if path not in matrices}
    if EMBEDDING in others:
        others[EMBEDDING] = _cast(others[EMBEDDING], dtype)
    return unflatten({path.removesuffix(TRANSPOSED) + "kernel": leaf for path, leaf in matrices.items()} | others)


def _cast(matrix: Any, dtype: DTypeLike) -> Any:
    """Integers stay as they are, since their scales are kept beside them."""
    return matrix if matrix.dtype == np.int8 else matrix.astype(dtype, copy=False)
