"""Workers that know nothing of each other give the same bytes in any number, and however they end."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from etils import epath

from janus_jax.errors import UserError
from janus_jax.evaluation.benchmark import ImageRequest
from janus_jax.evaluation.plan import make_plan
from janus_jax.evaluation.records import BatchFolder
from janus_jax.evaluation.runner import Progress, StopSignal, Worker, run, unfinished_batches
from tests.helpers import REPOSITORY
from tests.helpers.yes_no_benchmark import Pictures, StubModel, open_yes_no

ROWS = 4


@pytest.fixture
def benchmark(tmp_path):
    return open_yes_no(tmp_path / "questions.txt", count=120)


@pytest.fixture
def plan(benchmark):
    return make_plan(benchmark.requests, ROWS)


def contents(folder):
    """The bytes of all files that are there for readers."""
    paths = (path for path in Path(folder).rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture
def expected(benchmark, plan, tmp_path):
    """The files of one worker that is left alone."""
    folder = epath.Path(tmp_path / "alone")
    assert run(benchmark, plan, folder, StubModel())
    return contents(folder)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_any_number_of_workers_writes_the_same_bytes(benchmark, plan, expected, tmp_path, count):
    folder = epath.Path(tmp_path / "several")
    models = [StubModel(seconds=0.001 * number) for number in range(count)]
    threads = [
        threading.Thread(target=run, args=(benchmark, plan, folder, models[number], Worker(number, count)))
        for number in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert contents(folder) == expected
    records = BatchFolder(folder, benchmark.requests, plan).read()
    answers = [record.to_answer() for record in records.values()]
    assert [answer.index for answer in answers] == list(range(120))
    assert benchmark.score(answers).metrics["accuracy"].count == 120


def test_a_worker_does_its_own_batches_and_then_those_of_others_from_the_end(benchmark, plan, tmp_path):
    batches = BatchFolder(epath.Path(tmp_path / "one"), benchmark.requests, plan)
    batches.create()
    order = []
    for batch in unfinished_batches(plan, batches, Worker(1, 3)):
        order.append(batch.number)
        batches.write(batch, StubModel().answer([benchmark.requests[position] for position in batch.positions]))
    total, own = len(plan.batches), len(plan.batches[1::3])
    assert order[:own] == list(range(1, total, 3))
    rest = [number for number in range(total) if number % 3 != 1]
    assert order[own:] == [*reversed(rest[:-1]), rest[-1]]  # each worker begins at another place from the end


def test_equal_questions_are_answered_once(benchmark, plan, tmp_path):
    asked = []

    class Counting(StubModel):
        def answer(self, questions):
            asked.extend((question.prompt, question.images) for question in questions)
            return super().answer(questions)

    folder = epath.Path(tmp_path / "once")
    run(benchmark, plan, folder, Counting())
    assert len(asked) == len(set(asked)) == plan.num_distinct < plan.num_requests
    records = BatchFolder(folder, benchmark.requests, plan).read()
    assert {len({records[position].text for position in group}) for b in plan.batches for group in b.groups} == {1}


class Workers:
    """Worker processes on one folder, ended by their ids."""

    def __init__(self, benchmark, folder, log):
        self._file, self._folder, self._log, self.all = benchmark.files[0], folder, log, []

    def start(self, number, count, seconds, *more):
        arguments = [self._file, self._folder, number, count, seconds, self._log, *more]
        command = [sys.executable, "-m", "tests.helpers.evaluation_worker", *map(str, arguments)]
        output = open(f"{self._log}.{len(self.all)}", "w+")  # noqa: SIM115  closed with the process
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT)
        self.all.append(process)
        return process

    def wait_for_batches(self, number):
        """Until that many batches are written."""
        end = time.monotonic() + 60
        while len(list((self._folder / "batches").glob("[0-9]*"))) < number:
            assert time.monotonic() < end
            time.sleep(0.005)


@pytest.fixture
def workers(benchmark, tmp_path):
    (tmp_path / "out" / "batches").mkdir(parents=True)
    found = Workers(benchmark, tmp_path / "out", tmp_path / "log")
    yield found
    for process in found.all:
        if process.poll() is None:
            process.kill()
        process.wait(timeout=60)


def test_ten_kills_at_random_moments_change_no_byte_and_cost_at_most_a_batch_of_each_worker(
    workers, plan, expected, tmp_path
):
    rng = random.Random(3)
    lost = 0
    for _ in range(5):  # at least ten kills, with restarts as another number of workers
        count = rng.choice([2, 3])
        running = [workers.start(number, count, 0.02) for number in range(count)]
        workers.wait_for_batches(min(len(contents(tmp_path / "out")) + rng.randint(1, 4), len(plan.batches)))
        time.sleep(rng.random() * 0.03)
        for process in running:
            process.kill()
            process.wait(timeout=60)
        lost += count
    assert workers.start(0, 1, 0.0).wait(timeout=60) == 0
    assert contents(tmp_path / "out") == expected
    answered = len((tmp_path / "log").read_text().splitlines())
    assert answered <= len(plan.batches) + lost


def test_of_four_workers_one_killed_one_raising_and_one_stopped_the_fourth_finishes(workers, plan, expected, tmp_path):
    killed, raising = workers.start(0, 4, 0.05), workers.start(1, 4, 0.01, 3)
    stopped, fourth = workers.start(2, 4, 0.05), workers.start(3, 4, 0.05)
    workers.wait_for_batches(4)
    killed.kill()
    os.kill(stopped.pid, signal.SIGSTOP)
    assert fourth.wait(timeout=60) == 0
    assert raising.wait(timeout=60) == 1
    assert stopped.poll() is None
    assert contents(tmp_path / "out") == expected


def test_a_sigterm_stops_after_the_batch_in_flight(workers, plan, tmp_path):
    process = workers.start(0, 1, 0.1)
    workers.wait_for_batches(2)
    process.terminate()
    assert process.wait(timeout=60) == 75
    written = len(contents(tmp_path / "out"))
    assert 2 <= written < len(plan.batches)
    assert written == len((tmp_path / "log").read_text().splitlines())  # nothing was computed in vain


def test_a_stop_signal_is_noted_and_the_old_handler_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
    assert signal.getsignal(signal.SIGTERM) == before


def test_images_are_written_before_their_batch_with_their_hashes(tmp_path):
    pictures = Pictures((), [ImageRequest(index, str(index), "a cat", 2) for index in range(3, 8)])
    plan = make_plan(pictures.requests, rows=4)
    folder = epath.Path(tmp_path / "pictures")
    assert run(pictures, plan, folder, StubModel())
    batches = BatchFolder(folder, pictures.requests, plan)
    records = batches.read()
    assert list(records) == [3, 4, 5, 6, 7]
    batches.check_images(records.values())
    assert {len(record.images) for record in records.values()} == {2}
    assert len({sha256 for record in records.values() for sha256 in record.images}) == 10
    (folder / "images" / "00004" / "00001.png").write_bytes(b"another")
    with pytest.raises(UserError, match=r"00004/00001\.png"):
        batches.check_images(records.values())


def remove_line(path):
    path.write_text(path.read_text().partition("\n")[2])


def repeat_line(path):
    path.write_text(path.read_text() + path.read_text().partition("\n")[0])


def foreign_index(path):
    line = json.loads(path.read_text().partition("\n")[0])
    path.write_text(json.dumps({**line, "index": 1000}))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (remove_line, "missing"),
        (repeat_line, "repeated"),
        (foreign_index, "not of the benchmark"),
        (lambda path: path.unlink(), "missing"),
        (lambda path: path.with_name("000999.jsonl").write_bytes(path.read_bytes()), "repeated"),
        (lambda path: path.write_text("{"), "000003.jsonl"),
        (lambda path: path.write_bytes(b"\xff"), "000003.jsonl"),
        (lambda path: path.write_text('{"index": "a"}\n'), "000003.jsonl"),
        (lambda path: path.write_text("[]\n"), "000003.jsonl"),
    ],
)
def test_a_record_that_is_missing_repeated_or_extra_is_named(benchmark, plan, tmp_path, damage, named):
    folder = epath.Path(tmp_path / "damaged")
    run(benchmark, plan, folder, StubModel())
    batches = BatchFolder(folder, benchmark.requests, plan)
    damage(folder / "batches" / "000003.jsonl")
    with pytest.raises(UserError) as error:
        batches.read()
    assert named in str(error.value)
    if named in ("missing", "repeated"):
        first = plan.batches[3].positions[0]
        assert str(first) in str(error.value)


def test_a_partial_run_has_the_finished_batches_only(benchmark, plan, tmp_path):
    folder = epath.Path(tmp_path / "partial")
    run(benchmark, plan, folder, StubModel())
    (folder / "batches" / "000003.jsonl").unlink()
    records = BatchFolder(folder, benchmark.requests, plan).read(partial=True)
    assert set(range(120)) - records.keys() == set(plan.batches[3].positions)


def test_progress_counts_what_this_run_did_and_says_how_long_it_takes(plan, capsys):
    times = iter([0.0, 0.0, 4.0, 20.0, 40.0])
    progress = Progress("pope", plan, "answers", clock=lambda: next(times))
    total = len(plan.batches)
    for done in (2, 3, 6, total):
        batches = SimpleNamespace(finished=lambda done=done: range(done))
        progress(batches, is_last=done == total)
    first, second, last = capsys.readouterr().out.splitlines()
    assert first == f"pope: 2/{total} batches"
    rate = plan.num_distinct / total * 4 / 20
    assert second == f"pope: 6/{total} batches, {rate:.3g} answers/s, {(total - 6) * 5:.0f} s left"
    assert last.startswith(f"pope: {total}/{total} batches, ") and "left" not in last
