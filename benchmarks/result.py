"""The results of a suite, as a table for a terminal and as JSON."""

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

from janus_jax.reports.text import format_table

COMPARISONS = {">=": operator.ge, "<=": operator.le}


class Result(NamedTuple):
    """One line of the table: a ratio to a named peer of the same run, or a single figure, and its bar."""

    case: str
    value: float  # ratio, or figure with a unit; this is compared with the bar
    unit: str  # "x" for ratios
    bar: tuple[str, float] | None = None  # (">=" or "<=", limit); None for a value that is only reported
    ours: str = ""  # our figure behind the ratio
    peer: str = ""  # the peer's figure behind the ratio

    @property
    def passed(self) -> bool | None:
        """Whether the value meets the bar; None without a bar."""
        if self.bar is None:
            return None
        comparison, limit = self.bar
        return bool(COMPARISONS[comparison](self.value, limit))

    def to_json(self) -> dict[str, Any]:
        return {**self._asdict(), "passed": self.passed}


def format_results(results: Sequence[Result]) -> str:
    """The table for a terminal."""
    rows = [["case", "value", "bar", "", "ours", "peer"]]
    for result in results:
        bar = f"{result.bar[0]} {result.bar[1]:g}" if result.bar else "reported"
        verdict = {None: "", True: "pass", False: "MISSED"}[result.passed]
        rows.append([result.case, f"{result.value:.3g} {result.unit}", bar, verdict, result.ours, result.peer])
    return format_table(rows)
