"""Two runs on the same questions: the paired difference, and the questions that flipped."""

import json

import pytest
from etils import epath

from janus_jax.errors import UserError
from janus_jax.evaluation import job
from janus_jax.evaluation.comparison import compare_runs, is_run
from janus_jax.evaluation.selection import first_requests
from janus_jax.evaluation.statistics import mcnemar
from tests.helpers.yes_no_benchmark import open_yes_no


def scored(benchmark, output, right):
    """A run whose answers to the questions of `right` are right."""
    task = job.Task(benchmark, epath.Path(output) / "yes_no")
    job.hold_task(task, {}, {})
    path = epath.Path(output) / "given.jsonl"
    other = {"yes": "no", "no": "yes"}
    texts = [(q.id, q.gold if q.index in right else other[q.gold]) for q in benchmark.requests]
    path.write_text("".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in texts))
    job.score_predictions(task, path)
    return epath.Path(output)


@pytest.fixture
def benchmark(tmp_path):
    return open_yes_no(tmp_path / "questions.txt", count=40)


def test_difference_flips_and_tests_are_those_of_the_samples(benchmark, tmp_path):
    a = scored(benchmark, tmp_path / "a", set(range(30)))
    b = scored(benchmark, tmp_path / "b", set(range(6, 32)))
    assert is_run(a) and not is_run(epath.Path(tmp_path / "nowhere")) and not is_run(a / "yes_no")
    (found,) = compare_runs(a, b)
    assert (found.benchmark, found.count, found.notes) == ("yes_no", 40, [])
    assert found.differences["mean score"].difference == pytest.approx(100 * (30 - 26) / 40)
    assert found.mcnemar == pytest.approx(mcnemar(6, 2))
    assert [pair[0]["index"] for pair in found.flipped] == [0, 1, 2, 3, 4, 5, 30, 31]

    def f1(right):
        golds = [question.gold for question in benchmark.requests]
        true = sum(gold == "yes" and i in right for i, gold in enumerate(golds))
        wrong = sum(i not in right for i in range(40))
        return 100 * 2 * true / (2 * true + wrong)

    assert found.differences["F1"].difference == pytest.approx(f1(set(range(30))) - f1(set(range(6, 32))))
    low, high = found.differences["F1"].interval
    assert low < found.differences["F1"].difference < high
    assert found.detectable > 0
    assert json.loads(json.dumps(found.to_json()))["flipped"][0] == {"id": "q0", "index": 0, "a": 1.0, "b": 0.0}


def test_only_common_questions_count_and_other_data_is_refused(benchmark, tmp_path):
    a = scored(benchmark, tmp_path / "a", set(range(30)))
    b = scored(first_requests(benchmark, 10), tmp_path / "b", set(range(3)))
    (found,) = compare_runs(a, b)
    assert found.count == 10 and "40 and 10" in found.notes[0]
    path = tmp_path / "questions.txt"
    path.write_text(path.read_text() + "\nred yes")
    c = scored(open_yes_no(path), tmp_path / "c", set())
    with pytest.raises(UserError, match=r"questions\.txt"):
        compare_runs(a, c)
    with pytest.raises(UserError, match="no benchmark"):
        compare_runs(a, epath.Path(tmp_path))
