"""Compiles the training step of one config for one topology, and says how much memory and time it needs."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from janus_jax.batches import ImageBatch
from janus_jax.compile_check.estimate import Estimate, estimate
from janus_jax.compile_check.program import Program, compile_program, needed_bytes, topology_devices
from janus_jax.compile_check.progress import compiling
from janus_jax.compiler_options import Options
from janus_jax.models.config import FamilyConfig, ModelConfig
from janus_jax.sharding import local_bytes
from janus_jax.training.plan import Plan, abstract_batch, make_plan, model_flops, tasks


@dataclasses.dataclass(frozen=True)
class Check:
    """The result of one compilation."""

    name: str  # name of the config
    topology: str
    chips: int
    mesh: dict[str, int]
    rows: int  # rows of a step
    micro_batches: int  # number of parts in which a device computes its rows
    tokens: int  # tokens of a step; 0 for image tokenizers
    images_at_most: int  # images of a step, understood and generated, if the rows are full of them and hold no text
    steps: int  # number of steps of the stage
    remat: str
    state_bytes: dict[str, int]  # bytes per device that lie in memory for the whole step, by kind
    fits: bool
    needed_bytes: int  # most bytes per device at one time; 0 if the compiler does not say
    reason: str  # why it does not fit
    model_flops: float | None  # operations of a step that the model needs, on all devices
    estimate: Estimate | None  # None if the compiler gives no program
    program: Program | None

    @property
    def temporary_bytes(self) -> int:
        """Bytes per device that gradients, activations and others take when most is in use."""
        return self.needed_bytes - sum(self.state_bytes.values())

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation of the predicted step."""
        if self.estimate is None or self.model_flops is None:
            return None
        return self.model_flops / self.chips / self.estimate.peak_flops / self.estimate.predicted


def check(config: ConfigDict, topology: str, slices: int, options: Options) -> Check:
    """Compiles the step of `config` for a topology. A program that does not fit into memory is a result, no error.

    Raises:
        UserError: the config or the topology cannot work.
    """
    return check_plan(config, make_plan(config, topology_devices(topology, slices)), topology, options)


def check_plan(config: ConfigDict, plan: Plan, topology: str, options: Options) -> Check:
    """`check` with a plan of `config` for the devices of the topology."""
    batch = abstract_batch(config, plan)
    mesh = "x".join(str(size) for size in plan.mesh.shape.values())
    rows = f"{config.train.batch_size} rows in {plan.micro_batches} micro-batches"
    what = f"the training step of {config.name}, {rows}, remat {plan.execution.remat}, mesh {mesh}"
    with compiling(f"{what}, for {topology}", "; with more config.train.micro_batches there is less to compile"):
        lowered = plan.make_step().lower(plan.state, batch)
        program, reason = compile_program(lowered, list(plan.mesh.devices.flat), options)
    without = too_large(config, plan, topology, reason)
    if program is None:
        return without
    # Parameters that the step does not read are no arguments of its program, but lie in memory as well.
    unread = sum(without.state_bytes.values()) - program.memory.arguments
    needed = program.memory.peak + max(0, unread)
    return dataclasses.replace(
        without,
        fits=needed <= program.machine.hbm_bytes,
        needed_bytes=needed,
        estimate=estimate(program),
        program=program,
    )


def too_large(config: ConfigDict, plan: Plan, topology: str, reason: str) -> Check:
    """The result for a step that does not fit into memory, and so has no program."""
    batch = abstract_batch(config, plan)
    return Check(
        name=config.name,
        topology=topology,
        chips=plan.mesh.devices.size,
        mesh=dict(plan.mesh.shape),
        rows=config.train.batch_size,
        micro_batches=plan.micro_batches,
        tokens=0 if isinstance(batch, ImageBatch) else config.train.batch_size * config.data.row_length,
        images_at_most=config.train.batch_size * images_of_a_row(config, plan.architecture),
        steps=config.train.num_steps,
        remat=plan.execution.remat,
        state_bytes=_state_bytes(plan, batch),
        fits=False,
        needed_bytes=needed_bytes(reason),
        reason=reason,
        model_flops=model_flops(config, plan),
        estimate=None,
        program=None,
    )


def _state_bytes(plan: Plan, batch: Any) -> dict[str, int]:
    state = plan.state
    return {
        "trained parameters": local_bytes(state.trainable),
        "frozen parameters": local_bytes(state.frozen),
        "optimizer": local_bytes(state.opt_state),
        "moving average": local_bytes(state.ema),
        "discriminator": local_bytes(state.adversary),
        "networks of the loss": local_bytes(state.loss_networks),
        "batch": local_bytes(batch),
    }


def images_of_a_row(config: ConfigDict, model: ModelConfig) -> int:
    """Largest number of images that fit into a row. The data decide how much text there is, and so the real number.

    Kinds of images with fewer tokens are counted first. An image tokenizer has one image in a row.
    """
    data = config.data
    if not isinstance(model, FamilyConfig):
        return 1
    # Tokens of an image with those that it needs around it: begin and end for understanding, begin for generation.
    kinds = {
        "understand": (model.understanding.num_tokens + 2, data.und_slots),
        "generate": (model.image_tokens + 1, data.gen_slots),
    }
    images, room = 0, data.row_length
    for tokens, slots in sorted(kinds[task] for task in kinds.keys() & set(tasks(config))):
        held = min(slots, room // tokens)
        images, room = images + held, room - held * tokens
    return images
