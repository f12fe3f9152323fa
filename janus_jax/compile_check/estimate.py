"""What a compiled step costs: predicted time, operations, memory traffic and collectives."""

import dataclasses
from typing import Any

from janus_jax.compile_check.hlo import parse
from janus_jax.compile_check.program import Program
from janus_jax.compile_check.timeline import Pricing, Timeline


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Costs of one step on one device."""

    low: float  # seconds; `timeline` explains the three prices
    predicted: float
    high: float
    seconds: dict[str, float]  # parts of the predicted time, by kind
    parts: dict[str, float]  # seconds of operations in the predicted time, by part of the model
    flops: float  # operations that the program executes
    unpriced_flops: float  # those of products that the compiler has not estimated: they cost the roofline's time
    hbm_bytes: float
    wire_bytes: dict[str, float]  # bytes that collectives send, by kind of collective
    transfer_seconds: dict[str, float]  # seconds that collectives would take with the links to themselves
    exposed_seconds: dict[str, float]  # seconds that the TensorCore waits for collectives
    unknown_loops: list[str]  # loops of unknown length, whose bodies are counted once, so that the estimate is too low
    peak_flops: float  # peak rate of the device, per second
    hbm_capacity: int

    def followed_by(self, other: "Estimate", times: int) -> "Estimate":
        """The costs with those of another program, which runs `times` times beside nothing else."""

        def both(name: str) -> Any:
            mine, added = getattr(self, name), getattr(other, name)
            if isinstance(mine, dict):
                return {key: mine.get(key, 0.0) + times * added.get(key, 0.0) for key in mine | added}
            return mine + times * added if isinstance(mine, float) else mine

        costs = {field.name: both(field.name) for field in dataclasses.fields(self)}
        same = {"peak_flops": self.peak_flops, "hbm_capacity": self.hbm_capacity}
        loops = sorted({*self.unknown_loops, *other.unknown_loops})
        return Estimate(**(costs | same | {"unknown_loops": loops}))


def estimate(program: Program) -> Estimate:
    """Replays the program on the timeline. Raises ValueError if its text is no compiled program."""
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
        parts=named("part/"),
        flops=sum(named("flops/").values()),
        unpriced_flops=sums["unpriced"],
        hbm_bytes=sums["hbm"],
        wire_bytes=named("wire/"),
        transfer_seconds=named("transfer/"),
        exposed_seconds=named("exposed/"),
        unknown_loops=sorted(timeline.unknown_loops),
        peak_flops=program.machine.flops,
        hbm_capacity=program.machine.hbm_bytes,
    )
