"""Options of the TPU compiler for the training step. They go with the step, so no environment variable is needed.

Collectives of weights and gradients should run while the TensorCore computes. v5p and v6e have SparseCores for that.
v5e has none: there a collective advances inside of the products beside it, which the compiler does for all-reduces
only if asked, and only one by one. Sources: MaxText's flags for these chips, and `launch.compile_check`.
"""

from collections.abc import Mapping

from janus_jax.training.device_kinds import canonical_kind

_OFFLOADED = ("all_gather", "all_reduce", "reduce_scatter")
SPARSE_CORE: Mapping[str, str] = {
    **{f"xla_tpu_enable_async_collective_fusion_fuse_{kind}": "false" for kind in _OFFLOADED},
    **{f"xla_tpu_enable_sparse_core_collective_offload_{kind}": "true" for kind in _OFFLOADED},
    **{f"xla_tpu_enable_{kind}_offload_tracing": "true" for kind in _OFFLOADED},
    "xla_tpu_use_tc_device_shape_on_sc": "true",
    "xla_sc_enable_instruction_fusion": "false",
    "xla_sc_disable_megacore_partitioning": "true",
}

INSIDE_PRODUCTS: Mapping[str, str] = {
    "xla_enable_async_all_reduce": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": "true",
    "xla_jf_crs_combiner_threshold_in_bytes": "1",  # combined all-reduces wait for the last gradient, then block
}

_BY_KIND: Mapping[str, Mapping[str, str]] = {
    "TPU v5": SPARSE_CORE,
    "TPU v5 lite": INSIDE_PRODUCTS,
    # Products whose operands fit into more of the 128 MiB of VMEM: a quarter less time for them.
    "TPU v6 lite": {**SPARSE_CORE, "xla_tpu_scoped_vmem_limit_kib": "98304"},
}


def compiler_options(device_kind: str) -> dict[str, str] | None:
    """Options for a kind of device (`jax.Device.device_kind`); None for what is not listed."""
    kind = canonical_kind(device_kind)
    return dict(_BY_KIND[kind]) if kind in _BY_KIND else None
