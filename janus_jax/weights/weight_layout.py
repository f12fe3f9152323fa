"""Weight matrices as a CPU reads them fastest in decoding: transposed to [out, in], in the dtype of the file.

`ops.cpu.gemv` sums along the rows of such a matrix in float32, whatever the matrix's dtype. A bfloat16 matrix is half
the memory to read, and one that was stored in bfloat16 has the same values in a float32 run.

A transposed matrix has another path than a usual one, so that neither is taken for the other. `models.layers.Linear`
accepts both, and rounds activations to the dtype of the run in either case.
"""

from typing import Any

import numpy as np
from jax.typing import DTypeLike

from janus_jax.models.layers import TRANSPOSED
from janus_jax.models.params import Params, flatten, unflatten


def is_read_every_step(path: str) -> bool:
    """Whether each step of decoding reads a parameter: a weight matrix of the language model, of its head, of the image
    head or of the aligner of image codes."""
    return path.startswith(("llm/", "gen_head/", "gen_aligner/")) and path.endswith("/kernel")


def transposed_path(path: str) -> str:
    """The path of a weight matrix when it is stored as [out, in]."""
    return path.removesuffix("kernel") + TRANSPOSED


def undo_transposed(params: Params, dtype: DTypeLike) -> Params:
    """The same parameters with every weight matrix as [in, out], in the dtype of the run (int8 stays int8).

    Matrices that were transposed become views of NumPy arrays in host memory.
    """
    flat = flatten(params)
    matrices = {
        path: _cast(np.asarray(leaf).T, dtype) for path, leaf in flat.items() if path.endswith("/" + TRANSPOSED)
    }
    others = {path: leaf for path, leaf in flat.items() if path not in matrices}
    return unflatten({path.removesuffix(TRANSPOSED) + "kernel": leaf for path, leaf in matrices.items()} | others)


def _cast(matrix: Any, dtype: DTypeLike) -> Any:
    """Integers stay as they are, since their scales are kept beside them."""
    return matrix if matrix.dtype == np.int8 else matrix.astype(dtype, copy=False)
