"""The result of a check, as a table for people and as a dict for programs."""

import dataclasses
from typing import Any

from janus_jax.compile_check.check import Check
from janus_jax.hardware import SLICE_BANDWIDTH

GB = 1e9
LONGEST = 8  # number of parts of the model that are listed
LIMITS = (
    "Times are predicted from the compiled program, not measured. Contention for HBM and reading data are left out.",
    f"The network between slices is assumed to carry {SLICE_BANDWIDTH / GB:g} GB/s for each chip.",
    '"Images at most" counts rows that are full of images and hold no text.',
    "Use the times to compare programs for the same topology and version of the compiler.",
)


def as_dict(check: Check) -> dict[str, Any]:
    """All numbers of a check, JSON-serialisable."""
    fields = {field.name: getattr(check, field.name) for field in dataclasses.fields(check)}
    program = fields.pop("program")
    fields["estimate"] = dataclasses.asdict(check.estimate) if check.estimate else None
    fields["mfu"] = check.mfu
    fields["limits"] = " ".join(LIMITS)
    if program is not None:
        fields["temporary_bytes"] = check.temporary_bytes
        fields["memory"] = dataclasses.asdict(program.memory)
        fields["versions"] = {"jax": program.jax_version, "libtpu": program.compiler_version}
    if check.estimate is not None:
        fields |= rates(check)
    return fields


def rates(check: Check) -> dict[str, float]:
    """What the predicted time of a step means for a run. The data decide how many images its rows really hold."""
    assert check.estimate is not None
    seconds = check.estimate.predicted
    speed = {"images_per_second": check.rows / seconds}  # of an image tokenizer, with an image in each row
    if check.tokens:
        speed = {
            "tokens_per_second_per_chip": check.tokens / seconds / check.chips,
            "images_per_second_at_most": check.images_at_most / seconds,
        }
    return speed | {"days": check.steps * seconds / 86400}


def format_report(check: Check) -> str:
    """The table for people."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in check.mesh.items())
    lines = [
        f"{check.name} on {check.topology}: {check.chips} chips ({mesh}), {check.rows} rows per step, "
        f"micro_batches {check.micro_batches}, remat {check.remat}",
        "",
        "memory of a chip, GB",
        *(_row(name, value / GB) for name, value in check.state_bytes.items() if value),
    ]
    if check.estimate is None:
        return "\n".join([*lines, "", f"DOES NOT FIT: {check.reason}"])
    result = check.estimate
    lines += [
        _row("gradients, activations, others", check.temporary_bytes / GB),
        _row("sum, when most is in use", check.needed_bytes / GB),
        _row("memory of the chip", result.hbm_capacity / GB),
        "fits" if check.fits else "DOES NOT FIT",
        "",
        "time of a step, seconds",
        _row("lowest, predicted, highest", result.low, result.predicted, result.high),
        *(_row(f"  {name}", value) for name, value in result.seconds.items()),
        "",
        "the parts of the model that take longest, seconds",
        *(_row(f"  {name}", seconds) for name, seconds in _longest(result.parts)),
        "",
        "collectives: GB that a chip sends, seconds if nothing else uses the links, seconds that the chip waits",
        *(
            _row(f"  {kind}", sent / GB, result.transfer_seconds[kind], result.exposed_seconds.get(kind, 0.0))
            for kind, sent in result.wire_bytes.items()
        ),
        "",
        _row("TFLOP executed per chip", result.flops / 1e12),
        _row("HBM traffic per chip, GB", result.hbm_bytes / GB),
    ]
    if check.model_flops is not None and check.mfu is not None:
        lines += [
            _row("executed / model flops", result.flops * check.chips / check.model_flops),
            _row("MFU, %", 100 * check.mfu),
        ]
    lines += [_row(name.replace("_", " "), value) for name, value in rates(check).items()]
    if result.unpriced_flops:
        share = 100 * result.unpriced_flops / result.flops
        lines += ["", f"The compiler estimates no time for products with {share:.2g} % of the operations, which"]
        lines += ["are taken at the roofline in all three times. So the predicted time is rather too low."]
    if result.unknown_loops:
        loops = ", ".join(result.unknown_loops)
        lines += ["", f"The predicted time is TOO LOW: these loops of unknown length were counted once: {loops}"]
    return "\n".join([*lines, "", *LIMITS])


def _longest(parts: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(parts.items(), key=lambda pair: pair[1], reverse=True)[:LONGEST]


def _row(name: str, *values: float) -> str:
    return f"{name:<40}" + "".join(f"{value:>12,.3f}" for value in values)
