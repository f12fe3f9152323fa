"""The kernels that every decoding step reads, as a CPU reads them fastest: [out, in], in the bits they were stored in.

`ops.cpu.gemv` sums along the rows of such a kernel, in float32 whatever its dtype: bfloat16 is half the memory to read,
and a kernel that was stored so is the same in a run of float32. Such a kernel has another path, so that none is taken
for the other; `models.layers.Linear` takes both, and rounds activations to the dtype of the run in either case.
"""

from typing import Any

import numpy as np
from jax.typing import DTypeLike

from janus_jax.models.layers import TRANSPOSED
from janus_jax.models.params import Params, flatten, unflatten


def is_read_by_steps(path: str) -> bool:
    """Whether a parameter is such a kernel: of the LLM and its head, of the image head and of the codes' aligner."""
    return path.startswith(("llm/", "gen_head/", "gen_aligner/")) and path.endswith("/kernel")


def transposed_path(path: str) -> str:
    """Where a kernel is as [out, in]."""
    return path.removesuffix("kernel") + TRANSPOSED


def restore_kernels(params: Params, dtype: DTypeLike) -> Params:
    """As [in, out], in the dtype of the run or in 8 bits; those that have it are views on the memory of the host."""
    flat = flatten(params)
    kernels = {path: _cast(np.asarray(leaf).T, dtype) for path, leaf in flat.items() if path.endswith("/" + TRANSPOSED)}
    others = {path: leaf for path, leaf in flat.items() if path not in kernels}
    return unflatten({path.removesuffix(TRANSPOSED) + "kernel": leaf for path, leaf in kernels.items()} | others)


def _cast(kernel: Any, dtype: DTypeLike) -> Any:
    """Integers stay as they are: their scales are beside them."""
    return kernel if kernel.dtype == np.int8 else kernel.astype(dtype, copy=False)
