"""COCO and Flickr30k captions: CIDEr, BLEU and ROUGE-L as in pycocoevalcap 1.2, without Java, and METEOR with it.

CIDEr: Vedantam et al. 2015 (CIDEr-D, n up to 4, sigma 6). BLEU: Papineni et al. 2002, with the closest reference
length. ROUGE-L: Lin 2004, beta 1.2. `tokenize` splits texts as the Penn Treebank tokenizer of Stanford CoreNLP 3.4.1
does, which pycocoevalcap runs: of 3,800 sentences of DPG-Bench's prompts all but three agree. Rare abbreviations can
differ, so `score` takes the Java program itself where it is installed (`java_captions`).
"""

import collections
import functools
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from janus_jax.evaluation.benchmark import Answer, Question, SampleScore, Scores
from janus_jax.evaluation.scores import java_captions
from janus_jax.evaluation.scores.java_captions import JavaError, Words
from janus_jax.evaluation.statistics import bootstrap_metric, mean_metric

Counts = Mapping[Words, float]

MAX_N = 4
_CIDER_SIGMA = 6.0
_ROUGE_BETA = 1.2
# Small numbers that pycocoevalcap adds so that no quotient has a zero.
_TINY, _SMALL = 1e-15, 1e-9

_PUNCTUATION = {"''", "'", "``", "`", '"', ".", "?", "!", ",", ":", "-", "--", "...", ";"}
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
# What the tokenizer reads entities, curly quotes, long dashes, fractions and currencies as.
_SIGNS = {"&quot;": '"', "&amp;": "&", "\xa0": " ", "\u2026": "...", "\u2013": "--", "\u2014": "--"}
_SIGNS |= {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'}
_SIGNS |= {"\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4", "\u00a2": " cents ", "\u00a3": "#", "\u20ac": "$"}
# Words that are split in two, and what follows the first part.
_SPLIT = {"gonna": 3, "wanna": 3, "gotta": 3, "cannot": 3, "gimme": 3, "lemme": 3, "'tis": 2, "'twas": 2, "y'all": 2}
_TITLES = "mr|mrs|ms|messrs|dr|prof|rev|gen|col|capt|lt|sgt|gov|sen|rep|hon|msgr|supt|adm|maj|cmdr|pvt|esq|jr|sr"
_PLACES = "st|ave|blvd|rd|ft|mt|bldg|ct|rt|univ|dept|assn|bros|co|corp|inc|ltd|intl|natl|mfg|est|vs|etc|al"
_DATES_AND_STATES = (
    "Jan|Feb|Mar|Apr|Aug|Sept|Oct|Nov|Dec|Mon|Tue|Tues|Wed|Thu|Thurs|Fri|Calif|Tex|Fla|Ill|Mass|Mich|Wash|Va|Pa"
)
_TOKEN = re.compile(
    rf"""
    https?://\S+ | www\.\S+ | [\w.+-]{{1,64}}@[\w-]+(?:\.[\w-]+)+          # addresses
    | <[a-z][^<>\s]*>                                                 # tags
    | (?:\w+-)*(?:[a-z]\.){{2,}}(?:-\w+)*                              # u.s., u.k.-based
    | (?:ph\.d|{_TITLES}|{_PLACES}|(?-i:{_DATES_AND_STATES})|[a-z])\.(?!\w) | no\.(?=\s*\d)  # abbreviations
    | (?:gonna|wanna|gotta|cannot|gimme|lemme|'tis|'twas|y'all)\b
    | (?:o'clock|ma'am|c'mon|[odl]'[^\W\d]+?(?='s\b|\b(?!'))|'em\b|'n'|'\d0s)
    | n't\b | '(?:s|m|d|ll|re|ve)\b                                   # what follows a word that was split
    | [^\W_]+?(?=n't\b)                                               # the word before n't
    | \d+:\d\d(?=[ap]m\b)                                              # 2:00 of 2:00pm
    | us\$(?=\d) | (?-i:[A-Z]+(?:&[A-Z]+)+)                             # AT&T, but b & b
    | \d+(?:[.,:/]\d+)*(?:[a-z]\w*)?(?:-\w+)*                          # numbers, times, 3rd, 3x3, 3-year-old
    | c\+\+ | (?:[#@](?=[a-z]))?\w+(?:[-./]\w+)*                                    # words, also with hyphens
    | \.\.\. | -- | [!?]+ | \S
    """,
    re.VERBOSE | re.IGNORECASE,
)


def tokenize(caption: str) -> Words:
    """Lower-case words of a caption without punctuation; contractions are split ("there's" gives there, 's)."""
    for sign, plain in _SIGNS.items():
        caption = caption.replace(sign, plain)
    words: list[str] = []
    for token in map(str.lower, _TOKEN.findall(caption)):
        place = _SPLIT.get(token, len(token))
        words += [part for part in (token[:place], token[place:]) if part]
    return tuple(_BRACKETS.get(word, word) for word in words if word not in _PUNCTUATION)


def bleu(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> tuple[list[float], np.ndarray]:
    """Corpus BLEU-1 to 4, and the sums [images, 10] behind it: lengths, matched and possible n-grams for n = 1..4."""
    rows = np.array([_bleu_sums(words, texts) for words, texts in zip(hypotheses, references, strict=True)])
    return [float(value) for value in bleu_of_sums(rows.sum(axis=0))], rows


def bleu_of_sums(sums: np.ndarray) -> np.ndarray:
    """BLEU-1 to 4, [..., 4], of sums [..., 10] over one or more images."""
    length, reference, matched, possible = sums[..., 0], sums[..., 1], sums[..., 2:6], sums[..., 6:]
    precision = np.cumprod((matched + _TINY) / (possible + _SMALL), axis=-1)
    ratio = (length + _TINY) / (reference + _SMALL)
    penalty = np.where(ratio < 1, np.exp(1 - 1 / np.minimum(ratio, 1)), 1.0)
    return precision ** (1 / np.arange(1, MAX_N + 1)) * penalty[..., None]


def bleu_percent(sums: np.ndarray, n: int) -> np.ndarray:
    """BLEU-n times 100 of sums [..., 10] over one or more images."""
    return 100 * bleu_of_sums(sums)[..., n - 1]


def rouge_l(words: Words, references: Sequence[Words]) -> float:
    """F measure of the longest common subsequence; precision and recall are each the best over the references."""
    if not words or not any(references):
        return 0.0
    lengths = [(_common_subsequence(words, text), len(text)) for text in references if text]
    precision = max(common / len(words) for common, _ in lengths)
    recall = max(common / length for common, length in lengths)
    if not precision or not recall:
        return 0.0
    return (1 + _ROUGE_BETA**2) * precision * recall / (recall + _ROUGE_BETA**2 * precision)


def cider(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """CIDEr-D of each image; the corpus value is the mean.

    Weights come from how many images have an n-gram in a reference, so values of subsets are not comparable.
    """
    counted = [[_ngrams(text) for text in texts] for texts in references]
    frequency = collections.Counter(ngram for texts in counted for ngram in set().union(*texts))
    log_images = math.log(len(references)) if references else 0.0

    def weigh(counts: Counts) -> tuple[list[dict[Words, float]], list[float]]:
        vectors: list[dict[Words, float]] = [{} for _ in range(MAX_N)]
        for ngram, count in counts.items():
            vectors[len(ngram) - 1][ngram] = count * (log_images - math.log(max(1, frequency[ngram])))
        return vectors, [math.sqrt(sum(value**2 for value in vector.values())) for vector in vectors]

    scores = []
    for words, texts, counts in zip(hypotheses, references, counted, strict=True):
        vectors, norms = weigh(_ngrams(words))
        total = 0.0
        for text, text_counts in zip(texts, counts, strict=True):
            others, other_norms = weigh(text_counts)
            # Lengths are counted in pairs of words, as in pycocoevalcap.
            difference = max(len(words) - 1, 0) - max(len(text) - 1, 0)
            likeness = 0.0
            for vector, other, norm, other_norm in zip(vectors, others, norms, other_norms, strict=True):
                product = sum(
                    min(value, other.get(ngram, 0.0)) * other.get(ngram, 0.0) for ngram, value in vector.items()
                )
                likeness += product / (norm * other_norm) if norm and other_norm else product
            total += likeness / MAX_N * math.exp(-(difference**2) / (2 * _CIDER_SIGMA**2))
        scores.append(10 * total / len(texts))
    return scores


def score(questions: Sequence[Question], answers: Sequence[Answer]) -> Scores:
    """CIDEr, BLEU-1 to 4 and ROUGE-L times 100, and METEOR where Java is.

    `gold` is the list of reference captions of the image. A note says which tokenizer found the words.
    """
    texts = ["" if answer.error else answer.text for answer in answers]
    words, note = words_of([*texts, *(text for question in questions for text in question.gold)])
    found, notes = iter(words), [note]
    hypotheses = list(itertools.islice(found, len(answers)))
    references = [list(itertools.islice(found, len(question.gold))) for question in questions]
    ciders = cider(hypotheses, references)
    rouges = [rouge_l(words, texts) for words, texts in zip(hypotheses, references, strict=True)]
    _, rows = bleu(hypotheses, references)

    def mean(sums: np.ndarray) -> np.ndarray:
        return 100 * sums[..., 0] / np.maximum(sums[..., 1], 1)

    totals = np.stack([ciders, np.ones(len(ciders))], axis=1)
    metrics = {"cider": bootstrap_metric(totals, mean, len(ciders))}
    for n in range(1, MAX_N + 1):
        metrics[f"bleu_{n}"] = bootstrap_metric(rows, functools.partial(bleu_percent, n=n), len(rows))
    metrics["rouge_l"] = mean_metric(rouges, scale=100)
    readings: list[dict[str, float]] = [{"rouge_l": rouge} for rouge in rouges]
    if not java_captions.missing():
        try:
            corpus, each = java_captions.meteor(hypotheses, references)
            # Only the program itself can resample the figure of all captions; the mean of each is close to it.
            metrics["meteor"] = mean_metric(each, scale=100)._replace(value=100 * corpus)
            readings = [reading | {"meteor": value} for reading, value in zip(readings, each, strict=True)]
            notes.append("METEOR's interval is that of the mean over captions.")
        except JavaError as error:
            notes.append(f"No METEOR: {error}.")
    samples = [
        SampleScore(answer.index, None if answer.error else " ".join(words), value, reading)
        for answer, words, value, reading in zip(answers, hypotheses, ciders, readings, strict=True)
    ]
    notes.append("CIDEr weighs words by the references of the scored images, so figures of subsets are not comparable.")
    return Scores("cider", metrics, samples, {"undecided": sum(not words for words in hypotheses)}, notes=notes)


def words_of(texts: Sequence[str]) -> tuple[list[Words], str]:
    """Words of each text, and a note that says which tokenizer found them."""
    reason = java_captions.missing()
    if not reason:
        try:
            return java_captions.tokenize_all(texts), "Words are those of the PTB tokenizer of pycocoevalcap."
        except JavaError as error:
            reason = str(error)
    note = f"Words are those of our own tokenizer, and there is no METEOR: {reason}."
    return list(map(tokenize, texts)), note


def _ngrams(words: Words) -> Counts:
    return collections.Counter(_runs(words))


def _runs(words: Words) -> Iterator[Words]:
    for n in range(1, MAX_N + 1):
        for start in range(len(words) - n + 1):
            yield words[start : start + n]


def _bleu_sums(words: Words, references: Sequence[Words]) -> list[float]:
    counts, most = _ngrams(words), collections.Counter[Words]()
    for text in references:
        most |= collections.Counter(_ngrams(text))
    matched = [0.0] * MAX_N
    for ngram, count in counts.items():
        matched[len(ngram) - 1] += min(count, most[ngram])
    closest = min((abs(len(text) - len(words)), len(text)) for text in references)[1]
    possible = [float(max(0, len(words) - n)) for n in range(MAX_N)]
    return [float(len(words)), float(closest), *matched, *possible]


def _common_subsequence(a: Words, b: Words) -> int:
    row = [0] * (len(b) + 1)
    for word in a:
        above = row
        row = [0]
        for place, other in enumerate(b):
            row.append(above[place] + 1 if word == other else max(above[place + 1], row[-1]))
    return row[-1]
