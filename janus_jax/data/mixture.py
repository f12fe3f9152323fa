"""Which task, and which source inside it, the next sample comes from.

Stride scheduling: every choice has a clock that advances by `amount / weight` when it is served, and the one whose
clock is furthest behind is next. So the shares are exact to one sample at any moment, not only on average, and no
random numbers are involved.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from janus_jax.errors import UserError

# A weight, or ((first step, weight), ...) in rising order of steps: piecewise constant, 0 before the first.
Schedule = float | Sequence[tuple[int, float]]


def value_at(schedule: Schedule, step: int) -> float:
    """The weight that holds at a training step."""
    if isinstance(schedule, (int, float)):
        return float(schedule)
    return next((float(value) for first, value in reversed(schedule) if step >= first), 0.0)


def check_schedule(field: str, schedule: Any) -> Schedule:
    """Raises UserError naming the field unless it is a weight of 0 or more, or pairs of rising steps and weights."""
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
    """Whether the choice is served at any step."""
    return schedule > 0 if isinstance(schedule, (int, float)) else any(value > 0 for _, value in schedule)


class Turns:
    """Whose turn it is among named choices.

    Args:
        weights: schedule per name.
        offset: in [0, 1), where in the pattern to start, so that parallel streams do not all serve the same name
            first.
    """

    def __init__(self, weights: Mapping[str, Schedule], offset: float = 0.0):
        self._weights = dict(weights)
        self._offset = offset
        self._current: dict[str, float] = {}
        self._clocks: dict[str, float] = {}

    def next(self, step: int) -> str | None:
        """The name to serve at this step; None when all weights are 0."""
        weights = {name: value_at(schedule, step) for name, schedule in self._weights.items()}
        if weights != self._current:  # shares are counted afresh, or a new weight would make up for the past
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
        """Counts what was taken, in the unit of the shares. A name whose weight has since become 0 is ignored."""
        if name not in self._clocks:
            return
        self._clocks[name] += amount / self._current[name]
        behind = min(self._clocks.values())
        self._clocks = {name: clock - behind for name, clock in self._clocks.items()}  # small, for exact additions

    def get_state(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return {"weights": self._current, "clocks": self._clocks}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self._current, self._clocks = dict(state["weights"]), dict(state["clocks"])
