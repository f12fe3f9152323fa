"""Drawing on one topology: compiles the loop of image codes and says what a step of it needs and moves."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp

from janus_jax.compile_check.hlo import HBM, Computation, Module, collective_kind, parse
from janus_jax.compile_check.program import Program, compile_program, local_bytes, needed_bytes, topology_devices
from janus_jax.compile_check.timeline import Pricing, Timeline
from janus_jax.errors import UserError
from janus_jax.inference.aot import ImageLoop, abstract_image_loop
from janus_jax.models.config import JanusConfig, ModelConfig
from janus_jax.models.params import flatten
from janus_jax.sharding import make_mesh

PROMPT_TOKENS = 64  # padding included
SCALARS = 8  # bytes of the guidance and of the number of codes, arguments of the loop


@dataclasses.dataclass(frozen=True)
class Step:
    """One code of every image, per chip."""

    floor_bytes: int  # the weights that it uses, and the keys and values that the average step finds: each once
    hbm_bytes: float  # what the program moves
    low: float  # seconds, see `timeline`
    predicted: float  # not less than HBM takes for `hbm_bytes`
    high: float
    floor: float  # seconds for `floor_bytes`
    around: float  # seconds before the first and after the last step of a call
    moved_weights: list[str]  # collectives with weights, which should stay where they are
    copied_caches: list[str]  # copies of a layer's keys or values, in the step

    @property
    def share_of_floor(self) -> float:
        return self.floor / self.predicted


@dataclasses.dataclass(frozen=True)
class DecodeCheck:
    name: str  # of the model
    topology: str
    chips: int
    mesh: dict[str, int]
    dtype: str
    quantization: str | None
    images: int
    weight_bytes: int  # per chip, of the whole model
    cache_bytes: int  # per chip, of all images and their prompt
    needed_bytes: int  # per chip, with the weights that drawing does not read
    fits: bool
    reason: str  # why it does not fit
    step: Step | None  # None when the compiler gives no program
    program: Program | None


def check_decoding(
    name: str,
    config: ModelConfig,
    topology: str,
    mesh: Mapping[str, int],
    *,
    images: int,
    dtype: str,
    quantization: str | None,
    options: Mapping[str, str],
) -> DecodeCheck:
    """Compiles the loop that draws `images` images of one prompt with guidance.

    Args:
        mesh: sizes by axis.

    Raises:
        UserError: a model without image codes; a topology or mesh that cannot work.
    """
    if not isinstance(config, JanusConfig):
        raise UserError(f"--decode: {name} draws no image codes, expected a Janus or Janus-Pro model")
    devices = topology_devices(topology)
    loop = abstract_image_loop(
        config,
        make_mesh(dict(mesh), devices),
        images=images,
        prompt_length=PROMPT_TOKENS,
        dtype=jnp.dtype(dtype),
        quantization=quantization,
    )
    weights, caches = local_bytes(loop.params), local_bytes((loop.state.cache, loop.state.prefix))
    program, reason = compile_program(loop.lower(), list(loop.mesh.devices.flat), options)
    needed, step = needed_bytes(reason), None
    if program is not None:
        # An argument that the loop does not read, as SigLIP, is not one of the program.
        read = program.memory.arguments - local_bytes((loop.state, loop.keys)) - SCALARS
        needed = program.memory.peak + weights - read
        average = local_bytes(loop.state.prefix) + local_bytes(loop.state.cache) // 2
        step = judge(program, loop, read + average)
    return DecodeCheck(
        name=name,
        topology=topology,
        chips=len(devices),
        mesh=dict(loop.mesh.shape),
        dtype=dtype,
        quantization=quantization,
        images=images,
        weight_bytes=weights,
        cache_bytes=caches,
        needed_bytes=needed,
        fits=program is not None and needed <= program.machine.hbm_bytes,
        reason=reason,
        step=step,
        program=program,
    )


def judge(program: Program, loop: ImageLoop, floor_bytes: int) -> Step:
    """What the compiled `loop` does in a step. Raises ValueError for a program without one."""
    module = parse(program.hlo)
    body, step = step_of(module)
    timeline = Timeline(step, program.machine)
    low, high = timeline.run(Pricing.LOW)[0], timeline.run(Pricing.HIGH)[0]
    mid, sums = timeline.run(Pricing.MID)
    hbm_bytes = sums["hbm"] + sums["hbm copies"]
    once = Timeline(module, program.machine).run(Pricing.MID)[0] - mid
    llm = flatten(loop.params["llm"]).items()
    kernels = [leaf for path, leaf in llm if "layers_0/" in path and len(leaf.shape) == 2]
    return Step(
        floor_bytes=floor_bytes,
        hbm_bytes=hbm_bytes,
        low=low,
        predicted=max(mid, hbm_bytes / program.machine.hbm_bandwidth),
        high=high,
        floor=floor_bytes / program.machine.hbm_bandwidth,
        around=once,
        moved_weights=list(moved_weights(module, min(map(local_bytes, kernels)))),
        copied_caches=list(copied_caches(body, local_bytes(loop.state.cache.k[0]))),
    )


def step_of(module: Module) -> tuple[Computation, Module]:
    """The body of the only loop of a program, also as the entry of a module. Raises ValueError for another number."""
    loops = [each for each in module.computations[module.entry].values() if each.op == "while"]
    if len(loops) != 1:
        raise ValueError(f"{len(loops)} loops, expected the one over the codes")
    name = module.bodies(loops[0])[0]
    return module.computations[name], dataclasses.replace(module, entry=name)


def moved_weights(module: Module, least_bytes: int) -> Iterator[str]:
    """Names of the collectives of `least_bytes` or more, but sums: a step's activations are smaller than a kernel."""
    for computation in module.computations.values():
        for instruction in computation.values():
            kind = collective_kind(instruction.op)
            if kind in (None, "all-reduce") or instruction.op.endswith("-done"):
                continue
            if max(shape.bytes for shape in instruction.shapes) >= least_bytes:
                yield instruction.name


def copied_caches(body: Computation, leaf_bytes: int) -> Iterator[str]:
    """Names of the copies to HBM of exactly as many bytes as the keys or values of a layer.

    What goes to VMEM is read, which a step has to do.
    """
    for instruction in body.values():
        target = instruction.shapes[0] if instruction.shapes else None
        if instruction.op in ("copy", "copy-start") and target and (target.space, target.bytes) == (HBM, leaf_bytes):
            yield instruction.name


def as_dict(check: DecodeCheck) -> dict[str, Any]:
    """All numbers, JSON-serialisable."""
    fields = {field.name: getattr(check, field.name) for field in dataclasses.fields(check)}
    program = fields.pop("program")
    if check.step is not None:
        fields["step"] = dataclasses.asdict(check.step) | {"share_of_floor": check.step.share_of_floor}
    if program is not None:
        fields["memory"] = dataclasses.asdict(program.memory)
        fields["versions"] = {"jax": program.jax_version, "libtpu": program.compiler_version}
    return fields


def format_report(check: DecodeCheck) -> str:
    """Several lines."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in check.mesh.items())
    kind = check.dtype if check.quantization is None else f"{check.quantization} weights, {check.dtype}"
    lines = [
        f"{check.name} ({kind}) on {check.topology}: {check.chips} chips ({mesh}), "
        f"{check.images} images of one prompt with guidance",
        "",
        _row("weights per chip, GB", check.weight_bytes / 1e9),
        _row("key-value caches per chip, GB", check.cache_bytes / 1e9),
        _row("needed per chip, GB", check.needed_bytes / 1e9),
        "fits" if check.fits else f"DOES NOT FIT: {check.reason or 'more than a chip has'}",
    ]
    step = check.step
    if step is None:
        return "\n".join(lines)
    milliseconds = [1e3 * seconds for seconds in (step.low, step.predicted, step.high)]
    rows = [
        _row("a step, ms: lowest, predicted, highest", *milliseconds),
        _row("HBM floor, ms: weights, average cache", 1e3 * step.floor),
        _row("share of the floor, %", 100 * step.share_of_floor),
        _row("HBM traffic of a step, GB", step.hbm_bytes / 1e9),
        _row("once per call, ms", 1e3 * step.around),
        f"collectives with weights: {', '.join(step.moved_weights) or 'none'}",
        f"copies of a cache in the step: {', '.join(step.copied_caches) or 'none'}",
    ]
    return "\n".join([*lines, "", *rows, "", "predicted from the compiled program, not measured"])


def _row(name: str, *values: float) -> str:
    return f"{name:<40}" + "".join(f"{value:>10,.3f}" for value in values)
