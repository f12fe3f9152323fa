"""Differences of figures that are no means, between two runs on the same questions: F1, points of MME, BLEU, CIDEr.

Both runs are resampled by the same images, with the bootstrap of `statistics.paired_bootstrap`.
"""

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from janus_jax.evaluation.scores import captions
from janus_jax.evaluation.scores.yes_no import (
    MME_COGNITION,
    MME_PERCEPTION,
    f1_percent,
    mme_sum,
    mme_totals,
)
from janus_jax.evaluation.statistics import PairedDifference, cluster_totals, paired_bootstrap

Sample = Mapping[str, Any]  # a line of samples.jsonl
Pairs = Sequence[tuple[Sample, Sample]]  # of A and B


def paired_figures(benchmark: str, pairs: Pairs, clusters: Sequence[Any]) -> dict[str, PairedDifference]:
    """A minus B of the figures that a benchmark has besides the mean score, by their names.

    Args:
        clusters: images of the questions.
    """
    if benchmark == "mme":
        return _mme(pairs)
    if benchmark in ("coco_captions", "flickr30k"):
        return _captions(pairs)
    if all(a.get("gold") in ("yes", "no") for a, _ in pairs):
        a, b = (cluster_totals(_outcomes(pair[side] for pair in pairs), clusters) for side in (0, 1))
        return {"F1": paired_bootstrap(a, b, f1_percent, len(pairs))}
    return {}


def _mme(pairs: Pairs) -> dict[str, PairedDifference]:
    differences = {}
    for name, tasks in (("perception", MME_PERCEPTION), ("cognition", MME_COGNITION)):
        chosen = [pair for pair in pairs if pair[0]["fields"].get("task") in tasks]
        images = [(a["fields"]["task"], a["cluster"]) for a, _ in chosen]
        if len(set(images)) > 1:
            a, b = (mme_totals([pair[side]["score"] for pair in chosen], images) for side in (0, 1))
            differences[name] = paired_bootstrap(a, b, mme_sum, len(chosen))
    return differences


def _captions(pairs: Pairs) -> dict[str, PairedDifference]:
    """CIDEr's weights are those of the two runs, whose references are the same."""
    words, _ = captions.words_of([text for a, _ in pairs for text in a["gold"]])
    found = iter(words)
    references = [list(itertools.islice(found, len(a["gold"]))) for a, _ in pairs]

    def bleu_sums(side: int) -> np.ndarray:
        return captions.bleu([tuple((pair[side]["parsed"] or "").split()) for pair in pairs], references)[1]

    def cider_sums(side: int) -> np.ndarray:
        return np.array([[100 * pair[side]["score"], 1.0] for pair in pairs])

    bleu_4 = functools.partial(captions.bleu_percent, n=4)
    return {
        "CIDEr": paired_bootstrap(cider_sums(0), cider_sums(1), _mean, len(pairs)),
        "BLEU-4": paired_bootstrap(bleu_sums(0), bleu_sums(1), bleu_4, len(pairs)),
    }


def _mean(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / np.maximum(sums[..., 1], 1)


def _outcomes(samples: Iterable[Sample]) -> np.ndarray:
    """True positives, false positives, true negatives and false negatives of each sample; undecided is wrong."""
    rows = []
    for sample in samples:
        is_right, is_yes = sample["parsed"] == sample["gold"], sample["gold"] == "yes"
        rows.append(
            [is_right and is_yes, not is_right and not is_yes, is_right and not is_yes, not is_right and is_yes]
        )
    return np.array(rows, np.float64)
