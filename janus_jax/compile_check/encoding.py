"""The encoding of images into VQ codes, which a step without stored codes does before everything else.

Its convolutions in float32 take longer to compile than all the rest. So the step is compiled with stored codes, and the
encoding of the images of a micro-batch as a program of its own, with little effort. Nothing else of a step overlaps
with it, because all tokens wait for the codes: the seconds of both add up.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from janus_jax.batches import PackedBatch
from janus_jax.compile_check.program import Program, compile_program
from janus_jax.compiler_options import LEAST_EFFORT, Options
from janus_jax.models.config import CodeModelConfig
from janus_jax.models.execution import Execution
from janus_jax.models.params import Params, bind, build
from janus_jax.ops.pixels import normalize
from janus_jax.sharding import BATCH_SPEC
from janus_jax.training.fsdp import over_rows, row_specs, whole_params
from janus_jax.training.plan import Plan, tasks


def encodes(config: ConfigDict, batch: Any) -> bool:
    """Whether a step computes VQ codes of images that it learns to generate."""
    return isinstance(batch, PackedBatch) and "generate" in tasks(config) and batch.gen_pixels is not None


def with_stored_codes(batch: Any) -> PackedBatch:
    """The batch of the same rows whose codes are stored."""
    return batch._replace(gen_pixels=None)


def compile_encoding(plan: Plan, batch: Any, options: Options) -> tuple[Program | None, str]:
    """`compile_program` of the encoding of the images of one micro-batch."""
    assert isinstance(plan.architecture, CodeModelConfig) and plan.architecture.vq is not None
    frozen, shardings = {"vq": plan.state.frozen["vq"]}, {"vq": plan.shardings.frozen["vq"]}
    tokenizer = build(plan.architecture.vq, Execution(dtype=jnp.float32))
    rows = batch.gen_pixels.shape[0] // plan.micro_batches
    pixels = jax.ShapeDtypeStruct((rows, *batch.gen_pixels.shape[1:]), batch.gen_pixels.dtype, sharding=plan.rows)

    def device(frozen: Params, pixels: jax.Array) -> jax.Array:
        params = whole_params({}, frozen, plan.execution.weights)
        images = normalize(pixels.reshape(-1, *pixels.shape[2:]), jnp.float32)
        return bind(tokenizer, params["vq"])(images, method="encode")

    program = over_rows(device, plan.mesh, (row_specs(shardings), BATCH_SPEC), out_specs=BATCH_SPEC)
    encode = jax.jit(program, in_shardings=(shardings, NamedSharding(plan.mesh, BATCH_SPEC)))
    return compile_program(encode.lower(frozen, pixels), list(plan.mesh.devices.flat), {**options, **LEAST_EFFORT})
