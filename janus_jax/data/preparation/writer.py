"""Writes the records of a job: one part of it, or all parts in this process."""

import contextlib
import dataclasses
import functools
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from janus_jax.data.dropped_samples import DroppedSample, DropReport, Note, NoteCounts
from janus_jax.data.preparation.hashes import hash_file
from janus_jax.data.preparation.job import Job
from janus_jax.data.preparation.output_folder import COUNTS, count_file, finish, finish_part, start
from janus_jax.data.preparation.record import EncodeCodes, PreparedRecord, RecordSettings, prepare_record
from janus_jax.data.records import TASKS, Record, RecordWriter
from janus_jax.data.tokenizer import Tokenizer

EARLY_DROPS = 1000  # Number of drops in a part from which on too high a drop rate stops the job before its end.
REPORT_SECONDS = 2.0


def prepare(job: Job, encode: EncodeCodes | None = None) -> dict[str, Any]:
    """Does the whole job in this process and returns the manifest."""
    for part in start(job):
        write_part(job, part, encode)
    return finish(job)


def write_part(job: Job, part: int, encode: EncodeCodes | None = None) -> None:
    """Writes the files of one part, one per task that it has records of, and then its result.

    Raises:
        UserError: Too many samples were dropped.
    """
    settings = job.settings
    drops, counts, notes = DropReport(), dict.fromkeys(COUNTS, 0), NoteCounts()
    progress = _SampleCount(count_file(job, part))
    with contextlib.ExitStack() as stack:
        files = _PartFiles(job, part, stack)
        waiting: list[PreparedRecord] = []  # Records whose codes are computed together.
        for prepared in _prepared_records(job, part, counts, notes):
            if isinstance(prepared, DroppedSample):
                drops.drop(prepared)
                drops.check(job.max_drop_rate, "--max_drop_rate", EARLY_DROPS)
                continue
            drops.keep()
            progress.update(drops.seen)
            counts["animated_images"] += prepared.animated
            counts["image_metadata_ignored"] += prepared.metadata_ignored
            if not prepared.pixels:
                files.write(prepared.record)
                continue
            waiting.append(prepared)
            if sum(len(each.pixels) for each in waiting) >= settings.code_batch:
                _write_with_codes(waiting, settings, encode, files)
                waiting = []
        if waiting:
            _write_with_codes(waiting, settings, encode, files)
    finish_part(job, part, {"files": files.publish(), "drops": drops.to_json(), "notes": notes.to_json()} | counts)
    progress.close()


def _prepared_records(
    job: Job, part: int, counts: dict[str, int], notes: NoteCounts
) -> Iterator[PreparedRecord | DroppedSample]:
    """The samples of a part, prepared. Those of other tasks than the settings name, and notes, are only counted."""
    tasks = job.settings.tasks
    tokenizer = _open_tokenizer(job.tokenizer) if job.tokenizer else None
    for unit in job.parts[part]:
        is_empty = unit.start == 0
        for record in job.dataset.read(unit):
            is_empty = False
            if isinstance(record, Note):
                notes.add(record)
            elif isinstance(record, DroppedSample):
                yield record
            elif tasks and record.task not in tasks:
                counts["other_tasks"] += 1
            else:
                yield prepare_record(record, job.settings, tokenizer)
        if is_empty:
            notes.add(Note("file without samples"))


class _PartFiles:
    """The files of one part under temporary names. A task's file is opened when its first record comes."""

    def __init__(self, job: Job, part: int, stack: contextlib.ExitStack):
        self._output = epath.Path(job.output)
        self._suffix = f"{part:05d}-of-{len(job.parts):05d}.array_record"
        self._stack = stack
        self._unique = uuid.uuid4().hex  # An engine may run a part twice at the same time.
        self._writers: dict[str, RecordWriter] = {}
        self._tokens: dict[str, int | None] = {}

    def write(self, record: Record) -> None:
        if record.task not in self._writers:
            self._writers[record.task] = self._stack.enter_context(RecordWriter(self._temporary(record.task)))
            self._tokens[record.task] = 0
        self._writers[record.task].write(record)
        total = self._tokens[record.task]
        self._tokens[record.task] = None if total is None or record.tokens is None else total + record.tokens

    def publish(self) -> list[dict[str, Any]]:
        """Gives the closed files their final names; returns what the manifest says about them."""
        files = []
        for task in (task for task in TASKS if task in self._writers):
            temporary, name = self._temporary(task), f"{task}-{self._suffix}"
            files.append(
                {
                    "name": name,
                    "task": task,
                    "records": self._writers[task].count,
                    "tokens": self._tokens[task],
                    "bytes": temporary.stat().length,
                    "sha256": hash_file(temporary),
                }
            )
            temporary.replace(self._output / name)
        return files

    def _temporary(self, name: str) -> epath.Path:
        return self._output / ".incomplete" / f"{name}-{self._suffix}.{self._unique}"


class _SampleCount:
    """Shows in a file how many samples were read of a part that is being written."""

    def __init__(self, path: epath.Path):
        self._path, self._next = path, time.monotonic() + REPORT_SECONDS

    def update(self, samples: int) -> None:
        if time.monotonic() >= self._next:
            self._path.write_text(str(samples))
            self._next = time.monotonic() + REPORT_SECONDS

    def close(self) -> None:
        self._path.unlink(missing_ok=True)


def _write_with_codes(
    batch: Sequence[PreparedRecord], settings: RecordSettings, encode: EncodeCodes | None, files: _PartFiles
) -> None:
    """Computes the codes of a batch and writes its records. Zeros fill the batch up, so that it has only one shape."""
    if encode is None:
        raise ValueError("settings.code_size is set, but there is no image tokenizer to encode with")
    images = np.stack([pixels for prepared in batch for pixels in prepared.pixels])
    codes: list[np.ndarray] = []
    for number in range(0, len(images), settings.code_batch):
        chunk = images[number : number + settings.code_batch]
        padding = ((0, settings.code_batch - len(chunk)), *[(0, 0)] * 3)
        codes += list(np.asarray(encode(np.pad(chunk, padding)))[: len(chunk)])
    first = 0
    for prepared in batch:
        record = prepared.record.with_codes(np.concatenate(codes[first : first + len(prepared.pixels)]))
        first += len(prepared.pixels)
        conditions = record.images[: record.num_conditions]
        files.write(record if settings.keep_images else dataclasses.replace(record, images=conditions))


@functools.lru_cache(maxsize=1)
def _open_tokenizer(path: str) -> Tokenizer:
    return Tokenizer.from_file(path)
