"""DPG-Bench (Hu et al., 2024): from answers to yes/no questions about four images per prompt to its score.

The rules are those of `dpg_bench/compute_dpg_bench.py` of TencentQQGYLab/ELLA. It has two mistakes that its published
figures contain (ELLA issues 60 and 61): the first row of the table of questions is skipped, and the scores of the
categories use the last image of each prompt alone. The rule "official" repeats both, the rule "all_rows" neither.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

RULES = ("all_rows", "official")
NUM_CROPS = 4  # images of a grid: top left, top right, bottom left, bottom right
NO_PARENT = 0


class Proposition(NamedTuple):
    """A question about the images of a prompt."""

    id: int
    parents: tuple[int, ...]  # questions that must be answered yes for this one to count; `NO_PARENT` is none
    category: str  # "entity - whole", of which the part before the dash is the broad category
    question: str


class ItemScore(NamedTuple):
    """How the images of one prompt were judged."""

    score: float  # 0 to 1
    per_crop: tuple[float, ...]
    categories: tuple[tuple[str, float], ...]  # (category, 0 or 1) for each question that counts for its category


def score_item(
    propositions: Sequence[Proposition], answers: Sequence[Mapping[int, str]], rule: str
) -> ItemScore | None:
    """The score of one prompt, or None when a question depends on one that does not exist.

    Args:
        answers: for each image of the grid, the answer to each question; only "yes" is yes.
        rule: one of `RULES`.
    """
    known = {proposition.id for proposition in propositions}
    parents = {parent for proposition in propositions for parent in proposition.parents} - {NO_PARENT}
    if not propositions or parents - known:
        return None
    direct = [{p.id: float(crop[p.id] == "yes") for p in propositions} for crop in answers]
    per_crop = tuple(_crop_score(propositions, scores) for scores in direct)
    judged = direct[-1:] if rule == "official" else direct
    categories = tuple((p.category, scores[p.id]) for scores in judged for p in propositions)
    return ItemScore(sum(per_crop) / len(per_crop), per_crop, categories)


def _crop_score(propositions: Sequence[Proposition], direct: Mapping[int, float]) -> float:
    """The share of questions that count. A question whose parent does not count does not count either.

    Questions are visited once, in the order of the table, so that a no passes on to later questions.
    """
    scores = dict(direct)
    for proposition in propositions:
        if any(parent != NO_PARENT and not scores[parent] for parent in proposition.parents):
            scores[proposition.id] = 0.0
    return sum(scores.values()) / len(scores)


def category_means(items: Sequence[ItemScore]) -> dict[str, tuple[float, int]]:
    """Mean and number of questions of each category, and of each broad one, which is the part before the dash."""
    values: dict[str, list[float]] = {}
    for item in items:
        for category, value in item.categories:
            for name in {category, category.split("-")[0].strip()}:
                values.setdefault(name, []).append(value)
    return {name: (sum(found) / len(found), len(found)) for name, found in sorted(values.items())}
