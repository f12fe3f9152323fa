"""Stored results are scored once complete, held to what they depend on, and written down beside published figures."""

import dataclasses
import json
import os

import pytest
from etils import epath

from janus_jax.errors import UserError
from janus_jax.evaluation import job, results
from janus_jax.evaluation.benchmark import ImageRequest
from janus_jax.evaluation.identity import hold_identity, identify_model, versions
from janus_jax.evaluation.paper import INDEPENDENT, PAPER, Figure
from janus_jax.evaluation.runner import Worker
from janus_jax.evaluation.selection import first_requests, requests_with_ids
from tests.helpers.yes_no_benchmark import Pictures, StubModel, open_yes_no


def stub(task):
    return StubModel()


@pytest.fixture
def benchmark(tmp_path):
    return open_yes_no(tmp_path / "questions.txt", count=60)


@pytest.fixture
def task(benchmark, tmp_path):
    return job.Task(benchmark, epath.Path(tmp_path / "out" / "yes_no"), rows=4, settings={"protocol": "janus"})


@pytest.fixture
def finished(task):
    job.hold_task(task, {}, {})
    outcome = job.evaluate([task], stub)
    assert outcome == job.Outcome(False, [])
    return task


def scores_of(task):
    return json.loads((task.folder / "scores.json").read_text())


def test_scores_and_samples_are_those_of_the_answers(finished, benchmark):
    scores, samples = scores_of(finished), results.read_samples(finished.folder)
    assert [sample["index"] for sample in samples] == list(range(60))
    right = sum(sample["score"] for sample in samples)
    assert scores["metrics"]["accuracy"]["value"] == pytest.approx(100 * right / 60)
    assert scores["counts"]["undecided"] == sum("Perhaps" in sample["text"] for sample in samples) > 0
    first = samples[0]
    assert (first["id"], first["images"], first["text"], first["parsed"], first["gold"]) == (
        "q0",
        ["red.png"],
        "Yes.",
        "yes",
        "no",
    )
    predictions = [json.loads(line) for line in (finished.folder / "predictions.jsonl").read_text().split("\n")[:-1]]
    assert [prediction["text"] for prediction in predictions] == [sample["text"] for sample in samples]


def test_scoring_again_gives_the_same_bytes_and_needs_no_model(finished):
    before = {path.name: path.read_bytes() for path in finished.folder.iterdir() if path.is_file()}
    stored = job.stored_task(dataclasses.replace(finished, rows=7))
    assert stored == finished
    assert job.score_stored(stored, stored.plan()) == []
    assert {path.name: path.read_bytes() for path in finished.folder.iterdir() if path.is_file()} == before


def test_only_the_first_worker_that_finds_everything_finished_scores(finished, monkeypatch):
    monkeypatch.setattr(results, "score", lambda *_, **__: pytest.fail("scored twice"))
    assert job.evaluate([finished], stub, Worker(1, 2)) == job.Outcome(False, [])


def test_a_run_that_is_stopped_goes_on_where_it_was(task):
    job.hold_task(task, {}, {})
    checks = iter([False, False, False, True])
    assert job.evaluate([task], stub, stop=lambda: next(checks)).stopped
    assert len(list((task.folder / "batches").iterdir())) == 3
    assert not (task.folder / "scores.json").exists()
    assert job.score_stored(task, task.plan(), partial=True) == []
    partial = scores_of(task)
    assert partial["metrics"]["accuracy"]["count"] < 60 and "of 60 requests" in partial["notes"][0]
    assert partial["plan_sha256"] is None
    assert not job.evaluate([task], stub).stopped
    assert scores_of(task)["metrics"]["accuracy"]["count"] == 60


def test_nothing_is_scored_while_a_batch_is_missing(finished):
    (finished.folder / "batches" / "000002.jsonl").unlink()
    with pytest.raises(UserError, match="missing"):
        job.score_stored(finished, finished.plan())


def test_predictions_of_another_program_are_scored(task, tmp_path):
    path = epath.Path(tmp_path / "predictions.jsonl")
    answers = [{"index": question.index, "text": question.gold} for question in task.benchmark.requests]
    path.write_text("".join(json.dumps(answer) + "\n" for answer in reversed(answers)))
    assert job.score_predictions(task, path) == []
    assert scores_of(task)["metrics"]["accuracy"]["value"] == 100
    assert "predictions.jsonl" in scores_of(task)["notes"][0]


def test_predictions_do_not_replace_the_answers_of_a_model(finished, tmp_path):
    with pytest.raises(UserError, match="--predictions"):
        job.score_predictions(finished, epath.Path(tmp_path / "questions.txt"))


def test_more_than_one_in_a_hundred_without_an_answer_is_a_problem(tmp_path):
    path = tmp_path / "questions.txt"
    path.write_text("\n".join(["red yes"] * 60 + ["damaged no"]))
    task = job.Task(open_yes_no(path), epath.Path(tmp_path / "out" / "yes_no"))
    job.hold_task(task, {}, {})
    (problem,) = job.evaluate([task], stub).problems
    assert "1.6%" in problem and "damaged.png" in problem
    sample = results.read_samples(task.folder)[60]
    assert (sample["score"], sample["parsed"]) == (0.0, None)
    assert sample["error"].startswith("damaged.png")
    assert scores_of(task)["counts"]["unreadable"] == 1


def test_a_benchmark_that_cannot_be_scored_does_not_stop_the_others(task, tmp_path):
    class Unscorable(Pictures):
        def score(self, folder):
            raise UserError("needs --detections")

    pictures = job.Task(Unscorable((), [ImageRequest(0, "a", "a cat", 2)]), epath.Path(tmp_path / "out" / "pictures"))
    for each in (pictures, task):
        job.hold_task(each, {}, {})
    (problem,) = job.evaluate([pictures, task], stub).problems
    assert "pictures" in problem and "--detections" in problem
    assert len(list((pictures.folder / "images" / "00000").iterdir())) == 2
    assert scores_of(task)["metrics"]["accuracy"]["count"] == 60


def test_a_file_for_the_server_that_cannot_be_written_leaves_the_scores(task):
    class Refusing:
        def write(self, questions, answers, folder):
            raise UserError("needs openpyxl")

    refusing = dataclasses.replace(task, benchmark=dataclasses.replace(task.benchmark, submission=Refusing()))
    job.hold_task(refusing, {}, {})
    (problem,) = job.evaluate([refusing], stub).problems
    assert "openpyxl" in problem
    assert scores_of(task)["metrics"]["accuracy"]["count"] == 60
    assert len(results.read_samples(task.folder)) == 60


@pytest.mark.parametrize(
    ("change", "field", "values"),
    [
        (lambda task: dataclasses.replace(task, rows=5), "rows", ("4", "5")),
        (lambda task: dataclasses.replace(task, settings={"protocol": "llava"}), "protocol", ("janus", "llava")),
        (
            lambda task: dataclasses.replace(task, benchmark=first_requests(task.benchmark, 9)),
            "requests.count",
            ("60", "9"),
        ),
    ],
)
def test_a_run_does_not_go_on_with_something_else(finished, change, field, values):
    changed = change(finished)
    checks = [lambda: job.hold_task(changed, {}, {})]
    if field != "rows":  # scoring takes those that are stored
        checks.append(lambda: job.stored_task(changed))
    for check in checks:
        with pytest.raises(UserError) as error:
            check()
        assert f"{field}=" in str(error.value) and all(value in str(error.value) for value in values)


def test_a_run_does_not_go_on_with_other_options_of_answers_and_scoring_does_not_need_them(task):
    job.hold_task(task, {"max_new_tokens": 128}, {})
    with pytest.raises(UserError, match=r"asked\.max_new_tokens=128, now it is 64"):
        job.hold_task(task, {"max_new_tokens": 64}, {})
    assert job.stored_task(task) == task


def test_other_data_is_refused(finished, tmp_path):
    path = tmp_path / "questions.txt"
    path.write_text(path.read_text().replace("red yes", "red no ", 1))
    changed = dataclasses.replace(finished, benchmark=open_yes_no(path))
    with pytest.raises(UserError, match=r"data\.questions\.txt="):
        job.hold_task(changed, {}, {})


def test_information_is_stored_and_not_compared(tmp_path):
    path = epath.Path(tmp_path / "run.json")
    hold_identity(path, {"model": {"sha256": "a"}}, {"path": "here"})
    hold_identity(path, {"model": {"sha256": "a"}}, {"path": "there"})
    assert json.loads(path.read_text())["information"] == {"path": "here"}
    with pytest.raises(UserError, match=r"model\.sha256='a', now it is 'b'"):
        hold_identity(path, {"model": {"sha256": "b"}}, {})
    with pytest.raises(UserError, match=r"seed=None, now it is 1"):
        hold_identity(path, {"model": {"sha256": "a"}, "seed": 1}, {})


def test_the_identity_of_a_model_is_that_of_its_files_wherever_it_lies(tmp_path):
    for name in ("one", "two"):
        folder = tmp_path / name
        for step in (3, 12):
            (folder / "checkpoints" / str(step) / "params" / "a").mkdir(parents=True)
            (folder / "checkpoints" / str(step) / "params" / "a" / "0").write_text(f"values of {step}")
        (folder / "model.json").write_text("{}")
    one = identify_model(tmp_path / "one")
    assert (one["step"], one["ema"]) == ("12", False)
    assert identify_model(tmp_path / "two") == one
    (tmp_path / "two" / "checkpoints" / "3" / "params" / "a" / "0").write_text("others")
    assert identify_model(tmp_path / "two") == one
    (tmp_path / "two" / "checkpoints" / "12" / "params" / "a" / "0").write_text("others")
    assert identify_model(tmp_path / "two")["sha256"] != one["sha256"]


def test_the_commit_belongs_to_the_versions():
    assert {"jax", "jaxlib", "flax", "commit"} <= versions().keys()


def test_results_stand_beside_published_figures(finished, monkeypatch):
    output = finished.folder.parent
    value = scores_of(finished)["metrics"]["accuracy"]["value"]
    monkeypatch.setitem(PAPER, "janus_pro_1b", {"yes_no": Figure(value - 3, "Table 1")})
    monkeypatch.setitem(INDEPENDENT, "janus_pro_1b", {"yes_no": Figure(50.0, "a user", 60.0)})
    (output / "run.json").write_text(json.dumps({"information": {"preset": "janus_pro_1b"}}))
    content = results.write_results(output)
    paper = content["benchmarks"]["yes_no"]["paper"]
    assert paper["difference"] == pytest.approx(3)
    assert paper["standard_errors"] == pytest.approx(1.5)  # the benchmark says that its standard error is 2
    assert json.loads((output / "results.json").read_text()) == content
    (row,) = results.table_of(content)[1]
    assert row[:2] == ["yes_no", "accuracy"]
    assert row[3:7] == [f"{value - 3:g}", "+3.00 (+1.5 SE, within 2 SE)", "50 to 60", "60"]
    assert "| yes_no | accuracy |" in (output / "results.md").read_text()
    (output / "run.json").unlink()
    assert results.write_results(output)["benchmarks"]["yes_no"]["paper"] is None


def test_samples_are_chosen_by_id_or_index(benchmark):
    assert [question.index for question in requests_with_ids(benchmark, {"q5", "7"}).requests] == [5, 7]
    with pytest.raises(UserError, match="q60"):
        requests_with_ids(benchmark, {"q60"})
    assert first_requests(benchmark, None) is benchmark
    assert len(first_requests(benchmark, 3).requests) == 3


def test_scoring_leaves_no_temporary_files(finished):
    assert not [name for name in os.listdir(finished.folder) if name.startswith(".")]
