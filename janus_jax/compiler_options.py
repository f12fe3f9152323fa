"""Options of XLA's compilers for each kind of program, chosen by platform and kind of device.

They are passed to `jax.jit` together with the program, so that no environment variable is needed.
"""

from collections.abc import Mapping

from janus_jax.hardware import canonical_kind

Options = Mapping[str, str | bool | int | float]

# The products of `ops.cpu.gemv` need both. With fast math LLVM may compute a sum in several parts, one for each lane of
# a vector; without it the result is right, but slow. LLVM uses the longest vectors of a processor only if it is asked
# to. libtpu accepts both options and ignores them. They were not tried on a GPU.
CPU_DECODING: Options = {"xla_cpu_enable_fast_math": True, "xla_cpu_prefer_vector_width": 512}

# Bytes that must be read in VMEM for each byte that is copied to it or back. The ratio is 1 for weights and 1/2 for the
# keys of a layer. XLA:TPU would otherwise keep these keys in VMEM for a step and write all of them back, although only
# one slot is new (read from programs compiled by libtpu 0.0.46.3; tests/compile_check/test_compiled_decode.py).
TPU_IMAGE_LOOP: Options = {"xla_tpu_msa_inefficient_use_to_copy_ratio": 0.75}

# Collectives of weights and gradients should run while the TensorCore computes. v5p and v6e have SparseCores, which can
# run them. Sources: MaxText's flags for these chips, and `launch.compile_check`.
_OFFLOADED = ("all_gather", "all_reduce", "reduce_scatter")
SPARSE_CORE: Options = {
    **{f"xla_tpu_enable_async_collective_fusion_fuse_{kind}": "false" for kind in _OFFLOADED},
    **{f"xla_tpu_enable_sparse_core_collective_offload_{kind}": "true" for kind in _OFFLOADED},
    **{f"xla_tpu_enable_{kind}_offload_tracing": "true" for kind in _OFFLOADED},
    "xla_tpu_use_tc_device_shape_on_sc": "true",
    "xla_sc_enable_instruction_fusion": "false",
    "xla_sc_disable_megacore_partitioning": "true",
}
# v5e has no SparseCores. There a collective advances inside the matrix products beside it. For all-reduces the compiler
# does that only if it is asked to, and only with one all-reduce at a time.
INSIDE_PRODUCTS: Options = {
    "xla_enable_async_all_reduce": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": "true",
    "xla_jf_crs_combiner_threshold_in_bytes": "1",  # combined all-reduces would wait for the last gradient, then block
}
TRAINING: Mapping[str, Options] = {
    "TPU v5": SPARSE_CORE,
    "TPU v5 lite": INSIDE_PRODUCTS,
    # More of the 128 MiB of VMEM for the operands of products, which then take a quarter less time (compiler estimate).
    "TPU v6 lite": {**SPARSE_CORE, "xla_tpu_scoped_vmem_limit_kib": "98304"},
}

# With an offloaded all-reduce libtpu 0.0.42.1 ends with a failed check (UniDirRingStrategy::NextShard), for VQ-16
# on each slice of v5p and v6e that was tried, with and without a discriminator. No other step is known to do that.
NO_OFFLOADED_ALL_REDUCE: Options = {"xla_tpu_enable_sparse_core_collective_offload_all_reduce": "false"}

# XLA:CPU would otherwise convert the frozen bfloat16 matrices of all layers to float32 before the loop over the layers:
# 7.5 instead of 1.6 GB of temporaries for a row of 704 tokens of Janus-Pro-1B.
CPU_ADAPTERS: Options = {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}

# By default XLA:CPU computes a convolution with YNNPACK, which uses one thread if there are up to 64 channels (jaxlib
# 0.10.2: 3.2 ms for 16 images of 32 x 32 x 32 on two cores, and 1.8 ms with Eigen). Now YNNPACK computes sums and
# matrix products only: its products round less than XLA's own. Image tokenizers of true size, whose convolutions have
# more channels, are not trained on CPUs.
CPU_SMALL_CONVOLUTIONS: Options = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE,LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
}

# XLA:CPU would otherwise keep all temporaries of a program in one buffer, allocated anew in each run. The heap of a
# thread (glibc) holds at most 64 MiB, so the kernel would map and clear a larger buffer in every step. Buffers of 48
# MiB come from the heap again and again (see `launch.cli.host_memory`). The arithmetic stays the same. Not for a
# program with larger arrays: XLA would log a line for each of them. A program with several buffers cannot be serialised
# (jaxlib 0.10.2), so JAX's persistent cache does not keep it: it warns, and each run compiles the step again.
CPU_BUFFER_BYTES = 48 * 2**20
CPU_SMALL_BUFFERS: Options = {"xla_multiheap_size_constraint_per_heap": CPU_BUFFER_BYTES}

# XLA then tries fewer variants of a program, so that it compiles sooner and may run more slowly. Both are from -1 to 1.
LEAST_EFFORT: Options = {"exec_time_optimization_effort": -1.0, "memory_fitting_effort": -1.0}

CPU_TRAINING: Mapping[str, Options] = {
    "tokenizer_step": CPU_SMALL_CONVOLUTIONS,
    "small_tokenizer_step": {**CPU_SMALL_CONVOLUTIONS, **CPU_SMALL_BUFFERS},
    "adapter_step": CPU_ADAPTERS,
}

TOKENIZER_STEPS = ("tokenizer_step", "small_tokenizer_step")
TRAINING_PROGRAMS = ("train_step", *TOKENIZER_STEPS, "adapter_step")
PROGRAMS = (*TRAINING_PROGRAMS, "decode", "image_loop")


def compiler_options(
    program: str, *, platform: str | None = None, device_kind: str = ""
) -> dict[str, str | bool | int | float]:
    """Options for `jax.jit(..., compiler_options=...)`.

    Args:
        program: one of `PROGRAMS`: the training step; that of an image tokenizer, of one without arrays over
            `CPU_BUFFER_BYTES`, or of adapters; a program of decoding; or the loop over image codes.
        platform: for decoding, "cpu", "gpu" or "tpu". None: not known yet, as when a function is decorated.
        device_kind: for the training steps, `jax.Device.device_kind`.
    """
    if program not in PROGRAMS:
        raise ValueError(f"program={program!r} is not one of {PROGRAMS}")
    if program in TRAINING_PROGRAMS:
        options = dict(TRAINING.get(canonical_kind(device_kind), {}))
        if program in TOKENIZER_STEPS and NO_OFFLOADED_ALL_REDUCE.keys() <= options.keys():
            options |= NO_OFFLOADED_ALL_REDUCE
        if device_kind == "cpu":
            options |= CPU_TRAINING.get(program, {})
        return options
    if program == "image_loop" and platform == "tpu":
        return {**CPU_DECODING, **TPU_IMAGE_LOOP}
    return dict(CPU_DECODING)
