"""MMBench and SEED-Bench: questions with lettered options.

An option is read as VLMEvalKit@e8e78f0 does without a language model (`matching_util.py`): by this rule Janus' figures
were made. MMBench is scored plainly, over all rows (Janus' protocol), over the first pass, and circularly.
"""

import re
from collections.abc import Mapping, Sequence

from janus_jax.evaluation.benchmark import Answer, Question, SampleScore, Scores
from janus_jax.evaluation.scores import tables
from janus_jax.evaluation.statistics import mean_metric

ROTATION = 1_000_000  # MMBench: the index of a rotated row is that of its base row plus a multiple of this.
REFUSAL = "Z"  # what a refusal is read as: no option
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_TO_SPACE = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_LAST_WORDS = 4  # A letter counts only among so many last words: an earlier "A" is mostly an article.
_ANSWER_IS = re.compile(r"answer\s+is\s+\**([a-d])", re.IGNORECASE)


def match_option(text: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option that an answer names, "Z" for a refusal, or None where it stays undecided.

    The one letter that occurs, if it is near the end; otherwise the letter after "answer is"; otherwise the one option
    whose text occurs, if the answer is at most twice as long as all options together.
    """
    if any(refusal in text for refusal in _REFUSALS):
        return REFUSAL
    words = text.translate(_TO_SPACE).split()
    letters = [letter for letter in options if letter in words]
    if len(letters) == 1 and words.index(letters[0]) >= len(words) - _LAST_WORDS:
        return letters[0]
    if not letters and REFUSAL in words:
        return REFUSAL
    named = _ANSWER_IS.search(text)
    if named and named[1].upper() in options:
        return named[1].upper()
    lowered = text.lower()
    if len(lowered) > 2 * sum(map(len, options.values())):
        return None
    contained = [letter for letter, option in options.items() if option.lower() in lowered]
    return contained[0] if len(contained) == 1 else None


def score_mmbench(questions: Sequence[Question], answers: Sequence[Answer]) -> Scores:
    """Percent. `fields` has `options`, `base` (the index of the unrotated row), `first_pass` and the categories."""
    if tables.lacks_gold(questions):
        return tables.unscored("The answers of this split are not public: upload predictions.xlsx.", answers)
    samples = _read(questions, answers)
    scores = tables.points(samples)
    bases = [question.fields["base"] for question in questions]
    first = [place for place, question in enumerate(questions) if question.fields["first_pass"]]
    rotations: dict[str, list[float]] = {}
    for base, value in zip(bases, scores, strict=True):
        rotations.setdefault(base, []).append(value)
    circular = [float(all(values)) for values in rotations.values()]
    metrics = {
        "plain": mean_metric(scores, bases, scale=100),
        "first_pass": mean_metric([scores[place] for place in first], scale=100),
        "circular": mean_metric(circular, scale=100),
    }
    found = {
        name: tables.by_type([question.fields.get(name, "") or "unknown" for question in questions], scores)
        for name in ("category", "l2_category")
    }
    counts = {**tables.count_undecided(samples), "base_questions": len(rotations)}
    notes = [
        "`plain` counts every row, as Janus' authors did. `circular` counts a question only if all rotations are right."
    ]
    return Scores("plain", metrics, samples, counts, found, notes)


def score_seed(questions: Sequence[Question], answers: Sequence[Answer]) -> Scores:
    """Percent of the image part. `fields` has `options` and `type`."""
    samples = _read(questions, answers)
    clusters = [question.cluster for question in questions]
    for place, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        fields = {
            "exact": float(not answer.error and answer.text == question.gold),
            "first_letter": float(not answer.error and answer.text.strip()[:1].upper() == question.gold),
        }
        samples[place] = samples[place]._replace(fields=fields)
    metrics = {
        "accuracy": mean_metric(tables.points(samples), clusters, scale=100),
        "exact": mean_metric([sample.fields["exact"] for sample in samples], clusters, scale=100),
        "first_letter": mean_metric([sample.fields["first_letter"] for sample in samples], clusters, scale=100),
    }
    kinds = [question.fields["type"] for question in questions]
    found = {"question type": tables.by_type(kinds, tables.points(samples))}
    notes = ["Options are matched as VLMEvalKit does; `exact` is LLaVA's rule, `first_letter` that of lmms-eval."]
    return Scores("accuracy", metrics, samples, tables.count_undecided(samples), found, notes)


def _read(questions: Sequence[Question], answers: Sequence[Answer]) -> list[SampleScore]:
    samples = []
    for question, answer in zip(questions, answers, strict=True):
        read = None if answer.error else match_option(answer.text, question.fields["options"])
        samples.append(SampleScore(answer.index, read, float(read == question.gold)))
    return samples
