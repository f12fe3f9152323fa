"""How a model is run: numeric types, layouts and backends. None of it changes the parameters or the function."""

import dataclasses
from typing import Any, Protocol

import jax.numpy as jnp
from jax.typing import DTypeLike

ROWS_FIRST, SLOTS_FIRST = "rows_first", "slots_first"


class WeightGatherer(Protocol):
    """Turns the local shards of a subtree of parameters into whole arrays (`sharding.GatheredWeights`)."""

    def __call__(self, path: tuple[str, ...], shards: dict[str, Any]) -> dict[str, Any]: ...

    def outside_stacks(self, shards: dict[str, Any]) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
    """Choices that affect speed, memory and rounding, but neither the parameters nor the function."""

    dtype: DTypeLike = jnp.float32  # compute dtype; norms, softmax, RoPE angles and losses stay float32
    # Whether layers are scanned over stacked parameters. False: a loop in Python over the parameters of
    # `models.scan_layers.unstack_layers`.
    scan_layers: bool = True
    # Whether a scan reads the weights and the cache of a layer where they lie in their stacks, and embeddings in their
    # table (`ops.layer_view`). For decoding on a CPU; this can make neither parameters nor gradients.
    scan_in_place: bool = False
    # Whether the scan is unrolled. On a CPU a scan would copy the weights that it slices.
    unroll_scan: bool = False
    remat: str = "none"  # what the backward pass recomputes: a key of `models.scan_layers.REMAT_POLICIES`
    attention: str = "xla"  # backend for packed rows: a key of `ops.attention.BACKENDS`
    fusion_barriers: bool = False  # whether to keep XLA:TPU from slowing products down (`ops.fusion_barrier`)
    weights: WeightGatherer | None = None  # how a device gets whole weights from shards; None: it holds whole weights
    # While decoding:
    cache_dtype: DTypeLike | None = None  # dtype of the KV cache; None: the compute dtype
    # Order of the axes of the KV cache in the loop over image codes: ROWS_FIRST is [B, K, S, H], as the model takes it;
    # SLOTS_FIRST is [S, K, B, H], in which one step writes one block for all rows.
    cache_layout: str = SLOTS_FIRST
    # How products with the KV cache are computed: one of `ops.decode_attention.MATMUL_BACKENDS`.
    matmul_backend: str = "xla"


def decoding_execution(dtype: DTypeLike, platform: str, on_mesh: bool) -> Execution:
    """How decoding runs a model whose layers are unstacked.

    Args:
        platform: "cpu", "gpu" or "tpu", as `jax.default_backend()` names it.
        on_mesh: whether the parameters and caches are sharded over a mesh.
    """
    if platform == "cpu" and not on_mesh:
        # XLA:CPU would convert a whole bfloat16 cache to float32 and back in every step, and copy a cache whose slots
        # come first before and after each call (jaxlib 0.10.2). `ops.cpu.gemv` runs on one device only.
        return Execution(
            dtype=dtype,
            scan_layers=False,
            scan_in_place=True,
            cache_dtype=jnp.float32,
            cache_layout=ROWS_FIRST,
            matmul_backend="gemv",
        )
    return Execution(dtype=dtype, scan_layers=False)
