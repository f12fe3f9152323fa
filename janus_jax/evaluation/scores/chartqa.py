"""ChartQA: relaxed accuracy, which accepts numbers within 5 % of the right one.

The rule is that of pix2struct as VLMEvalKit@e8e78f0 (`vqa_eval.py`) and lmms-eval@75571cf carry it. The headline takes
one final full stop off the answer first: Janus-Pro ends its answers with one, and the raw rule then rejects every word
(open-compass/VLMEvalKit#948). The raw rule stands beside it.
"""

from collections.abc import Sequence

from janus_jax.evaluation.benchmark import Answer, Question, SampleScore, Scores
from janus_jax.evaluation.scores import tables
from janus_jax.evaluation.statistics import mean_metric

TOLERANCE = 0.05  # largest difference, relative to the right number
CHANGED_SHARE = 0.05  # share of answers that the full stop decides, from which on a note says so


def relaxed_match(prediction: str, gold: str) -> bool:
    """Whether two numbers differ by at most 5 % of the gold one, or texts are equal but for case.

    A gold number of 0 is compared as text, and a comma in a number makes it a text, as in the official rule.
    """
    number, right = _number(prediction), _number(gold)
    if number is not None and right:
        return abs(number - right) / abs(right) <= TOLERANCE
    return prediction.lower() == gold.lower()


def without_final_stop(text: str) -> str:
    """The text without white space around it and without one full stop at its end."""
    return text.strip().removesuffix(".")


def score(questions: Sequence[Question], answers: Sequence[Answer]) -> Scores:
    """Percent. `gold` lists right answers, of which the best counts; `fields["split"]` is human or augmented."""
    samples = []
    for question, answer in zip(questions, answers, strict=True):
        text = answer.text
        readings = {
            "final_stop_removed": without_final_stop(text),
            "raw": text.strip(),
            "lmms_eval": text,  # lmms-eval keeps white space
        }
        scores = {
            name: float(not answer.error and any(relaxed_match(reading, gold) for gold in question.gold))
            for name, reading in readings.items()
        }
        lenient = scores.pop("final_stop_removed")
        parsed = None if answer.error else readings["final_stop_removed"]
        samples.append(SampleScore(answer.index, parsed, lenient, scores))
    rules = {
        "accuracy": tables.points(samples),
        "raw": [sample.fields["raw"] for sample in samples],
        "lmms_eval": [sample.fields["lmms_eval"] for sample in samples],
    }
    metrics = {}
    for name, values in rules.items():
        for split in ("", "human", "augmented"):
            chosen = [place for place, question in enumerate(questions) if split in ("", question.fields["split"])]
            if chosen:
                metrics[f"{name}_{split}" if split else name] = mean_metric(
                    [values[place] for place in chosen], [questions[place].cluster for place in chosen], scale=100
                )
    changed = sum(sample.score != sample.fields["raw"] for sample in samples)
    notes = ["The headline takes one final full stop off the answer; `raw` does not."]
    if samples and changed > CHANGED_SHARE * len(samples):
        notes.append(f"The full stop decides {changed} of {len(samples)} answers.")
    return Scores("accuracy", metrics, samples, tables.count_undecided(samples), notes=notes)


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
