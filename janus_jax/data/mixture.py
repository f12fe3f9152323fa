"""Which task, and which source inside it, the next sample comes from.

Stride scheduling: every choice has a clock that advances by `amount / weight` when it is served, and the choice whose
clock is furthest behind is next. So the shares are exact to one sample at any moment, not only on average, and no
random numbers are involved.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from janus_jax.data.record_reader import RecordSource
from janus_jax.errors import UserError

# A weight, or ((first step, weight), ...) in rising order of steps: piecewise constant, 0 before the first step.
Schedule = float | Sequence[tuple[int, float]]
RATIO_UNITS = ("samples", "tokens", "rows")


class WeightedRecords(NamedTuple):
    """A source of records and its weight among the sources of its task."""

    records: RecordSource
    weight: Schedule | None = None  # None: the number of records.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """Where samples come from and in which shares."""

    sources: Mapping[str, Sequence[WeightedRecords]]  # Sources of each task.
    ratio: Mapping[str, Schedule]  # Share of each task of `sources`, counted in `ratio_unit`.
    ratio_unit: str = "samples"  # One of RATIO_UNITS; "rows" also keeps samples of different tasks in different rows.

    def __post_init__(self) -> None:
        if self.ratio_unit not in RATIO_UNITS:
            raise UserError(f"data.ratio_unit={self.ratio_unit!r} is not one of {RATIO_UNITS}")


def value_at(schedule: Schedule, step: int) -> float:
    """The weight at a training step."""
    if isinstance(schedule, (int, float)):
        return float(schedule)
    return next((float(value) for first, value in reversed(schedule) if step >= first), 0.0)


def check_schedule(field: str, schedule: Any) -> Schedule:
    """The schedule itself. Raises UserError unless it is a weight of at least 0, or weights at rising steps."""
    steps = [(0, schedule)] if isinstance(schedule, (int, float)) else schedule
    try:
        pairs = [(int(first), float(value)) for first, value in steps]
    except (TypeError, ValueError):
        pairs = []
    rising = all(a < b for (a, _), (b, _) in zip(pairs, pairs[1:], strict=False))
    if not pairs or not rising or not all(first >= 0 and 0 <= value < float("inf") for first, value in pairs):
        raise UserError(f"{field}={schedule!r}: expected a weight of 0 or more, or ((first step, weight), ...)")
    return pairs[0][1] if isinstance(schedule, (int, float)) else tuple(pairs)


def ever_positive(schedule: Schedule) -> bool:
    """Whether the weight is above 0 at any step."""
    return schedule > 0 if isinstance(schedule, (int, float)) else any(value > 0 for _, value in schedule)


class StrideScheduler:
    """Chooses among named alternatives in proportion to their weights.

    Args:
        weights: Schedule of each name.
        offset: Number in [0, 1) that says where in the pattern to start. Parallel streams get different offsets, so
            that they do not all serve the same name first.
    """

    def __init__(self, weights: Mapping[str, Schedule], offset: float = 0.0):
        self._weights = dict(weights)
        self._offset = offset
        self._current: dict[str, float] = {}
        self._clocks: dict[str, float] = {}

    def next(self, step: int) -> str | None:
        """The name to serve at this step; None when all weights are 0."""
        weights = {name: value_at(schedule, step) for name, schedule in self._weights.items()}
        if weights != self._current:  # Start counting anew: otherwise a new weight would compensate for the past.
            self._current = weights
            self._clocks = {
                name: (self._offset * (i + 1)) % 1 / weight
                for i, (name, weight) in enumerate(weights.items())
                if weight
            }
        if not self._clocks:
            return None
        return min(self._clocks, key=self._clocks.__getitem__)

    def served(self, name: str, amount: float) -> None:
        """Counts an amount taken, in the unit of the shares. A name whose weight has become 0 meanwhile is ignored."""
        if name not in self._clocks:
            return
        self._clocks[name] += amount / self._current[name]
        behind = min(self._clocks.values())
        self._clocks = {name: clock - behind for name, clock in self._clocks.items()}  # Small numbers add exactly.

    def get_state(self) -> dict[str, Any]:
        """State that JSON can hold."""
        return {"weights": self._current, "clocks": self._clocks}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self._current, self._clocks = dict(state["weights"]), dict(state["clocks"])
