"""Single rules of scoring against what the official code said to each case (golden files)."""

import json
import lzma
import subprocess
import sys

import numpy as np
import pytest

from janus_jax.evaluation.benchmark import Answer
from janus_jax.evaluation.scores import captions, choices, gqa, mmmu, vqa, yes_no
from tests.helpers import REPOSITORY
from tests.helpers.golden_evaluation import GOLDEN, rules

VQA, POPE, MME, MMBENCH, MMMU, CAPTION = map(rules, ("vqa_accuracy", "pope", "mme", "mmbench_mcq", "mmmu", "caption"))


def test_vqa_accuracy():
    for case in VQA["accuracy_cases"]:
        prediction, answers = case["prediction"], case["answers"]
        official, normalised = vqa.vqa_accuracy(prediction, answers), vqa.normalised_accuracy(prediction, answers)
        assert official == pytest.approx(case["vqa_accuracy_official"], abs=1e-9), prediction
        assert normalised == pytest.approx(case["vqa_accuracy_always_normalised"], abs=1e-9), prediction


def test_vqa_texts():
    for case in VQA["normalise_cases"]:
        assert vqa.normalise(case["in"]) == case["out"]
    for case in VQA["evalai_answer_processor_cases"]:
        assert vqa.process_evalai(case["in"]) == case["out"]


def test_contractions():
    """One missing apostrophe is put back; "lets" is no contraction of the official table."""
    for text, want in {"yalld've": "yalld've", "y'alld've": "y'all'd've", "twas": "'twas", "lets": "lets"}.items():
        assert vqa.normalise(text) == want


def test_pope_labels():
    official = POPE["official"]
    assert [yes_no.pope_label(text) for text in official["texts"]] == official["official_pred"]
    for case in POPE["vlmevalkit_yes_no_extraction"]:
        assert (yes_no.vlmevalkit_label(case["prediction"]) or "unknown").capitalize() == case["label"]


def test_mme_labels_and_points():
    scores, pairs = [], []
    for task, rows in MME["official_tool"]["tasks"].items():
        for row in rows:
            assert (yes_no.mme_label(row["pred"]) or "other") == row["parsed"]
            scores.append(float(row["parsed"] == row["gt"].lower()))
            pairs.append((task, row["image"]))
    # As the official tool printed them: perception is the sum of existence and count, cognition has one task.
    assert yes_no.mme_points(scores[:12], pairs[:12]).value == pytest.approx(183.33333333333331, abs=1e-9)
    assert yes_no.mme_points(scores[6:12], pairs[6:12]).value == pytest.approx(83.33333333333333, abs=1e-9)
    assert yes_no.mme_points(scores[12:], pairs[12:]).value == pytest.approx(200, abs=1e-9)


def test_mme_pairs_need_not_be_neighbours():
    rows, want = MME["vlmevalkit_rating"]["rows"], MME["vlmevalkit_rating"]["expected"][0]
    for shuffled in (rows, sorted(rows, key=lambda row: (row["score"], row["image_path"]))):
        for name, tasks in (("perception", yes_no.MME_PERCEPTION), ("reasoning", yes_no.MME_COGNITION)):
            chosen = [row for row in shuffled if row["category"] in tasks]
            points = yes_no.mme_points(
                [float(row["score"]) for row in chosen], [(row["category"], row["image_path"]) for row in chosen]
            )
            assert points.value == pytest.approx(want[name], abs=1e-9)


def test_options():
    for case in MMBENCH["can_infer"]["cases"]:
        found = choices.match_option(case["prediction"], MMBENCH["can_infer"]["choices"])
        assert (found or False) == case["label"], case["prediction"]


def test_letter_after_answer_is_needs_no_word_boundary():
    """A quirk of VLMEvalKit: "answer is about" names option A."""
    assert choices.match_option("I fear that my answer is about as good as any guess", {"A": "x", "B": "y"}) == "A"


def test_gqa_conversion():
    assert gqa.convert("Yes..") == "yes" and gqa.convert("Foggy .") == "foggy "


def test_mmmu_options():
    cases = MMMU["multi_choice"]
    for case in cases["cases"]:
        assert (mmmu.read_option(case["response"], cases["index2ans"]) or "RANDOM") == case["parsed"], case["response"]


def test_mmmu_open():
    for case in MMMU["open"]:
        read = mmmu.read_open(case["response"])
        assert sorted(map(str, read)) == sorted(case["parsed"]), case["response"]
        assert mmmu.open_right(read, case["gold"]) == case["correct"]


def test_mmmu_outputs_of_two_models():
    """All 900 questions: the official script counts 330 and 325 right answers (answers of LLaVA-1.5-13B, Qwen-VL)."""
    rows = json.loads(lzma.decompress((GOLDEN / "rules/mmmu_official_outputs.json.xz").read_bytes()))
    right = [0, 0]
    for _, kind, gold, *outputs in rows:
        for model, output in enumerate(outputs):
            if kind == "multiple-choice":  # the files hold letters that were read already
                right[model] += output in gold if isinstance(gold, list) else output == gold
            else:
                right[model] += mmmu.open_right(mmmu.read_open(output), gold)
    assert len(rows) == 900 and right == [330, 325]


def test_captions():
    hypotheses = [captions.tokenize(CAPTION["hypotheses"][key]) for key in CAPTION["hypotheses"]]
    references = [[captions.tokenize(text) for text in texts] for texts in CAPTION["references"].values()]
    assert [" ".join(words) for words in hypotheses] == [
        text for texts in CAPTION["ptb_tokenised_hypotheses"].values() for text in texts
    ]
    assert [[" ".join(words) for words in texts] for texts in references] == list(
        CAPTION["ptb_tokenised_references"].values()
    )
    bleu, rows = captions.bleu(hypotheses, references)
    per_image, corpus = CAPTION["per_image"], CAPTION["corpus"]
    for n in range(4):
        assert bleu[n] == pytest.approx(corpus[f"Bleu_{n + 1}"], abs=1e-9)
        np.testing.assert_allclose(captions.bleu_of_sums(rows)[:, n], per_image[f"Bleu_{n + 1}"], atol=1e-9, rtol=0)
    rouges = [captions.rouge_l(*pair) for pair in zip(hypotheses, references, strict=True)]
    np.testing.assert_allclose(rouges, per_image["ROUGE_L"], atol=1e-9, rtol=0)
    ciders = captions.cider(hypotheses, references)
    np.testing.assert_allclose(ciders, per_image["CIDEr"], atol=1e-9, rtol=0)
    assert np.mean(ciders) == pytest.approx(corpus["CIDEr"], abs=1e-9)


PTB = {
    # As PTBTokenizer of pycocoevalcap 1.2 (CoreNLP 3.4.1 on OpenJDK 17) splits them.
    "I don't see the dog's 3rd ball.": "i do n't see the dog 's 3rd ball",
    "At 10:30, two-way traffic -- slow!": "at 10:30 two-way traffic slow",
    'A sign that reads "No Parking 8am-6pm, Mon-Fri".': "a sign that reads no parking 8am-6pm mon-fri",
    "Mr. and Mrs. Smith at Dr. Who's, Main St.": "mr. and mrs. smith at dr. who 's main st.",
    "The U.S. Army at 3 p.m. near a U.K.-based no. 5 bus": "the u.s. army at 3 p.m. near a u.k.-based no. 5 bus",
    "rock'n'roll, o'clock and O'Brien's ma'am": "rock 'n' roll o'clock and o'brien 's ma'am",
    "he's gonna 'tis y'all cannot": "he 's gon na 't is y' all can not",
    "A $5.00 bill, 50% off #1 and US$10": "a $ 5.00 bill 50 % off # 1 and us$ 10",
    "AT&T and b&b, 3x3 2:00pm 1970s": "at&t and b & b 3x3 2:00 pm 1970s",
    "a \u201ccurly\u201d quote\u2019s test\u2026 em\u2014dash": "a curly quote 's test em dash",
    "hello!!world email me @home #tag www.example.com": "hello !! world email me @home #tag www.example.com",
    "Plan B. Next (two) [three] dogs.a cat": "plan b. next -lrb- two -rrb- -lsb- three -rsb- dogs.a cat",
    "": "",
}


@pytest.mark.parametrize(("caption", "words"), PTB.items())
def test_caption_words(caption, words):
    assert " ".join(captions.tokenize(caption)) == words


def test_a_caption_without_words_scores_nothing():
    references = [[("a", "cat")], [("a", "dog")]]
    assert captions.cider([(), ("a", "dog")], references)[0] == 0 and captions.rouge_l((), references[0]) == 0
    bleu, rows = captions.bleu([(), ()], references)
    assert max(bleu) < 1e-6 and np.isfinite(rows).all()


def test_scores_are_imported_without_jax_and_pyarrow():
    code = (
        "import sys\n"
        "from janus_jax.evaluation.scores import captions, chartqa, choices, gqa, mmmu, vqa, yes_no\n"
        "assert not {'jax', 'flax', 'pyarrow', 'openpyxl'} & set(sys.modules), 'imported'\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, timeout=120)


def test_answers_with_an_error_are_wrong():
    """Even where an empty text would be read as the right answer."""
    from janus_jax.evaluation.benchmark import Question

    question = Question(0, "1", "Is it?", (), "yes", "image", {"splits": ["random"]})
    assert yes_no.score_pope([question], [Answer(0, "")]).samples[0].score == 1
    scores = yes_no.score_pope([question], [Answer(0, "", error="unreadable image")])
    assert scores.samples[0].score == 0 and scores.metrics["f1_random"].value == 0
    assert scores.counts["undecided"] == 1
