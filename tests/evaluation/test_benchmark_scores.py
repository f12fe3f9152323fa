"""Benchmarks read from official files, parquet and TSV, scored as by the official scorers (golden files)."""

import numpy as np
import pytest

from janus_jax.errors import UserError
from janus_jax.evaluation import predictions, registry
from janus_jax.evaluation.benchmark import Answer
from tests.helpers.golden_evaluation import DATA, GOLDEN, expected
from tests.helpers.golden_evaluation import predictions as raw_answers


def loaded(name, where):
    (benchmark,) = registry.load(DATA / where, [name])
    return benchmark


def answers(benchmark, name=None):
    return predictions.read_predictions(benchmark, GOLDEN / f"predictions/{name or benchmark.name}.jsonl")


def scored(name, where, file=None):
    benchmark = loaded(name, where)
    return benchmark, benchmark.score(answers(benchmark, file))


def values(scores, rule=None):
    return [sample.score if rule is None else sample.fields[rule] for sample in scores.samples]


def close(found, want):
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("where", ["pope", "hf_pope"])
def test_pope(where):
    benchmark, scores = scored("pope", where)
    want = expected("pope")
    for split in ("random", "popular", "adversarial"):
        asked = [
            sample
            for sample, q in zip(scores.samples, benchmark.requests, strict=True)
            if q.fields["splits"] == [split]
        ]
        assert [sample.parsed for sample in asked] == want[split]["predicted"]
        for name in ("accuracy", "precision", "recall", "f1", "yes_ratio"):
            close(scores.metrics[f"{name}_{split}"].value, 100 * want[split][name])
        kit = want[split]["lmms_eval"]
        close([sample.fields["lmms_eval"] for sample in asked], kit["per_sample"])
        close(scores.metrics[f"lmms_eval_f1_{split}"].value, 100 * kit["f1"])
        close(scores.metrics[f"lmms_eval_accuracy_{split}"].value, 100 * kit["accuracy"])
        labels = [(sample.fields["labels"]["vlmevalkit"] or "unknown").capitalize() for sample in asked]
        assert labels == want[split]["vlmevalkit_extracted"]
    close(scores.metrics["mean_f1"].value, 100 * want["mean_f1"])
    assert scores.headline == "f1_random" and scores.counts == {"undecided": 0, "truncated": 0, "unreadable": 0}
    low, high = scores.metrics["f1_random"].interval
    assert 0 <= low < scores.metrics["f1_random"].value < high <= 100


def test_pope_of_vlmevalkit():
    """Each question once, counted in each of its splits."""
    _, scores = scored("pope", "vlmevalkit/POPE.tsv", "pope_tsv")
    want = expected("pope")
    for split in ("random", "popular", "adversarial"):
        rating = want["vlmevalkit_rating_of_POPE_tsv"][split]
        close(scores.metrics[f"vlmevalkit_f1_{split}"].value, rating["Overall"])
        close(scores.metrics[f"vlmevalkit_accuracy_{split}"].value, rating["acc"])
        close(scores.metrics[f"f1_{split}"].value, 100 * want[split]["f1"])
    close(scores.metrics["mean_f1"].value, 100 * want["mean_f1"])
    labels = [(sample.fields["labels"]["vlmevalkit"] or "unknown").capitalize() for sample in scores.samples]
    assert labels == [row["extracted"] for row in want["vlmevalkit_extracted_of_POPE_tsv"]]


@pytest.mark.parametrize("where", ["vqav2", "hf_vqav2", "hf_vqav2_answers_only"])
def test_vqav2(where):
    benchmark, scores = scored("vqav2", where)
    want = expected("vqav2")
    for rule, key in ((None, "official_on_processed_answers"), ("official_raw", "official_on_raw_outputs")):
        per_question = [want[key]["per_question"][question.id] for question in benchmark.requests]
        close(np.round(100 * np.array(values(scores, rule)), 2), per_question)
        total = scores.metrics[rule or "accuracy"].value
        assert round(total, 2) == want[key]["overall"]
    for kit, key in (("lmms_eval", "lmms_eval"), ("vlmevalkit", "vlmevalkit_rule")):
        close(values(scores, kit), want[key]["per_sample"])
        close(scores.metrics[kit].value, want[key]["accuracy"])
    assert [sample.parsed for sample in scores.samples] == list(want["processed_answers"].values())
    table = {row[0]: round(row[1], 2) for row in scores.tables["answer type"][1:]}
    assert table == want["official_on_processed_answers"]["perAnswerType"]
    table = {row[0]: round(row[1], 2) for row in scores.tables["question type"][1:]}
    assert table == want["official_on_processed_answers"]["perQuestionType"]


@pytest.mark.parametrize("where", ["textvqa", "hf_textvqa", "vlmevalkit/TextVQA_VAL.tsv"])
def test_textvqa(where):
    _, scores = scored("textvqa", where)
    want = expected("textvqa")
    close(values(scores), want["official_m4c"]["per_sample"])
    close(values(scores), want["lmms_eval"]["per_sample"])
    close(values(scores, "vlmevalkit"), want["vlmevalkit"]["per_sample"])
    close(scores.metrics["accuracy"].value, want["official_m4c"]["accuracy"])
    close(scores.metrics["vlmevalkit"].value, want["vlmevalkit"]["accuracy"])
    assert [sample.parsed for sample in scores.samples] == want["processed_answers"]


@pytest.mark.parametrize("where", ["chartqa", "hf_chartqa_lmms", "hf_chartqa_m4", "vlmevalkit/ChartQA_TEST.tsv"])
def test_chartqa(where):
    _, scores = scored("chartqa", where)
    want = expected("chartqa")
    names = {
        "accuracy": "vlmevalkit_rule_one_final_period_removed",
        "raw": "vlmevalkit_raw",
        "lmms_eval": "lmms_eval",
    }
    for name, key in names.items():
        close(values(scores, None if name == "accuracy" else name), want[key]["per_sample"])
        close(scores.metrics[name].value, want[key]["overall"])
        for split in ("human", "augmented"):
            close(scores.metrics[f"{name}_{split}"].value, want[key][split])
    assert any("decides 5 of 27" in note for note in scores.notes)


def test_chartqa_with_several_labels():
    _, scores = scored("chartqa", "hf_chartqa_labels", "chartqa_labels")
    want = expected("chartqa")["several_labels_vlmevalkit"]
    close(values(scores), want["per_sample"])
    close([scores.metrics[f"accuracy_{split}"].value for split in ("human", "augmented")], [50, 100])


@pytest.mark.parametrize("where", ["gqa", "hf_gqa"])
def test_gqa(where):
    benchmark, scores = scored("gqa", where)
    want = expected("gqa")
    for rule, key in ((None, "official_after_llava_conversion"), ("official_raw", "official_raw")):
        official = want[key]["per_question"]
        for question, value in zip(benchmark.requests, values(scores, rule), strict=True):
            if question.fields["balanced"]:
                assert value == official[question.id]
            else:
                assert official[question.id] is None
        assert round(scores.metrics[rule or "accuracy"].value, 2) == want[key]["accuracy"]
    after = want["official_after_llava_conversion"]
    assert round(scores.metrics["binary"].value, 2) == after["binary"]
    assert round(scores.metrics["open"].value, 2) == after["open"]
    for name in ("structural", "semantic"):
        assert {row[0]: round(row[1], 2) for row in scores.tables[f"{name} type"][1:]} == after[name]
    for kit in ("vlmevalkit", "lmms_eval"):
        close(values(scores, kit), want[kit]["per_sample"])
        close(scores.metrics[f"{kit}_all_rows"].value, want[kit]["accuracy_all_rows"])


def test_gqa_of_vlmevalkit_has_no_types():
    """All rows count, which the notes say; the rules of the kits are the same as with the official file."""
    _, official = scored("gqa", "gqa")
    _, scores = scored("gqa", "vlmevalkit/GQA_TestDev_Balanced.tsv")
    assert scores.metrics["accuracy"].count == 16 and any("all are counted" in note for note in scores.notes)
    for kit in ("vlmevalkit", "lmms_eval"):
        close(values(scores, kit), values(official, kit))


@pytest.mark.parametrize("where", ["seed_bench", "hf_seed", "vlmevalkit/SEEDBench_IMG.tsv"])
def test_seed(where):
    benchmark = loaded("seed", where)
    found = [Answer(row["index"], row["text"]) for row in raw_answers("seed_bench")[:15]]
    scores = benchmark.score(found)
    want = expected("seed_bench")
    names = {
        "accuracy": "vlmevalkit_option_matching",
        "exact": "llava_exact",
        "first_letter": "lmms_eval_first_character",
    }
    for name, key in names.items():
        close(values(scores, None if name == "accuracy" else name), want[key]["per_sample"][:15])
        close(scores.metrics[name].value, want[key]["image"])
    assert [sample.parsed or False for sample in scores.samples] == want["vlmevalkit_option_matching"]["read_option"][
        :15
    ]
    assert scores.counts["undecided"] == 5


@pytest.mark.parametrize("where", ["seed_bench", "hf_seed"])
def test_answers_to_questions_about_videos_are_passed_over(where):
    benchmark = loaded("seed", where)
    assert len(benchmark.requests) == 15 and len(benchmark.unasked) == 3
    assert [answer.index for answer in answers(benchmark, "seed_bench")] == list(range(15))
    assert any("3 questions about videos" in note for note in benchmark.notes)


@pytest.mark.parametrize("where", ["mmmu", "vlmevalkit/MMMU_DEV_VAL.tsv"])
def test_mmmu(where):
    benchmark, scores = scored("mmmu", where)
    want = expected("mmmu")
    official = want["official_undecided_wrong"]
    for question, sample in zip(benchmark.requests, scores.samples, strict=True):
        assert sample.score == (official["judged"][question.id] == "Correct"), question.id
        parsed = official["parsed"][question.id]
        if isinstance(parsed, str):
            assert (sample.parsed or "UNDECIDED") == parsed
        else:
            assert sample.parsed == " | ".join(sorted([*parsed["strings"], *map(str, parsed["numbers"])]))
    close(scores.metrics["accuracy"].value, 100 * official["accuracy"])
    close(scores.metrics["vlmevalkit"].value, 100 * want["vlmevalkit_pseudo_choices"]["accuracy"])
    order = [row["id"] for row in raw_answers("mmmu")]
    kit = dict(zip(order, want["vlmevalkit_pseudo_choices"]["per_sample"], strict=True))
    close(values(scores, "vlmevalkit"), [kit[question.id] for question in benchmark.requests])
    subjects = {row[0]: row[1] / 100 for row in scores.tables["subject"][1:]}
    assert subjects == pytest.approx(official["per_subject"], abs=1e-9)


def test_mmbench():
    benchmark, scores = scored("mmbench", "mmbench")
    want = expected("mmbench")
    for question, sample in zip(benchmark.requests, scores.samples, strict=True):
        assert (sample.parsed or False) == want["inferred"][question.id]
        assert sample.score == want["hit"][question.id]
    close(scores.metrics["plain"].value, 100 * want["plain_all_rows"])
    close(scores.metrics["first_pass"].value, 100 * want["plain_first_pass"])
    close(scores.metrics["circular"].value, 100 * want["circular_accuracy"])
    assert scores.headline == "plain" and scores.counts["base_questions"] == 7


SOURCES = {
    "pope": ["pope", "hf_pope"],
    "vqav2": ["vqav2", "hf_vqav2", "hf_vqav2_answers_only"],
    "textvqa": ["textvqa", "hf_textvqa", "vlmevalkit/TextVQA_VAL.tsv"],
    "chartqa": ["chartqa", "hf_chartqa_lmms", "hf_chartqa_m4", "vlmevalkit/ChartQA_TEST.tsv"],
    "gqa": ["gqa", "hf_gqa", "vlmevalkit/GQA_TestDev_Balanced.tsv"],
    "seed": ["seed_bench", "hf_seed", "vlmevalkit/SEEDBench_IMG.tsv"],
}


def partition(names):
    """Which questions share an image, whatever it is called."""
    return [names.index(name) for name in names]


@pytest.mark.parametrize("name", SOURCES)
def test_all_sources_give_the_same_questions(name):
    """Official files, parquet and TSV: same order, prompts, right answers, clusters, and images that can be read."""
    first, *others = [loaded(name, where) for where in SOURCES[name]]
    for other in others:
        assert [question.prompt for question in other.requests] == [question.prompt for question in first.requests]
        assert [question.gold for question in other.requests] == [question.gold for question in first.requests]
        clusters = [partition([question.cluster for question in benchmark.requests]) for benchmark in (first, other)]
        assert clusters[0] == clusters[1]
        if other.layout == "parquet":
            assert [question.id for question in other.requests] == [question.id for question in first.requests]
    for benchmark in (first, *others):
        assert benchmark.missing_images() == []
        for question in benchmark.requests:
            assert [image.read()[:4] in (b"\x89PNG", b"\xff\xd8\xff\xe0") for image in question.images] == [True]


def test_vlmevalkits_pope_holds_the_same_questions():
    official = {(q.prompt, q.gold, *q.fields["splits"]) for q in loaded("pope", "pope").requests}
    kit = {(q.prompt, q.gold, s) for q in loaded("pope", "vlmevalkit/POPE.tsv").requests for s in q.fields["splits"]}
    assert kit == official


def test_mmmu_has_all_images_in_order():
    parquet, tsv = (loaded("mmmu", where) for where in ("mmmu", "vlmevalkit/MMMU_DEV_VAL.tsv"))
    by_id = {question.id: question for question in tsv.requests}
    for question in parquet.requests:
        other = by_id[question.id]
        assert question.prompt == other.prompt and question.gold == other.gold
        assert [image.read() for image in question.images] == [image.read() for image in other.images]
    want = expected("mmmu")["janus_adaptor_messages"]
    assert {question.id: len(question.images) for question in parquet.requests} == {
        name: text.count("<image_placeholder>") for name, text in want.items()
    }


def test_rotated_rows_of_mmbench_show_the_image_of_their_base_row():
    images = {}
    for question in loaded("mmbench", "mmbench").requests:
        images.setdefault(question.cluster, set()).add(question.images[0].read())
    assert len(images) == 7 and all(len(found) == 1 for found in images.values())
    assert max(len(image) for found in images.values() for image in found) > 100_000


@pytest.mark.parametrize(("name", "where"), [("mmbench", "mmbench"), ("seed", "seed_bench"), ("mmmu", "mmmu")])
def test_prompts_are_those_of_the_janus_adaptor(name, where):
    want = expected("seed_bench" if name == "seed" else name)["janus_adaptor_messages"]
    found = {question.id: question for question in loaded(name, where).requests}
    for key, message in want.items():
        question = found[key]
        assert "<image_placeholder>" * len(question.images) + "\n" + question.prompt == message


def test_prompt_of_pope_is_that_of_the_janus_adaptor():
    want = expected("pope")["janus_adaptor_message_of_POPE_tsv_row_0"]
    for where in ("pope", "hf_pope", "vlmevalkit/POPE.tsv"):
        assert want in {f"<image_placeholder>\n{question.prompt}" for question in loaded("pope", where).requests}


def test_prompts_of_llava():
    (benchmark,) = registry.load(DATA / "mmbench", ["mmbench"], protocol="llava")
    assert benchmark.requests[1].prompt == (
        "Is the valve open or shut?\nA. open\nB. shut\nAnswer with the option's letter from the given choices directly."
    )
    assert benchmark.requests[0].prompt.startswith("Cork floats")
    with pytest.raises(UserError, match="--protocol=other"):
        registry.load(DATA / "mmbench", ["mmbench"], protocol="other")
