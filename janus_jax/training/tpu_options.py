"""Options of the TPU compiler for the training step. They go with the step, so no environment variable is needed.

Collectives of weights and gradients run on the SparseCores of v5p and v6e while the TensorCore computes; by default
they are synchronous there. Sources: MaxText's flags for these chips, and `launch.compile_check`.
"""

from collections.abc import Mapping

_OFFLOADED = ("all_gather", "all_reduce", "reduce_scatter")
SPARSE_CORE: Mapping[str, str] = {
    **{f"xla_tpu_enable_async_collective_fusion_fuse_{kind}": "false" for kind in _OFFLOADED},
    **{f"xla_tpu_enable_sparse_core_collective_offload_{kind}": "true" for kind in _OFFLOADED},
    **{f"xla_tpu_enable_{kind}_offload_tracing": "true" for kind in _OFFLOADED},
    "xla_tpu_use_tc_device_shape_on_sc": "true",
    "xla_sc_enable_instruction_fusion": "false",
    "xla_sc_disable_megacore_partitioning": "true",
}

ASYNC_ALL_REDUCE: Mapping[str, str] = {
    "xla_enable_async_all_reduce": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": "true",
}

_BY_KIND: Mapping[str, Mapping[str, str]] = {
    "TPU v5": SPARSE_CORE,
    "TPU v5 lite": ASYNC_ALL_REDUCE,
    "TPU v6 lite": SPARSE_CORE,
}


def compiler_options(device_kind: str) -> dict[str, str] | None:
    """Options for a kind of device (`jax.Device.device_kind`); None for what is not listed."""
    return dict(_BY_KIND[device_kind]) if device_kind in _BY_KIND else None
