"""Compiles the training step of one config for one topology, and says how much memory and time it needs."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from janus_jax.batches import ImageBatch
from janus_jax.compile_check.encoding import compile_encoding, encodes, with_stored_codes
from janus_jax.compile_check.estimate import Estimate, estimate
from janus_jax.compile_check.program import Program, compile_program, needed_bytes, topology_devices
from janus_jax.compile_check.progress import compiling, tell
from janus_jax.compiler_options import Options
from janus_jax.models.config import FamilyConfig, ModelConfig
from janus_jax.sharding import local_bytes
from janus_jax.training.auto_remat import plan_with_remat
from janus_jax.training.plan import Plan, abstract_batch, model_flops, tasks


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


def check(config: ConfigDict, topology: str, slices: int, options: Options, whole: bool = False) -> Check:
    """Compiles the step of `config` for a topology. A program that does not fit into memory is a result, no error.

    Args:
        whole: Whether to compile a step that encodes images as one program. Otherwise `encoding` prices that part.

    Raises:
        UserError: the config or the topology cannot work.
    """
    plan, remat = plan_with_remat(config, topology_devices(topology, slices), compare=True)
    if remat is not None:
        tell(remat.describe())
    return check_plan(config, plan, topology, options, whole)


def check_plan(config: ConfigDict, plan: Plan, topology: str, options: Options, whole: bool = False) -> Check:
    """`check` with a plan of `config` for the devices of the topology."""
    batch, devices = abstract_batch(config, plan), list(plan.mesh.devices.flat)
    mesh = "x".join(str(size) for size in plan.mesh.shape.values())
    rows = f"{config.train.batch_size} rows in {plan.micro_batches} micro-batches"
    what = f"{config.name}, {rows}, remat {plan.execution.remat}, mesh {mesh}, for {topology}"
    apart = not whole and encodes(config, batch)
    advice = "; with more config.train.micro_batches there is less to compile"
    with compiling(f"the training step of {what}", advice):
        lowered = plan.make_step().lower(plan.state, with_stored_codes(batch) if apart else batch)
        step, reason = compile_program(lowered, devices, options)
    result = too_large(config, plan, topology, reason)
    if step is None:
        return result
    costs, needed = estimate(step), _needed_bytes(step, result)
    if apart:
        with compiling(f"the encoding of the images of a micro-batch of {what}"):
            encoding, reason = compile_encoding(plan, batch, options)
        if encoding is None:
            return dataclasses.replace(result, reason=reason, needed_bytes=needed_bytes(reason))
        costs = costs.followed_by(estimate(encoding), plan.micro_batches)
        needed = _needed_together(plan, batch, step, encoding, result)
    fits = needed <= step.machine.hbm_bytes
    return dataclasses.replace(result, fits=fits, needed_bytes=needed, estimate=costs, program=step)


def _needed_bytes(program: Program, result: Check) -> int:
    """Most bytes at one time, with all that lies in memory but is no argument of the program that does not read it."""
    return program.memory.peak + max(0, sum(result.state_bytes.values()) - program.memory.arguments)


def _needed_together(plan: Plan, batch: Any, step: Program, encoding: Program, result: Check) -> int:
    """`_needed_bytes` of a step that encodes its images, from the step with stored codes and the encoding.

    A loop over micro-batches encodes the images of one beside the sum of the gradients of those before it. It also
    copies the weights of the encoding into fast memory, as far as they fit, and keeps them there beside everything
    else. The compiler's peak counts them (libtpu 0.0.42).
    """
    pixels = local_bytes(batch.gen_pixels)  # no argument of the step with stored codes
    rest = max(pixels, sum(result.state_bytes.values()) - step.memory.arguments)
    kept = gradients = 0
    if plan.micro_batches > 1:
        kept = max(0, encoding.memory.arguments - pixels // plan.micro_batches)
        gradients = local_bytes(plan.state.trainable)
    return max(step.memory.peak + rest + kept, _needed_bytes(encoding, result) + gradients)


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
