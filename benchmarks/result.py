"""What a suite measures, as rows of a table and as JSON."""

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

COMPARISONS = {">=": operator.ge, "<=": operator.le}


class Result(NamedTuple):
    """One line: a figure of ours, where there is one that of a named peer in the same run, and the bar."""

    case: str
    value: float  # what is compared with the bar: a ratio, or a figure with a unit
    unit: str  # "x" for ratios
    bar: tuple[str, float] | None = None  # (">=" or "<=", limit); None: reported only
    ours: str = ""  # what the ratio is of
    peer: str = ""

    @property
    def passed(self) -> bool | None:
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
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
