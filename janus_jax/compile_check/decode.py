"""Compiles the loop that generates image codes for one topology, and says what one step of it costs.

With a window of several codes a step is a pass over the codes of the window (`inference.code_windows`). How many passes
an image takes depends on the model and its prompts, so that the time of an image follows from an assumption.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp

from janus_jax.compile_check.hlo import HBM, Computation, Module, collective_kind, parse
from janus_jax.compile_check.program import Program, compile_program, needed_bytes, topology_devices
from janus_jax.compile_check.progress import compiling
from janus_jax.compile_check.timeline import Pricing, Timeline
from janus_jax.compiler_options import Options
from janus_jax.errors import UserError
from janus_jax.inference.aot import ImageLoop, abstract_image_loop
from janus_jax.inference.code_windows import automatic_window
from janus_jax.models.config import JanusConfig, ModelConfig
from janus_jax.models.params import flatten
from janus_jax.sharding import local_bytes, make_mesh, row_shares

PROMPT_TOKENS = 64  # length of the padded prompt
SCALARS = 8  # bytes of two arguments of the loop, the guidance weight and the number of codes


@dataclasses.dataclass(frozen=True)
class Step:
    """Costs of one step on one chip; without a window it makes one code of every image."""

    floor_bytes: int  # bytes that a step must read: its weights, and the keys and values of the average step, once each
    hbm_bytes: float  # bytes that the program moves
    low: float  # seconds; `timeline` explains the three prices
    predicted: float  # at least the time that HBM takes for `hbm_bytes`
    high: float
    floor: float  # seconds that HBM takes for `floor_bytes`
    around: float  # seconds before the first and after the last step of a call
    moved_weights: list[str]  # collectives that move weights between chips; there should be none
    copied_caches: list[str]  # copies of the keys or values of a layer in the step; there should be none

    @property
    def share_of_floor(self) -> float:
        return self.floor / self.predicted


@dataclasses.dataclass(frozen=True)
class DecodeCheck:
    """The result of one compilation."""

    name: str  # name of the model
    topology: str
    chips: int
    mesh: dict[str, int]
    dtype: str
    quantization: str | None
    images: int
    num_codes: int  # of an image
    window: int  # codes of an image that a step reads
    codes_per_pass: float  # codes of each image that a step makes, on average: 1, or an assumption
    weight_bytes: int  # weights of the whole model, per chip
    cache_bytes: int  # KV caches of all images and of their prompt, per chip
    needed_bytes: int  # bytes per chip, including the weights that the loop does not read
    fits: bool
    reason: str  # why it does not fit
    step: Step | None  # None if the compiler gives no program
    program: Program | None

    @property
    def image_seconds(self) -> float | None:
        """Predicted seconds of all steps of the images."""
        return None if self.step is None else self.step.predicted * self.num_codes / self.codes_per_pass


def check_decoding(
    name: str,
    config: ModelConfig,
    topology: str,
    mesh: Mapping[str, int],
    *,
    images: int,
    window: int | str = 1,
    codes_per_pass: float = 1.0,
    dtype: str,
    quantization: str | None,
    options: Options,
) -> DecodeCheck:
    """Compiles the loop that generates `images` images of one prompt with guidance.

    Args:
        mesh: sizes by axis.
        window: codes of an image that a step reads, or `code_windows.AUTO`.
        codes_per_pass: codes of each image that a step is assumed to make, at most `window`.

    Raises:
        UserError: the model has no image codes; the topology or the mesh cannot work; more codes per pass than a window
            has.
    """
    config = require_codes(name, config)
    devices = topology_devices(topology)
    divided = make_mesh(dict(mesh), devices)
    if isinstance(window, str):
        window = automatic_window(config, images, "tpu", row_shares(divided))
    if codes_per_pass > window:
        raise UserError(f"--codes_per_pass={codes_per_pass:g}: expected at most --window={window}")
    loop = abstract_image_loop(
        config,
        divided,
        images=images,
        window=window,
        prompt_length=PROMPT_TOKENS,
        dtype=jnp.dtype(dtype),
        quantization=quantization,
    )
    weights, caches = local_bytes(loop.params), local_bytes((loop.state.cache, loop.state.prefix))
    with compiling(f"the loop over image codes of {name}, {images} images, {quantization or dtype}, for {topology}"):
        program, reason = compile_program(loop.lower(), list(loop.mesh.devices.flat), options)
    needed, step = needed_bytes(reason), None
    if program is not None:
        # Parameters that the loop does not read, such as those of SigLIP, are no arguments of the compiled program.
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
        num_codes=config.image_tokens,
        window=window,
        codes_per_pass=codes_per_pass,
        weight_bytes=weights,
        cache_bytes=caches,
        needed_bytes=needed,
        fits=program is not None and needed <= program.machine.hbm_bytes,
        reason=reason,
        step=step,
        program=program,
    )


def require_codes(name: str, config: ModelConfig) -> JanusConfig:
    """Raises UserError for a model that generates no image codes."""
    if not isinstance(config, JanusConfig):
        raise UserError(f"--decode: {name} generates no image codes, expected a Janus or Janus-Pro model")
    return config


def judge(program: Program, loop: ImageLoop, floor_bytes: int) -> Step:
    """Costs of a step of the compiled loop. Raises ValueError if the program has no single loop."""
    module = parse(program.hlo)
    body, step = step_of(module)
    timeline = Timeline(step, program.machine)
    low, high = timeline.run(Pricing.LOW)[0], timeline.run(Pricing.HIGH)[0]
    mid, sums = timeline.run(Pricing.MID)
    hbm_bytes = sums["hbm"] + sums["hbm copies"]
    once = Timeline(module, program.machine).run(Pricing.MID)[0] - mid
    llm = flatten(loop.params["llm"]).items()
    matrices = [leaf for path, leaf in llm if "layers_0/" in path and len(leaf.shape) == 2]
    return Step(
        floor_bytes=floor_bytes,
        hbm_bytes=hbm_bytes,
        low=low,
        predicted=max(mid, hbm_bytes / program.machine.hbm_bandwidth),
        high=high,
        floor=floor_bytes / program.machine.hbm_bandwidth,
        around=once,
        moved_weights=list(moved_weights(module, min(map(local_bytes, matrices)))),
        copied_caches=list(copied_caches(body, local_bytes(loop.state.cache.k[0]))),
    )


def step_of(module: Module) -> tuple[Computation, Module]:
    """The body of the only loop of a program, and the same as a module whose entry it is.

    Raises ValueError if the program has no loop or several.
    """
    loops = [each for each in module.computations[module.entry].values() if each.op == "while"]
    if len(loops) != 1:
        raise ValueError(f"{len(loops)} loops, expected the one over the codes")
    name = module.bodies(loops[0])[0]
    return module.computations[name], dataclasses.replace(module, entry=name)


def moved_weights(module: Module, least_bytes: int) -> Iterator[str]:
    """Names of the collectives that move `least_bytes` or more, except sums.

    Activations of a step are smaller than a weight matrix, so that such a collective moves weights.
    """
    for computation in module.computations.values():
        for instruction in computation.values():
            kind = collective_kind(instruction.op)
            if kind in (None, "all-reduce") or instruction.op.endswith("-done"):
                continue
            if max(shape.bytes for shape in instruction.shapes) >= least_bytes:
                yield instruction.name


def copied_caches(body: Computation, leaf_bytes: int) -> Iterator[str]:
    """Names of the copies to HBM that have exactly the size of the keys or values of a layer.

    Copies to VMEM are how a step reads them, so that they do not count.
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
        fields["image_seconds"] = check.image_seconds
    if program is not None:
        fields["memory"] = dataclasses.asdict(program.memory)
        fields["versions"] = {"jax": program.jax_version, "libtpu": program.compiler_version}
    return fields


def format_report(check: DecodeCheck) -> str:
    """The table for people."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in check.mesh.items())
    kind = check.dtype if check.quantization is None else f"{check.quantization} weights, {check.dtype}"
    lines = [
        f"{check.name} ({kind}) on {check.topology}: {check.chips} chips ({mesh}), "
        f"{check.images} images of one prompt with guidance, window {check.window}",
        "",
        _row("weights per chip, GB", check.weight_bytes / 1e9),
        _row("KV caches per chip, GB", check.cache_bytes / 1e9),
        _row("needed per chip, GB", check.needed_bytes / 1e9),
        "fits" if check.fits else f"DOES NOT FIT: {check.reason or 'a chip has less memory'}",
    ]
    step = check.step
    if step is None:
        return "\n".join(lines)
    milliseconds = [1e3 * seconds for seconds in (step.low, step.predicted, step.high)]
    passes = check.num_codes / check.codes_per_pass
    rows = [
        _row("a step, ms: lowest, predicted, highest", *milliseconds),
        _row("reading weights and cache once, ms", 1e3 * step.floor),
        _row("that, as % of the predicted time", 100 * step.share_of_floor),
        _row("HBM traffic of a step, GB", step.hbm_bytes / 1e9),
        _row("before and after all steps, ms", 1e3 * step.around),
        _row("steps, assumed" if check.window > 1 else "steps", passes),
        _row("all steps, s", check.image_seconds or 0.0),
        f"collectives that move weights: {', '.join(step.moved_weights) or 'none'}",
        f"copies of a cache in the step: {', '.join(step.copied_caches) or 'none'}",
    ]
    return "\n".join([*lines, "", *rows, "", "Times are predicted from the compiled program, not measured."])


def _row(name: str, *values: float) -> str:
    return f"{name:<40}" + "".join(f"{value:>10,.3f}" for value in values)
