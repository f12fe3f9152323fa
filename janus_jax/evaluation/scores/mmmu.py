"""MMMU: letters and open answers of college subjects, read as in MMMU-Benchmark/MMMU@bb0b95a (`eval_utils.py`).

The official reading draws an option at random where it finds none. Here such an answer is undecided and wrong.
VLMEvalKit@e8e78f0, which turns open questions into ones with two options, stands beside it.
"""

import re
from collections.abc import Mapping, Sequence

from janus_jax.evaluation.benchmark import Answer, Question, SampleScore, Scores
from janus_jax.evaluation.scores import tables
from janus_jax.evaluation.scores.choices import match_option
from janus_jax.evaluation.statistics import mean_metric, rate_metric

_WORDS_OF_A_SENTENCE = 5  # Only longer answers are searched for the text of an option.
_KEY_WORDS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = (":", ",", ".", "!", "?", ";", "'")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)

Value = str | float


def read_option(text: str, options: Mapping[str, str]) -> str | None:
    """The letter that a response names: (A), then a lone A, then an option's text; of several the last one."""
    for mark in ",.!?;:'":
        text = text.strip(mark)
    text = f" {text} "
    places = [{letter: text.rfind(form.format(letter)) for letter in options} for form in ("({})", " {} ")]
    if len(text.split()) > _WORDS_OF_A_SENTENCE:
        places.append({letter: text.lower().rfind(option.lower()) for letter, option in options.items()})
    for found in places:
        last = max(found, key=lambda letter: found[letter], default=None)
        if last is not None and found[last] >= 0:
            return last
    return None


def read_open(text: str) -> set[Value]:
    """Texts and numbers that an open response may mean: what follows key words, and the numbers in it."""
    text = text.strip().strip(".").lower()
    # The official code splits before capital letters as well, but lowers the case first: only lines are split.
    sentences = text.split("\n")
    keys = []
    for place, sentence in enumerate(sentences):
        words = _KEY_WORDS + (("=",) if place == len(sentences) - 1 else ())
        tails = [sentence.split(word)[-1].strip() for word in words if word in sentence]
        # An empty tail is replaced by any later one, as the official comparison of lengths does.
        shortest = ""
        for tail in tails:
            if not shortest or len(tail) < len(shortest):
                shortest = tail
        if shortest and shortest not in _TRIVIAL:
            keys.append(shortest)
    keys = keys or [text]
    numbers = [number for key in keys for pattern in _NUMBERS for number in pattern.findall(key)]
    return {value for found in [*keys, *numbers] for value in normalise(found)}


def normalise(text: str) -> list[Value]:
    """A number rounded to two decimals, or lower-case text. One letter needs a blank beside it, to match no word."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except (ValueError, OverflowError):
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def open_right(read: set[Value], gold: str | Sequence[str]) -> bool:
    """Whether a number equals a right one, or a text contains a right one."""
    right = [value for answer in ([gold] if isinstance(gold, str) else gold) for value in normalise(answer)]
    return any(
        any(isinstance(value, str) and value in found for value in right) if isinstance(found, str) else found in right
        for found in read
    )


def score(questions: Sequence[Question], answers: Sequence[Answer]) -> Scores:
    """Percent. `fields` has `options` (empty for open questions) and `subject`; `gold` is a letter, text or texts."""
    if tables.lacks_gold(questions):
        return tables.unscored("The answers of this split are not public: upload predictions.json to EvalAI.", answers)
    samples = []
    for question, answer in zip(questions, answers, strict=True):
        options, fields = question.fields["options"], {"vlmevalkit": _vlmevalkit(question, answer)}
        if answer.error:
            samples.append(SampleScore(answer.index, None, 0.0, fields))
        elif options:
            letter = read_option(answer.text, options)
            samples.append(SampleScore(answer.index, letter, float(letter == question.gold), fields))
        else:
            read = read_open(answer.text)
            parsed = " | ".join(sorted(map(str, read)))
            samples.append(SampleScore(answer.index, parsed, float(open_right(read, question.gold)), fields))
    scores = tables.points(samples)
    metrics = {
        "accuracy": rate_metric(int(sum(scores)), len(scores), scale=100),
        "vlmevalkit": mean_metric([sample.fields["vlmevalkit"] for sample in samples], scale=100),
    }
    found = {
        "subject": tables.by_type([question.fields["subject"] for question in questions], scores),
        "kind": tables.by_type(["options" if q.fields["options"] else "open" for q in questions], scores),
    }
    notes = ["An answer that names no option counts as wrong; the official code would draw one at random."]
    return Scores("accuracy", metrics, samples, tables.count_undecided(samples), found, notes)


def _vlmevalkit(question: Question, answer: Answer) -> float:
    """VLMEvalKit reads an open question as one with two options, of which the first is the right answer."""
    options, gold = question.fields["options"], question.gold
    if not options:
        options, gold = {"A": str(question.gold), "B": "Other Answers"}, "A"
    return float(not answer.error and match_option(answer.text, options) == gold)
