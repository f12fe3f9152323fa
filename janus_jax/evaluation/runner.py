"""Lets a model do the batches of a plan, on any number of workers that know nothing of each other.

A worker is a process with devices of its own. It does the batches whose number is its own modulo the number of workers,
and then takes batches of others that are not finished. So it never waits for anyone: a worker that was killed, failed
or hangs only leaves its batches to the others. Two workers may do the same batch at the same time; they then write the
same file twice.
"""

import signal
import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from etils import epath

from janus_jax.evaluation.benchmark import Benchmark, ImageBenchmark, ImageRequest, Question
from janus_jax.evaluation.plan import Plan, PlannedBatch
from janus_jax.evaluation.records import AnswerRecord, BatchFolder, ImagesRecord, Record


class Model(Protocol):
    """What does the work of a batch. The results of a request must not depend on the worker."""

    def answer(self, questions: Sequence[Question]) -> Sequence[AnswerRecord]:
        """One record per question, also where it could not be answered."""
        ...

    def generate(self, requests: Sequence[ImageRequest]) -> Sequence[Sequence[bytes] | str]:
        """The PNG files of each request, or why there are none."""
        ...


class Worker(NamedTuple):
    """One of several processes that share the work."""

    number: int = 0
    total: int = 1  # number of them


ALONE = Worker()


class StopSignal:
    """Turns the first SIGTERM into a request to stop after the batch in flight. A second one ends the process."""

    def __enter__(self) -> "StopSignal":
        self.requested = False
        # Python lets only the main thread set handlers. Elsewhere, the caller has to end the work in its own way.
        self._previous = None
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _request(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        self.requested = True
        signal.signal(number, signal.SIG_DFL)


def run(
    benchmark: Benchmark | ImageBenchmark,
    plan: Plan,
    folder: epath.Path,
    model: Model,
    worker: Worker = ALONE,
    *,
    stop: Callable[[], bool] = lambda: False,
    on_batch: Callable[[BatchFolder, bool], object] = lambda batches, is_last: None,
) -> bool:
    """Does batches until none is left, by this worker or by others.

    Args:
        folder: OUTPUT/<benchmark>.
        stop: asked between batches whether to stop.
        on_batch: called at the start, after each batch of this worker, and with True when all are finished.

    Returns:
        Whether all batches are finished; otherwise `stop` said to stop. A run that goes on later keeps what is written.
    """
    batches = BatchFolder(folder, benchmark.requests, plan)
    batches.create()
    on_batch(batches, False)
    for batch in unfinished_batches(plan, batches, worker):
        if stop():
            return False
        batches.write(batch, _results(benchmark, batch, batches, model))
        on_batch(batches, False)
    on_batch(batches, True)
    return True


def unfinished_batches(plan: Plan, batches: BatchFolder, worker: Worker) -> Iterator[PlannedBatch]:
    """The worker's own batches that are not finished, then those of others, each looked up when it is asked for.

    The batches of others are taken from the end, which their owners reach last. Workers that help at the same time
    begin at different places, so that they rarely do the same batch.
    """
    for batch in plan.batches[worker.number :: worker.total]:
        if not batches.is_finished(batch.number):
            yield batch
    while True:
        finished = batches.finished()  # listed once for many batches, since listing a bucket takes long
        pending = [batch for batch in reversed(plan.batches) if batch.number not in finished]
        if not pending:
            return
        first = worker.number % len(pending)
        for batch in pending[first:] + pending[:first]:
            if not batches.is_finished(batch.number):
                yield batch


def _results(
    benchmark: Benchmark | ImageBenchmark, batch: PlannedBatch, batches: BatchFolder, model: Model
) -> list[Record]:
    """The results of a batch; the images are written at once."""
    requests = benchmark.requests
    asked = [requests[group[0]] for group in batch.groups]
    if isinstance(asked[0], Question):
        answers = model.answer([request for request in asked if isinstance(request, Question)])
        return [
            record._replace(index=requests[position].index)
            for group, record in zip(batch.groups, answers, strict=True)
            for position in group
        ]
    images = model.generate([request for request in asked if isinstance(request, ImageRequest)])
    records: list[Record] = []
    for request, made in zip(asked, images, strict=True):
        if isinstance(made, str):
            records.append(ImagesRecord(request.index, (), made))
        else:
            records.append(batches.write_images(request.index, made))
    return records


class Progress:
    """Counts the batches that all workers have finished, and prints it once in `seconds` and at the end."""

    def __init__(
        self, name: str, plan: Plan, unit: str, seconds: float = 10.0, clock: Callable[[], float] = time.monotonic
    ):
        self._name, self._plan, self._unit, self._seconds, self._clock = name, plan, unit, seconds, clock
        self._start = self._shown = clock()
        self._before: int | None = None  # finished batches when this process began
        self._done = -1  # number that was printed last

    def __call__(self, batches: BatchFolder, is_last: bool) -> None:
        """The `on_batch` of `run`."""
        total, now = len(self._plan.batches), self._clock()
        if self._before is not None and not is_last and now - self._shown < self._seconds:
            return
        done = len(batches.finished())
        self._before = done if self._before is None else self._before
        self._shown = now
        if done == self._done:
            return
        self._done = done
        per_second = (done - self._before) / max(now - self._start, 1e-9)
        requests = self._plan.num_distinct / total
        line = f"{self._name}: {done}/{total} batches"
        if per_second > 0:
            left = (total - done) / per_second
            line += f", {requests * per_second:.3g} {self._unit}/s" + (f", {_duration(left)} left" if left else "")
        print(line, flush=True)


def _duration(seconds: float) -> str:
    """Whole minutes, or seconds below two minutes."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
