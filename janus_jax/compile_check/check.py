"""One config on one topology: compiles its training step and says what it needs."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from janus_jax.batch import ImageBatch
from janus_jax.compile_check.estimate import Estimate, estimate
from janus_jax.compile_check.program import Program, compile_program, local_bytes, needed_bytes, topology_devices
from janus_jax.models.config import FamilyConfig
from janus_jax.training.plan import Plan, abstract_batch, make_plan, model_flops, tasks


@dataclasses.dataclass(frozen=True)
class Check:
    name: str  # of the config
    topology: str
    chips: int
    mesh: dict[str, int]
    rows: int  # per step
    tokens: int  # per step; 0 for image tokenizers
    image_slots: int  # per step, understanding and generation
    steps: int  # of the stage
    remat: str
    state_bytes: dict[str, int]  # per device, by kind
    fits: bool
    needed_bytes: int  # per device; 0 when the compiler does not say
    reason: str  # why it does not fit
    model_flops: float | None  # per step, all devices
    estimate: Estimate | None  # None when it does not fit
    program: Program | None

    @property
    def mfu(self) -> float | None:
        """Model flops utilisation of the predicted step."""
        if self.estimate is None or self.model_flops is None:
            return None
        return self.model_flops / self.chips / self.estimate.peak_flops / self.estimate.predicted


def check(config: ConfigDict, topology: str, slices: int, options: Mapping[str, str]) -> Check:
    """Compiles the step of `config` for a topology.

    Raises UserError for a config or topology that cannot work; a program that is too large is a result.
    """
    devices = topology_devices(topology, slices)
    plan = make_plan(config, devices)
    batch = abstract_batch(config, plan)
    lowered = plan.make_step().lower(plan.state, batch)
    program, reason = compile_program(lowered, list(plan.mesh.devices.flat), options)
    result = estimate(program) if program is not None else None
    return Check(
        name=config.name,
        topology=topology,
        chips=len(devices),
        mesh=dict(plan.mesh.shape),
        rows=config.train.batch_size,
        tokens=0 if isinstance(batch, ImageBatch) else config.train.batch_size * config.data.row_length,
        image_slots=_image_slots(config, plan),
        steps=config.train.num_steps,
        remat=config.remat,
        state_bytes=_state_bytes(plan, batch),
        fits=program is not None and program.memory.peak <= program.machine.hbm_bytes,
        needed_bytes=program.memory.peak if program is not None else needed_bytes(reason),
        reason=reason,
        model_flops=model_flops(config, plan),
        estimate=result,
        program=program,
    )


def _state_bytes(plan: Plan, batch: Any) -> dict[str, int]:
    state = plan.state
    trainable = local_bytes(state.trainable)
    return {
        "trained parameters": trainable,
        "frozen parameters": local_bytes(state.frozen),
        "optimizer": local_bytes(state.opt_state),
        "gradients": trainable,
        "batch": local_bytes(batch),
    }


def _image_slots(config: ConfigDict, plan: Plan) -> int:
    if not isinstance(plan.architecture, FamilyConfig):
        return config.train.batch_size
    present = tasks(config)
    per_row = config.data.und_slots * ("understand" in present) + config.data.gen_slots * ("generate" in present)
    return config.train.batch_size * per_row
