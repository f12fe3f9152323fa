"""Compares two runs on the requests that both have: paired differences, and the requests on which they differ.

Both ran on the same questions, so their difference is surer than the intervals of the two figures suggest.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from janus_jax.errors import UserError
from janus_jax.evaluation.job import PLAN_FILE
from janus_jax.evaluation.paired_figures import Sample, paired_figures
from janus_jax.evaluation.results import read_samples, read_scores
from janus_jax.evaluation.statistics import PairedDifference, detectable_difference, mcnemar, paired_difference
from janus_jax.storage import read_json


class Comparison(NamedTuple):
    """One benchmark of two runs, A and B."""

    benchmark: str
    count: int  # type: ignore[assignment]  # requests that both have; hides a method of tuples
    differences: Mapping[str, PairedDifference]  # A minus B, of the mean score in percent and of `paired_figures`
    mcnemar: float | None  # p-value; None where scores are not only 0 and 1
    detectable: float  # smallest difference of the mean score that this number of requests shows with 80 % power
    flipped: Sequence[tuple[Sample, Sample]]  # samples of A and B whose scores differ, the largest loss of B first
    notes: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """Without the texts of the samples."""
        return {
            "benchmark": self.benchmark,
            "count": self.count,
            "differences": {name: difference._asdict() for name, difference in self.differences.items()},
            "mcnemar": self.mcnemar,
            "detectable": self.detectable,
            "flipped": [
                {"id": a["id"], "index": a["index"], "a": a["score"], "b": b["score"]} for a, b in self.flipped
            ],
            "notes": list(self.notes),
        }


def is_run(folder: epath.Path) -> bool:
    """Whether a folder is the output of an evaluation with scores."""
    return folder.is_dir() and bool(read_scores(folder))


def compare_runs(a: epath.Path, b: epath.Path) -> list[Comparison]:
    """Compares the benchmarks that both outputs have.

    Raises:
        UserError: there is none, or a benchmark was read from other files.
    """
    names = [name for name in read_scores(a) if name in read_scores(b)]
    if not names:
        raise UserError(f"--compare={a},{b}: no benchmark is scored in both")
    return [_compare(name, a / name, b / name) for name in names]


def _compare(name: str, a: epath.Path, b: epath.Path) -> Comparison:
    _check_data(a, b)
    first, second = ({sample["index"]: sample for sample in read_samples(folder)} for folder in (a, b))
    pairs = [(first[index], second[index]) for index in first if index in second]
    pairs = [(x, y) for x, y in pairs if x["score"] is not None and y["score"] is not None]
    if len(pairs) < 2:
        raise UserError(f"--compare: {a} and {b} have {len(pairs)} scored requests in common, expected at least two")
    notes = []
    different = sum(x["prompt"] != y["prompt"] for x, y in pairs)
    if different:
        notes.append(f"{different} prompts differ, such as {pairs[0][0]['prompt']!r} and {pairs[0][1]['prompt']!r}")
    if len(pairs) < max(len(first), len(second)):
        notes.append(f"{len(first)} and {len(second)} requests; compared are the {len(pairs)} that both have")
    scores = np.array([[x["score"], y["score"]] for x, y in pairs], np.float64)
    clusters = [x.get("cluster", x["index"]) for x, _ in pairs]
    percent = (100 * scores).tolist()
    differences = {"mean score": paired_difference([x for x, _ in percent], [y for _, y in percent], clusters)}
    differences |= paired_figures(name, pairs, clusters)
    is_binary = bool(np.isin(scores, (0, 1)).all())
    only_a, only_b = int((scores[:, 0] > scores[:, 1]).sum()), int((scores[:, 0] < scores[:, 1]).sum())
    flipped = sorted((pair for pair in pairs if pair[0]["score"] != pair[1]["score"]), key=_loss)
    return Comparison(
        name,
        len(pairs),
        differences,
        mcnemar(only_a, only_b) if is_binary else None,
        detectable_difference(differences["mean score"].stderr),
        flipped,
        notes,
    )


def _check_data(a: epath.Path, b: epath.Path) -> None:
    """Raises UserError when the benchmark of two runs was read from other files."""
    if not ((a / PLAN_FILE).exists() and (b / PLAN_FILE).exists()):
        return  # scores of predictions
    data = [read_json(folder / PLAN_FILE)["data"] for folder in (a, b)]
    if data[0] != data[1]:
        raise UserError(f"--compare: the data of {a} is {data[0]}, that of {b} is {data[1]}; expected the same")


def _loss(pair: tuple[Sample, Sample]) -> float:
    return pair[1]["score"] - pair[0]["score"]
