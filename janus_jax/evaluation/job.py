"""Evaluates benchmarks one after the other: lets a model do what is not done, then scores it.

Each of several processes runs the same job. Nothing here waits for another process.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from janus_jax.data.preparation.hashes import hash_file
from janus_jax.errors import UserError
from janus_jax.evaluation import results
from janus_jax.evaluation.benchmark import Benchmark, ImageBenchmark, Question
from janus_jax.evaluation.identity import check_identity, hold_identity, identify_requests
from janus_jax.evaluation.plan import Plan, make_plan
from janus_jax.evaluation.predictions import read_predictions
from janus_jax.evaluation.records import BatchFolder, ImagesRecord
from janus_jax.evaluation.runner import ALONE, Model, Progress, Worker, run
from janus_jax.evaluation.selection import requests_at
from janus_jax.phases import phase
from janus_jax.storage import read_json

PLAN_FILE = "plan.json"
ASKED = "asked"  # key of how the model was asked, which scoring does not need
ROWS = 16  # Number of answers or images of a batch, unless the user says another one.


@dataclasses.dataclass(frozen=True)
class Task:
    """A benchmark, or a part of one, and where its results go.

    Attributes:
        folder: OUTPUT/<benchmark>.
        settings: how it was opened, such as the protocol; part of the identity of the results.
        notes: sentences that go with the figures, such as "first 100 questions, not comparable".
    """

    benchmark: Benchmark | ImageBenchmark
    folder: epath.Path
    rows: int = ROWS
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def is_questions(self) -> bool:
        return isinstance(self.benchmark.requests[0], Question)

    def plan(self) -> Plan:
        return make_plan(self.benchmark.requests, self.rows)

    def identity(self, plan: Plan) -> dict[str, Any]:
        """What the stored results depend on, besides the model."""
        with phase(f"hashing the files of {self.benchmark.name}"):
            requests = identify_requests(self.benchmark.requests, self.benchmark.files, plan)
        return {"benchmark": self.benchmark.name, **self.settings, "rows": self.rows, **requests}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How an evaluation ended.

    Attributes:
        stopped: it was asked to stop before everything was done.
        problems: one sentence for each benchmark that was not scored, or of which many requests have no result.
    """

    stopped: bool = False
    problems: Sequence[str] = ()


def evaluate(
    tasks: Sequence[Task],
    model_for: Callable[[Task], Model],
    worker: Worker = ALONE,
    *,
    stop: Callable[[], bool] = lambda: False,
    on_scored: Callable[[], object] = lambda: None,
) -> Outcome:
    """Does the batches that are not done, and scores each benchmark as soon as all its batches are.

    Args:
        model_for: the model that does the work of a task, since benchmarks ask with different options.
        on_scored: called whenever a benchmark is complete, by this worker or another one.

    Raises:
        UserError: the results in the output are of another plan, damaged, or incomplete.
    """
    problems: list[str] = []
    for task in tasks:
        plan = task.plan()
        progress = Progress(task.benchmark.name, plan, "questions" if task.is_questions else "prompts")
        options: dict[str, Any] = {"on_batch": progress} if worker.number == 0 else {}
        if not run(task.benchmark, plan, task.folder, model_for(task), worker, stop=stop, **options):
            return Outcome(True, problems)
        problems += score_stored(task, plan, again=False)
        on_scored()
    return Outcome(False, problems)


def hold_task(task: Task, asked: Mapping[str, Any], information: Mapping[str, Any]) -> None:
    """Stores what the results of a task depend on, or compares it; see `identity.hold_identity`.

    Args:
        asked: how the model is asked, such as the length of answers.
        information: stored for readers.
    """
    task.folder.mkdir(parents=True, exist_ok=True)
    hold_identity(task.folder / PLAN_FILE, {**task.identity(task.plan()), ASKED: asked}, information)


def stored_task(task: Task) -> Task:
    """The task with the size of batches with which its results were stored.

    Raises UserError when nothing is stored, or the results are of other data, prompts or batches.
    """
    path = task.folder / PLAN_FILE
    if not path.exists():
        raise UserError(f"{task.folder}: holds no answers; give --checkpoint, --predictions or another --output")
    rows = read_json(path).get("rows")
    if not isinstance(rows, int) or rows < 1:
        raise UserError(f"{path}: rows={rows!r}, expected a whole number from 1")
    task = dataclasses.replace(task, rows=rows)
    check_identity(path, task.identity(task.plan()), ignored=[ASKED])
    return task


def score_stored(task: Task, plan: Plan, *, partial: bool = False, again: bool = True) -> list[str]:
    """Scores the results in the output, without a model.

    Args:
        partial: score the finished batches where others are missing.
        again: score also what is scored already.

    Returns:
        Problems, as in `Outcome`.

    Raises:
        UserError: results are damaged, or missing without `partial`.
    """
    if not again and results.is_scored(task.folder, plan.sha256):
        return []
    batches = BatchFolder(task.folder, task.benchmark.requests, plan)
    records, benchmark, notes = batches.read(partial), task.benchmark, list(task.notes)
    complete = len(records) == len(benchmark.requests)
    if not records:
        raise UserError(f"{batches.batches}: no batch is finished, so there is nothing to score")
    if not complete:
        notes.append(f"{len(records)} of {len(benchmark.requests)} requests, since the run is not finished")
        benchmark = requests_at(benchmark, records)
    batches.check_images(record for record in records.values() if isinstance(record, ImagesRecord))
    return _score(benchmark, records, task.folder, notes=notes, plan_sha256=plan.sha256 if complete else None)


def score_predictions(task: Task, path: epath.Path) -> list[str]:
    """Scores what another program made: a file of answers, or a folder of images. Returns problems, as in `Outcome`.

    Raises UserError when the file is damaged or incomplete, or the output holds answers of a model.
    """
    if (task.folder / "batches").exists():
        raise UserError(f"{task.folder}: holds the answers of a model; give another --output for --predictions")
    benchmark: Any = task.benchmark
    if task.is_questions:
        records: Any = results.records_of_answers(read_predictions(benchmark, path))
        notes = [*task.notes, f"answers of {path.name}" + (f", SHA-256 {hash_file(path)}" if path.is_file() else "")]
    else:
        records = {request.index: _images_of(request, path) for request in benchmark.requests}
        notes = [*task.notes, f"images of {path.name}"]
    task.folder.mkdir(parents=True, exist_ok=True)
    return _score(benchmark, records, task.folder, images=path, notes=notes)


def _images_of(request: Any, folder: epath.Path) -> ImagesRecord:
    """The record of the images of a request that lie in FOLDER/<index>; the benchmark itself says what is missing."""
    place = folder / f"{request.index:05d}"
    files = sorted(place.glob("*.png")) if place.exists() else []
    return ImagesRecord(request.index, tuple(map(hash_file, files)))


def _score(benchmark: Benchmark | ImageBenchmark, records: Any, folder: epath.Path, **options: Any) -> list[str]:
    """Scores, writes the file for the official server, and returns what the user has to know."""
    try:
        with phase(f"scoring {benchmark.name}"):
            results.score(benchmark, records, folder, **options)
    except UserError as error:
        return [f"{benchmark.name} is not scored: {str(error).removeprefix(f'{benchmark.name}: ')}"]
    problems = []
    try:
        results.write_submission(benchmark, records, folder)
    except UserError as error:  # the scores stand without it
        problems.append(f"{benchmark.name}: the file for its official server is not written: {error}")
    share = results.error_share(records)
    if share > results.MAX_ERROR_SHARE:
        first = next(record for record in records.values() if record.error)
        share_of = f"{share:.1%} of the requests have no result"
        problems.append(f"{benchmark.name}: {share_of}; index {first.index}: {first.error}")
    return problems
