"""VQAv2 and TextVQA: agreement with ten annotators after the texts are normalised.

VQAv2 follows GT-Vision-Lab/VQA@a013f00 (`vqaEval.py`). Its headline is that code on the answers as they are uploaded,
which have passed the EvalAI processor. TextVQA follows MMF's evaluator as LLaVA@c121f04 carries it
(`m4c_evaluator.py`). Annotators are compared by position, because some copies lack their ids.
"""

import functools
import re
from collections.abc import Callable, Sequence

from janus_jax.evaluation.benchmark import Answer, Metric, Question, SampleScore, Scores
from janus_jax.evaluation.scores import tables
from janus_jax.evaluation.statistics import mean_metric

Normalise = Callable[[str], str]

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_STOP = re.compile(r"\.(?!\d)")
_STOP_AFTER_NO_DIGIT = re.compile(r"(?<!\d)\.(?!\d)")
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
# The official code passes the flag re.UNICODE in the place of a count, so it deletes at most 32 full stops.
_MOST_STOPS = 32
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
# Words that the official table restores where one of their apostrophes is missing. It does not know "let's" and
# "she's", and turns "somebody'd" the other way.
_APOSTROPHES = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in _APOSTROPHES.split()
    for place, character in enumerate(word)
    if character == "'"
} | {"somebody'd": "somebodyd"}


@functools.lru_cache(1 << 18)
def normalise(text: str) -> str:
    """VQAv2's normalisation: punctuation, case, number words, articles and contractions."""
    return _digits_and_articles(_without_punctuation(one_line(text), _STOP))


@functools.lru_cache(1 << 18)
def normalise_vlmevalkit(text: str) -> str:
    """The same in VLMEvalKit's copy, which keeps a full stop that follows a digit."""
    return _digits_and_articles(without_punctuation_vlmevalkit(one_line(text)))


@functools.lru_cache(1 << 18)
def process_evalai(text: str) -> str:
    """The EvalAI answer processor, which prediction files pass before they are uploaded."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return normalise(text)


def without_punctuation_vlmevalkit(text: str) -> str:
    return _without_punctuation(text, _STOP_AFTER_NO_DIGIT)


def one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def agreement(prediction: str, answers: Sequence[str]) -> float:
    """Mean over annotators of min(1, matches among the others / 3), between 0 and 1; texts are compared as they are."""
    matches, count = answers.count(prediction), len(answers)
    agreeing, others = min(1.0, (matches - 1) / 3), min(1.0, matches / 3)
    return (matches * agreeing + (count - matches) * others) / count


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """VQAv2's official rule: where all annotators agree, texts are compared without any normalisation."""
    answers = [one_line(answer) for answer in answers]
    if len(set(answers)) > 1:
        return normalised_accuracy(prediction, answers)
    return agreement(one_line(prediction), answers)


def normalised_accuracy(prediction: str, answers: Sequence[str], rule: Normalise = normalise) -> float:
    """The same formula with texts that are always normalised, as lmms-eval has it."""
    return agreement(rule(prediction), [rule(answer) for answer in answers])


def score_vqav2(questions: Sequence[Question], answers: Sequence[Answer]) -> Scores:
    """Percent. `gold` is the list of the annotators' answers; `fields` has `answer_type` and `question_type`."""
    if tables.lacks_gold(questions):
        return tables.unscored("There are no annotations here: upload predictions.json to EvalAI.", answers)
    samples = []
    for question, answer in zip(questions, answers, strict=True):
        gold, processed = question.gold, answer.text if answer.converted else process_evalai(answer.text)
        rules = {
            "official_raw": vqa_accuracy(answer.text, gold),
            "lmms_eval": normalised_accuracy(answer.text, gold),
            "vlmevalkit": normalised_accuracy(answer.text, gold, normalise_vlmevalkit),
        }
        samples.append(_sample(answer, processed, vqa_accuracy(processed, gold), rules))
    clusters = [question.cluster for question in questions]
    found = {
        f"{name} type": tables.by_type(
            [question.fields.get(f"{name}_type", "unknown") for question in questions],
            tables.points(samples),
        )
        for name in ("answer", "question")
    }
    note = "The headline is the official code on answers that passed the EvalAI processor, as they are uploaded."
    return Scores(
        "accuracy", _metrics(samples, clusters), samples, tables.count_undecided(samples), found, notes=(note,)
    )


def score_textvqa(questions: Sequence[Question], answers: Sequence[Answer]) -> Scores:
    """Percent. `gold` is the list of the annotators' answers. lmms-eval's rule is the official one."""
    samples = [
        _sample(
            answer,
            process_evalai(answer.text),
            normalised_accuracy(answer.text, question.gold, process_evalai),
            {"vlmevalkit": normalised_accuracy(answer.text, question.gold, normalise_vlmevalkit)},
        )
        for question, answer in zip(questions, answers, strict=True)
    ]
    clusters = [question.cluster for question in questions]
    return Scores("accuracy", _metrics(samples, clusters), samples, tables.count_undecided(samples))


def _sample(answer: Answer, processed: str, score: float, rules: dict[str, float]) -> SampleScore:
    if answer.error:
        return SampleScore(answer.index, None, 0.0, dict.fromkeys(rules, 0.0))
    return SampleScore(answer.index, processed, score, rules)


def _metrics(samples: Sequence[SampleScore], clusters: Sequence[str]) -> dict[str, Metric]:
    """The headline and each further rule, in percent."""
    metrics = {"accuracy": mean_metric(tables.points(samples), clusters, scale=100)}
    for name in samples[0].fields if samples else ():
        metrics[name] = mean_metric([sample.fields[name] for sample in samples], clusters, scale=100)
    return metrics


def _without_punctuation(text: str, stop: re.Pattern[str]) -> str:
    result, delete_all = text, _DIGIT_COMMA_DIGIT.search(text) is not None
    for mark in _PUNCTUATION:
        if mark in text:
            delete = delete_all or f"{mark} " in text or f" {mark}" in text
            result = result.replace(mark, "" if delete else " ")
    return stop.sub("", result, count=_MOST_STOPS)


def _digits_and_articles(text: str) -> str:
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
