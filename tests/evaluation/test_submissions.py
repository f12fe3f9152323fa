"""Files for official servers and scripts, written and read back, and predictions of other programs."""

import json

import pytest

from janus_jax.errors import UserError
from janus_jax.evaluation import predictions, registry
from janus_jax.evaluation.benchmark import Answer
from tests.helpers.golden_evaluation import DATA, GOLDEN, expected
from tests.helpers.small_benchmarks import png, write_captions, write_mme, write_mmvet

FOLDERS = {
    "pope": "pope",
    "seed": "seed_bench",
    "vqav2": "vqav2",
    "gqa": "gqa",
    "mmmu": "mmmu",
    "textvqa": "textvqa",
    "chartqa": "chartqa",
}


def loaded(name, folder=None):
    (benchmark,) = registry.load(folder or DATA / FOLDERS[name], [name])
    return benchmark


def golden_answers(name):
    benchmark = loaded(name)
    file = {"seed": "seed_bench"}.get(name, name)
    return benchmark, predictions.read_predictions(benchmark, GOLDEN / f"predictions/{file}.jsonl")


@pytest.mark.parametrize("name", FOLDERS)
def test_a_written_file_scores_the_same(name, tmp_path):
    benchmark, answers = golden_answers(name)
    paths = benchmark.write_submission(answers, tmp_path / "out")
    before, after = benchmark.score(answers), benchmark.score(predictions.read_predictions(benchmark, tmp_path / "out"))
    assert [sample.score for sample in after.samples] == [sample.score for sample in before.samples]
    assert after.metrics[after.headline] == before.metrics[before.headline]
    if len(paths) == 1:  # the file itself can be named as well
        again = predictions.read_predictions(benchmark, paths[0])
        assert again == benchmark.read_submission(tmp_path / "out")


def test_a_part_is_read_from_the_file_of_all(tmp_path):
    for name in ("chartqa", "pope", "gqa"):
        benchmark, answers = golden_answers(name)
        benchmark.write_submission(answers, tmp_path / name)
        found = benchmark.first(3).read_submission(tmp_path / name)
        assert [answer.index for answer in found] == [0, 1, 2]


def test_forms():
    """The fields are those that the official readers ask for."""
    forms = {"seed": ("question_id", "prediction"), "gqa": ("questionId", "prediction")}
    forms |= {"vqav2": ("question_id", "answer"), "textvqa": ("question_id", "answer")}
    for name, (key, text) in forms.items():
        submission = registry.DEFINITIONS[name].submission
        assert (submission.id_field, submission.text_field) == (key, text)


def test_gqa_writes_what_llavas_conversion_wrote(tmp_path):
    benchmark, answers = golden_answers("gqa")
    (path,) = benchmark.write_submission(answers, tmp_path)
    assert path.name == "testdev_balanced_predictions.json"
    assert json.loads(path.read_text()) == expected("gqa")["llava_predictions"]


def test_seed_writes_lines(tmp_path):
    benchmark, answers = golden_answers("seed")
    (path,) = benchmark.write_submission(answers, tmp_path)
    assert [json.loads(line) for line in path.read_text().splitlines()] == expected("seed_bench")["submission"][:15]


def test_vqav2_writes_processed_answers(tmp_path):
    benchmark, answers = golden_answers("vqav2")
    (path,) = benchmark.write_submission(answers, tmp_path)
    written = {str(row["question_id"]): row["answer"] for row in json.loads(path.read_text())}
    assert written == expected("vqav2")["processed_answers"]


def test_pope_reads_the_official_form_and_llavas(tmp_path):
    """{"question", "answer"} in order, or {"question_id", "text"}."""
    benchmark, answers = golden_answers("pope")
    for split in ("random", "popular", "adversarial"):
        asked = [(q, a) for q, a in zip(benchmark.requests, answers, strict=True) if split in q.fields["splits"]]
        official = [{"question": q.fields["question"], "answer": a.text} for q, a in asked]
        llava = [{"question_id": int(q.id.split("/")[1]), "text": a.text} for q, a in reversed(asked)]
        for name, rows in (("official", official), ("llava", llava)):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"pope_{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name in ("official", "llava"):
        found = predictions.read_predictions(benchmark, tmp_path / name)
        assert [answer.text for answer in found] == [answer.text for answer in answers]


def test_mme(tmp_path):
    benchmark = loaded("mme", write_mme(tmp_path / "data"))
    assert [question.fields["task"] for question in benchmark.requests] == ["existence"] * 4 + ["OCR"] * 2
    assert benchmark.requests[0].prompt.endswith(
        "Please answer yes or no.\nAnswer the question using a single word or phrase."
    )
    assert [question.images[0].read() for question in benchmark.requests[::2]] == [
        png((0, 4, 99)),
        png((40, 4, 99)),
        png((0, 2, 99)),
    ]
    texts = ["Yes.", "no", "Yes", "yes,\tI\nthink", "no idea", "No"]
    answers = [Answer(question.index, text) for question, text in zip(benchmark.requests, texts, strict=True)]
    scores = benchmark.score(answers)
    # existence: 3 of 4 right, one of two images whole; OCR: 1 of 2 right, no image whole.
    assert scores.metrics["existence"].value == 75 + 50 and scores.metrics["OCR"].value == 50
    assert scores.metrics["perception"].value == 175 and scores.headline == "perception"
    assert any("position" in note for note in scores.notes)
    paths = benchmark.write_submission(answers, tmp_path / "out")
    assert paths[0].read_text().splitlines()[3].split("\t")[2:] == ["No", "yes, I think"]
    found = predictions.read_predictions(benchmark, tmp_path / "out")
    assert [answer.text for answer in found] == [" ".join(text.split()) for text in texts]


@pytest.mark.parametrize("line", ["1.jpg\tIs it?\tYes\tno", "1.jpg\tIs it?", "1.jpg\tIs it?\tmaybe", ""])
def test_damaged_lines_of_mme(line, tmp_path):
    """The second one is a file of results, which has a column more."""
    data = write_mme(tmp_path)
    (data / "OCR.txt").write_text(line + "\n")
    with pytest.raises(UserError) as error:
        loaded("mme", data)
    assert str(data / "OCR.txt") in str(error.value)


def test_mmvet(tmp_path):
    """Nothing here scores it: the file for the judge is written, with every question."""
    benchmark = loaded("mmvet", write_mmvet(tmp_path / "data"))
    assert benchmark.max_new_tokens == 1024 and "step by step" in benchmark.system_prompt
    answers = [Answer(question.index, f"answer {question.index}") for question in benchmark.requests]
    scores = benchmark.score(answers)
    assert scores.headline == "" and scores.metrics == {} and [s.score for s in scores.samples] == [None, None]
    (path,) = benchmark.write_submission(answers, tmp_path / "out")
    assert json.loads(path.read_text()) == {"v1_0": "answer 0", "v1_1": "answer 1"}


@pytest.mark.parametrize("name", ["coco_captions", "flickr30k"])
def test_captions(name, tmp_path):
    benchmark = loaded(name, write_captions(tmp_path / "data", name))
    assert {question.prompt for question in benchmark.requests} == {
        "Provide a one-sentence caption for the provided image."
    }
    answers = [Answer(question.index, question.gold[0]) for question in benchmark.requests]
    scores = benchmark.score(answers)
    assert scores.metrics["rouge_l"].value == pytest.approx(100) and scores.metrics["bleu_4"].value == pytest.approx(
        100
    )
    assert scores.metrics["cider"].value > 100
    benchmark.write_submission(answers, tmp_path / "out")
    rows = json.loads((tmp_path / "out/predictions.json").read_text())
    assert all(isinstance(row["image_id"], int) for row in rows)
    found = predictions.read_predictions(benchmark, tmp_path / "out/predictions.json")
    assert [answer.text for answer in found] == [answer.text for answer in answers]


def test_mmbench_sheet(tmp_path):
    (benchmark,) = registry.load(DATA / "mmbench", ["mmbench"])
    answers = predictions.read_predictions(benchmark, GOLDEN / "predictions/mmbench.jsonl")
    answers = [answers[0]._replace(text="=A1\x07 or A"), *answers[1:]]
    (path,) = benchmark.write_submission(answers, tmp_path)
    found = predictions.read_predictions(benchmark, path)
    assert [answer.text for answer in found] == ["=A1  or A", *(answer.text for answer in answers[1:])]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="predictions.xlsx"):
        predictions.read_predictions(benchmark, path)


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_lines_by_id_in_any_order(tmp_path):
    benchmark, answers = golden_answers("gqa")
    rows = [{"id": q.id, "text": a.text} for q, a in zip(benchmark.requests, answers, strict=True)]
    assert predictions.read_predictions(benchmark, lines(tmp_path / "a.jsonl", reversed(rows))) == answers


def test_samples_of_our_own_runs_can_be_scored_again(tmp_path):
    benchmark, answers = golden_answers("chartqa")
    rows = [{"index": a.index, "id": "x", "text": a.text, "finish": "stop", "error": ""} for a in answers]
    rows[3] |= {"finish": "length"}
    rows[4] |= {"error": "unreadable image"}
    found = predictions.read_predictions(benchmark, lines(tmp_path / "samples.jsonl", rows))
    scores = benchmark.score(found)
    assert scores.counts["truncated"] == 1 and scores.counts["unreadable"] == 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda rows: rows[:-1], "missing: 15 (1)"),
        (lambda rows: [*rows, rows[2]], "repeated: 2 (1)"),
        (lambda rows: [*rows, {"index": 16, "text": "x"}], "unknown: 16 (1)"),
        (lambda rows: [*rows[:-1], {"index": 15}], "line 16: field 'text'"),
        (lambda rows: [*rows[:-1], {"index": "15", "text": "x"}], "line 16: field 'index'"),
        (lambda rows: [*rows[:-1], {"index": 15, "text": None}], "line 16: field 'text'"),
        (lambda rows: [*rows[:-1], {"index": True, "text": "x"}], "line 16: field 'index'"),
        (lambda rows: [*rows[:-1], ["x"]], "line 16: a list"),
        (lambda rows: [{**row, "id": "?", "index": None} for row in rows], "line 1: field 'index'"),
        (lambda rows: [{"id": "?", "text": "x"} for row in rows], "?, ?"),
        (lambda rows: [], "empty"),
    ],
)
def test_wrong_predictions_are_refused(change, named, tmp_path):
    benchmark, answers = golden_answers("gqa")
    path = lines(tmp_path / "p.jsonl", change([{"index": a.index, "text": a.text} for a in answers]))
    with pytest.raises(UserError) as error:
        predictions.read_predictions(benchmark, path)
    assert named in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"[{", "JSON"),
        (b"\xff\xfe[]", "byte 0"),
        (b"{}", "list"),
        (b"[]", "list"),
        (b'[{"questionId": "00917460", "prediction": 3}]', "'prediction'"),
        (b'[{"questionId": 1.5, "prediction": "x"}]', "'questionId'"),
        (b'[{"questionId": "00917460", "prediction": "\\ud800"}]', "'prediction'"),
        (b'[{"questionId": "00917460", "prediction": "x"}]', "missing: 00917461"),
        (b"[" * 100_000, "JSON"),
        (b"", "JSON"),
    ],
)
def test_damaged_official_predictions_are_refused(content, named, tmp_path):
    path = tmp_path / "testdev_balanced_predictions.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        predictions.read_predictions(loaded("gqa"), path)
    assert named in str(error.value) and str(path) in str(error.value)


def test_a_byte_order_mark_is_removed(tmp_path):
    benchmark, answers = golden_answers("gqa")
    rows = [{"questionId": q.id, "prediction": a.text} for q, a in zip(benchmark.requests, answers, strict=True)]
    path = tmp_path / "testdev_balanced_predictions.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(rows).encode())
    found = predictions.read_predictions(benchmark, path)
    assert [answer.text for answer in found] == [answer.text for answer in answers]


def test_incomplete_answers_are_not_scored():
    benchmark, answers = golden_answers("gqa")
    for wrong in (answers[:-1], [*answers, answers[0]], [answers[1], *answers[1:]], list(reversed(answers))):
        with pytest.raises(UserError, match="do not match"):
            benchmark.score(wrong)


def test_a_part_of_a_benchmark():
    benchmark, answers = golden_answers("pope")
    part = benchmark.first(11)
    assert part.score(answers[:11]).metrics["f1_random"].value == pytest.approx(72.72727272727273)
    assert any("First 11" in note and "not comparable" in note for note in part.notes)
    assert [a.index for a in predictions.read_predictions(part, GOLDEN / "predictions/pope.jsonl")] == list(range(11))
    one = benchmark.only(["popular/503"])
    assert [question.index for question in one.requests] == [13]
    with pytest.raises(UserError, match="999"):
        benchmark.only(["random/999"])
    with pytest.raises(UserError, match="--limit=0"):
        benchmark.first(0)
