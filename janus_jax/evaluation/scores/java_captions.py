"""The official words of captions and METEOR, by the Java programs of pycocoevalcap 1.2 where both are installed.

The words are those of the Penn Treebank tokenizer of Stanford CoreNLP 3.4.1. METEOR: Denkowski and Lavie 2014 (1.5).
pycocoevalcap (https://github.com/salaniz/pycocoevalcap) brings both programs; `pip install --no-deps pycocoevalcap` and
a Java runtime are enough.
"""

import importlib
import importlib.util
import shutil
from collections.abc import Sequence

Words = tuple[str, ...]
PACKAGE = "pycocoevalcap"
_SEPARATOR = "|||"  # between the captions that METEOR reads


class JavaError(Exception):
    """A Java program did not run, or did not answer as it should."""


def missing() -> str:
    """What is not installed, or "" where the programs can be tried."""
    if importlib.util.find_spec(PACKAGE) is None:
        return f"{PACKAGE} is not installed"
    return "" if shutil.which("java") else "there is no Java"


def tokenize_all(captions: Sequence[str]) -> list[Words]:
    """Lower-case words of each caption without punctuation. Raises JavaError."""
    single = [" ".join(caption.split()) for caption in captions]
    lines = {place: [{"caption": line}] for place, line in enumerate(single) if line}
    if not lines:
        return [()] * len(captions)
    tokenizer = importlib.import_module(f"{PACKAGE}.tokenizer.ptbtokenizer").PTBTokenizer()
    try:
        found = tokenizer.tokenize(lines)
    except OSError as error:
        raise JavaError(f"the PTB tokenizer failed: {error}") from error
    # A program that breaks off returns fewer lines, of which the last is empty.
    if len(found) != len(lines) or not any(map(any, found.values())):
        raise JavaError(f"the PTB tokenizer returned {len(found)} of {len(lines)} captions")
    return [tuple(found[place][0].split()) if place in found else () for place in range(len(captions))]


def meteor(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> tuple[float, list[float]]:
    """METEOR of all captions together, which is not the mean, and of each. Raises JavaError."""
    theirs = {place: [_line(words)] for place, words in enumerate(hypotheses)}
    gold = {place: list(map(_line, texts)) for place, texts in enumerate(references)}
    scorer = importlib.import_module(f"{PACKAGE}.meteor.meteor").Meteor()
    try:
        corpus, each = scorer.compute_score(gold, theirs)
    except (OSError, ValueError) as error:  # a program that ends closes its pipes, or answers nothing
        raise JavaError(f"METEOR failed: {error}") from error
    return float(corpus), [float(value) for value in each]


def _line(words: Words) -> str:
    return " ".join(words).replace(_SEPARATOR, "")
