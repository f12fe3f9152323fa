"""What a compiled step costs: predicted time, utilisation, collectives, memory."""

import dataclasses

from janus_jax.compile_check.hlo import parse
from janus_jax.compile_check.program import Program
from janus_jax.compile_check.timeline import Pricing, Timeline


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Of one step, per device."""

    low: float  # seconds, see `timeline`
    predicted: float
    high: float
    seconds: dict[str, float]  # of the prediction, by kind
    flops: float  # executed
    hbm_bytes: float
    wire_bytes: dict[str, float]  # sent by collectives, by kind
    transfer_seconds: dict[str, float]  # of collectives alone on the links
    exposed_seconds: dict[str, float]  # waited for collectives
    unknown_loops: list[str]  # their bodies are counted once: the estimate is too low
    peak_flops: float  # per second
    hbm_capacity: int


def estimate(program: Program) -> Estimate:
    """Raises ValueError for text that is no compiled program."""
    timeline = Timeline(parse(program.hlo), program.machine)
    low, high = timeline.run(Pricing.LOW)[0], timeline.run(Pricing.HIGH)[0]
    predicted, sums = timeline.run(Pricing.MID)

    def named(prefix: str) -> dict[str, float]:
        return {name.removeprefix(prefix): value for name, value in sorted(sums.items()) if name.startswith(prefix)}

    return Estimate(
        low=low,
        predicted=predicted,
        high=high,
        seconds=named("time/"),
        flops=sum(named("flops/").values()),
        hbm_bytes=sums["hbm"],
        wire_bytes=named("wire/"),
        transfer_seconds=named("transfer/"),
        exposed_seconds=named("exposed/"),
        unknown_loops=sorted(timeline.unknown_loops),
        peak_flops=program.machine.flops,
        hbm_capacity=program.machine.hbm_bytes,
    )
