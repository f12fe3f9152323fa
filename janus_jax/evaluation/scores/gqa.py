"""GQA: exact words, over balanced questions.

The headline is the official `eval.py` on predictions that LLaVA's `convert_gqa_for_eval.py` has cleaned. The official
code on raw answers and the rules of VLMEvalKit@e8e78f0 and lmms-eval@75571cf, which count all rows, stand beside it.
"""

import string
from collections.abc import Sequence

from janus_jax.evaluation.benchmark import Answer, Metric, Question, SampleScore, Scores
from janus_jax.evaluation.scores import tables
from janus_jax.evaluation.statistics import mean_metric

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def convert(text: str) -> str:
    """LLaVA's conversion: final full stops are removed, and letters become lower case. White space stays."""
    return text.rstrip(".").lower()


def lmms_normal(text: str) -> str:
    return text.lower().translate(_NO_PUNCTUATION)


def score(questions: Sequence[Question], answers: Sequence[Answer]) -> Scores:
    """Percent. `fields["balanced"]` says which rows the official code counts; `structural` and `semantic` are types."""
    samples = []
    for question, answer in zip(questions, answers, strict=True):
        gold, text, asked = question.gold, answer.text, not answer.error
        fields = {
            "official_raw": float(asked and text == gold),
            "vlmevalkit": float(asked and text.strip().lower() == gold.strip().lower()),
            "lmms_eval": float(asked and lmms_normal(text) == lmms_normal(gold)),
        }
        parsed = convert(text) if asked else None
        samples.append(SampleScore(answer.index, parsed, float(parsed == gold), fields))
    clusters = [question.cluster for question in questions]
    balanced = [place for place, question in enumerate(questions) if question.fields.get("balanced", True)]

    def share(values: Sequence[float], places: Sequence[int]) -> Metric:
        return mean_metric([values[place] for place in places], [clusters[place] for place in places], scale=100)

    values = tables.points(samples)
    structural = [question.fields.get("structural", "") for question in questions]
    metrics = {"accuracy": share(values, balanced)}
    if all(structural):
        metrics["binary"] = share(values, [place for place in balanced if structural[place] != "query"])
        metrics["open"] = share(values, [place for place in balanced if structural[place] == "query"])
    metrics["official_raw"] = share([sample.fields["official_raw"] for sample in samples], balanced)
    for kit in ("vlmevalkit", "lmms_eval"):
        metrics[f"{kit}_all_rows"] = mean_metric([sample.fields[kit] for sample in samples], clusters, scale=100)
    found = {
        f"{name} type": tables.by_type(
            [questions[place].fields[name] for place in balanced], [values[place] for place in balanced]
        )
        for name in ("structural", "semantic")
        if all(question.fields.get(name) for question in questions)
    }
    notes = [f"{len(questions) - len(balanced)} of {len(questions)} questions are not balanced and not counted."]
    if not all("balanced" in question.fields for question in questions):
        notes = ["This copy does not say which questions are balanced: all are counted."]
    return Scores("accuracy", metrics, samples, tables.count_undecided(samples), found, notes)
