"""Figures that are no means, of two runs: the difference is that of the two figures, and equal runs have none."""

import itertools
import json

import pytest

from janus_jax.evaluation.benchmark import Answer, Question
from janus_jax.evaluation.paired_figures import paired_figures
from janus_jax.evaluation.scores import captions, yes_no
from tests.helpers.golden_evaluation import GOLDEN

CAPTIONS = json.loads((GOLDEN / "rules/caption.json").read_text())
TASKS = ("existence", "count", "OCR", "code_reasoning")


def compared(benchmark, score, questions, *answers):
    """Scores of both runs, and the differences that their samples have."""
    runs = [score(questions, [Answer(i, text) for i, text in enumerate(texts)]) for texts in answers]
    lines = [
        [
            {**sample._asdict(), "gold": question.gold, "cluster": question.cluster}
            for question, sample in zip(questions, run.samples, strict=True)
        ]
        for run in runs
    ]
    pairs = list(zip(*lines, strict=True))
    return runs, paired_figures(benchmark, pairs, [question.cluster for question in questions])


def test_points_of_mme_come_from_whole_images():
    questions = [
        Question(index, str(index), "", (), gold, image, {"task": task})
        for index, (task, image, gold) in enumerate(itertools.product(TASKS, "abcdefgh", ("yes", "no")))
    ]
    a = ["Yes" if question.index % 3 else "No" for question in questions]
    b = ["Yes" if question.index % 5 else "No" for question in questions]
    (first, second), found = compared("mme", yes_no.score_mme, questions, a, b)
    assert set(found) == {"perception", "cognition"}
    for name, difference in found.items():
        expected = first.metrics[name].value - second.metrics[name].value
        assert difference.difference == pytest.approx(expected) != 0
        assert difference.interval[0] <= expected <= difference.interval[1]
    assert (found["perception"].count, found["cognition"].count) == (48, 16)
    (_, _), same = compared("mme", yes_no.score_mme, questions, a, a)
    assert same["perception"].difference == same["perception"].stderr == 0 and same["perception"].p_value == 1


def test_captions_have_differences_of_cider_and_bleu():
    references = CAPTIONS["references"]
    questions = [Question(i, key, "", (), texts, key) for i, (key, texts) in enumerate(references.items())]
    a, b = list(CAPTIONS["hypotheses"].values()), [texts[0] for texts in references.values()]
    (first, second), found = compared("coco_captions", captions.score, questions, a, b)
    for name, metric in (("CIDEr", "cider"), ("BLEU-4", "bleu_4")):
        expected = first.metrics[metric].value - second.metrics[metric].value
        assert found[name].difference == pytest.approx(expected, abs=1e-9) != 0
        assert found[name].interval[0] < expected < found[name].interval[1]
    assert found["BLEU-4"].difference < -40  # the second run repeats a reference


def test_other_questions_have_none():
    pairs = [({"gold": "A", "parsed": "A"}, {"gold": "A", "parsed": "B"})] * 3
    assert paired_figures("seed", pairs, [0, 1, 2]) == {}
