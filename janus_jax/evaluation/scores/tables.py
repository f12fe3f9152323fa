"""What the scores of several benchmarks share: tables by type, and scores without a right answer at hand."""

from collections.abc import Sequence
from typing import Any

from janus_jax.evaluation.benchmark import Answer, Question, SampleScore, Scores

Table = list[list[Any]]


def by_type(types: Sequence[str], values: Sequence[float]) -> Table:
    """Mean in percent and number of questions of each type, in order of the names; the head comes first."""
    groups: dict[str, list[float]] = {}
    for kind, value in zip(types, values, strict=True):
        groups.setdefault(kind, []).append(value)
    return [["type", "score", "questions"]] + [
        [kind, 100 * sum(found) / len(found), len(found)] for kind, found in sorted(groups.items())
    ]


def confusion(gold: Sequence[str], read: Sequence[str | None]) -> Table:
    """How often each right answer was read as what."""
    rows, columns = sorted(set(gold)), sorted({value or "undecided" for value in read})
    counts: dict[tuple[str, str], int] = {}
    for right, value in zip(gold, read, strict=True):
        counts[right, value or "undecided"] = counts.get((right, value or "undecided"), 0) + 1
    return [["right answer \\ read as", *columns]] + [
        [row, *(counts.get((row, column), 0) for column in columns)] for row in rows
    ]


def points(samples: Sequence[SampleScore]) -> list[float]:
    """The scores of samples that all have one."""
    return [sample.score or 0.0 for sample in samples]


def count_undecided(samples: Sequence[SampleScore]) -> dict[str, int]:
    return {"undecided": sum(sample.parsed is None for sample in samples)}


def unscored(note: str, answers: Sequence[Answer]) -> Scores:
    """Scores of a set whose right answers are not public, or that a judge has to score."""
    samples = [SampleScore(answer.index, answer.text, None) for answer in answers]
    return Scores("", {}, samples, {"undecided": 0}, notes=(note,))


def lacks_gold(questions: Sequence[Question]) -> bool:
    return any(question.gold is None for question in questions)
