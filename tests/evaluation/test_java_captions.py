"""METEOR and the official words of captions: the real programs where they are installed, otherwise stand-ins."""

import importlib.util
import json
import shutil

import pytest

from janus_jax.evaluation.benchmark import Answer, Question
from janus_jax.evaluation.scores import captions, java_captions
from tests.helpers.golden_evaluation import GOLDEN

CASES = json.loads((GOLDEN / "rules/caption.json").read_text())
QUESTIONS = [Question(place, key, "", (), texts, key) for place, (key, texts) in enumerate(CASES["references"].items())]
ANSWERS = [Answer(place, text) for place, text in enumerate(CASES["hypotheses"].values())]


class Tokenizer:
    """The interface of pycocoevalcap's PTBTokenizer, with our own words."""

    def tokenize(self, lines):
        return {key: [" ".join(captions.tokenize(line["caption"])) for line in texts] for key, texts in lines.items()}


class BrokenTokenizer:
    def tokenize(self, lines):
        return dict.fromkeys(list(lines)[:1], [""])  # what pycocoevalcap makes of a program without output


class Meteor:
    def compute_score(self, gold, theirs):
        assert gold.keys() == theirs.keys()
        return CASES["corpus"]["METEOR"], [float(bool(theirs[key][0])) for key in theirs]


class BrokenMeteor:
    def compute_score(self, gold, theirs):
        return float(b""), []


@pytest.fixture
def install(monkeypatch):
    """Puts stand-ins in the place of pycocoevalcap and Java."""

    def install(tokenizer=Tokenizer, meteor=Meteor):
        class Module:
            PTBTokenizer, Meteor = tokenizer, meteor

        monkeypatch.setattr(java_captions, "missing", lambda: "")
        monkeypatch.setattr(java_captions.importlib, "import_module", lambda name: Module)

    return install


def test_without_java_the_words_are_our_own_and_a_note_says_so(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    scores = captions.score(QUESTIONS, ANSWERS)
    assert "meteor" not in scores.metrics
    assert scores.notes[0] == "Words are those of our own tokenizer, and there is no METEOR: there is no Java."
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert java_captions.missing() == "pycocoevalcap is not installed"


def test_with_java_there_is_meteor_of_all_captions_together(install):
    install()
    wrong = Answer(0, ANSWERS[0].text, error="unreadable image")
    scores = captions.score(QUESTIONS, [wrong, *ANSWERS[1:]])
    assert scores.metrics["meteor"].value == pytest.approx(100 * CASES["corpus"]["METEOR"])
    assert scores.metrics["meteor"].interval is not None
    assert [sample.fields["meteor"] for sample in scores.samples] == [0, 1, 1, 1, 1]
    assert scores.notes[0] == "Words are those of the PTB tokenizer of pycocoevalcap."


def test_a_program_that_fails_is_named_and_the_other_scores_remain(install):
    install(BrokenTokenizer, BrokenMeteor)
    scores = captions.score(QUESTIONS, ANSWERS)
    assert "returned 1 of" in scores.notes[0] and "our own tokenizer" in scores.notes[0]
    assert "METEOR failed" in scores.notes[1] and "meteor" not in scores.metrics
    assert scores.metrics["cider"].value == pytest.approx(100 * CASES["corpus"]["CIDEr"])


def test_captions_without_text_are_not_sent(install):
    install()
    assert java_captions.tokenize_all(["", " A\u2028dog. ", "\n"]) == [(), ("a", "dog"), ()]


@pytest.mark.slow
@pytest.mark.skipif(bool(java_captions.missing()), reason="pycocoevalcap and Java are optional")
def test_the_real_programs_give_the_golden_figures():
    scores = captions.score(QUESTIONS, ANSWERS)
    corpus = CASES["corpus"]
    for name, key in {"meteor": "METEOR", "cider": "CIDEr", "rouge_l": "ROUGE_L", "bleu_4": "Bleu_4"}.items():
        assert scores.metrics[name].value == pytest.approx(100 * corpus[key], abs=1e-9)
    assert [sample.fields["meteor"] for sample in scores.samples] == pytest.approx(CASES["per_image"]["METEOR"])
    assert java_captions.tokenize_all(["", "A dog\nruns.\u2028fast", "..."]) == [(), ("a", "dog", "runs", "fast"), ()]
