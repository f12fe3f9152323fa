"""A source -> ArrayRecord shards with a manifest: the work of one output shard, and the folder around it.

OUTPUT/TASK-00003-of-00016.array_record    records of one task
OUTPUT/manifest.json                       counts, tokens, drops, hashes; there only when all is done
OUTPUT/progress/settings.json              what a rerun must agree with
OUTPUT/progress/00003.json                 a finished shard; it is skipped by a rerun
OUTPUT/.incomplete/                        shards being written, renamed when complete

A shard is a pure function of (source, settings, tokenizer, image tokenizer, its number), so it does not matter which
process writes it, how often or when one is killed.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from janus_jax.data.dropped_samples import Bad, DropReport
from janus_jax.data.formats.base import Source, Unit
from janus_jax.data.preparation.record import EncodeCodes, Prepared, Settings, prepare_record
from janus_jax.data.records import FORMAT_VERSION as RECORD_VERSION
from janus_jax.data.records import TASKS, RecordWriter
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.errors import UserError

FORMAT_VERSION = 1
EARLY_DROPS = 1000  # within a shard, a rate over this many drops is worth stopping for
REPORT_SECONDS = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that a worker process needs. Make one with `make_job`."""

    source: Source
    output: str
    settings: Settings
    tokenizer: str  # path of a tokenizer.json, or ""
    max_drop_rate: float
    shards: tuple[tuple[Unit, ...], ...]
    identity: Mapping[str, Any]  # all that decides the bytes; another identity is refused


def make_job(
    source: Source,
    output: epath.PathLike,
    settings: Settings,
    *,
    num_shards: int,
    tokenizer: str = "",
    max_drop_rate: float = 0.1,
    image_tokenizer: str = "",
) -> Job:
    """Cuts the source into shards; writes nothing.

    Args:
        num_shards: of the output; fewer when the source has fewer units.
        image_tokenizer: a hash of the parameters that compute the codes.

    Raises:
        UserError: a source without samples, an unreadable tokenizer, numbers out of range.
    """
    if num_shards < 1:
        raise UserError(f"--num_shards={num_shards}: expected at least 1")
    if not 0 <= max_drop_rate <= 1:
        raise UserError(f"--max_drop_rate={max_drop_rate}: expected 0 .. 1")
    if tokenizer:
        Tokenizer.from_file(tokenizer)
    units = source.units()
    if not units:
        raise UserError("--input: the files are empty")
    count = min(num_shards, len(units))
    shards = tuple(tuple(units[i * len(units) // count : (i + 1) * len(units) // count]) for i in range(count))
    paths = sorted({unit.path for unit in units})
    versions = {path: _version(path) for path in paths if epath.Path(path).exists()}  # records in memory have none
    identity = {
        "format_version": FORMAT_VERSION,
        "record_version": RECORD_VERSION,
        "source": source.identity(),
        "input_sha256": _hash_json([versions, units]),
        "settings": dataclasses.asdict(settings),
        "tokenizer_sha256": _hash_file(epath.Path(tokenizer)) if tokenizer else "",
        "image_tokenizer_sha256": image_tokenizer,
        "num_shards": count,
    }
    return Job(
        source=source,
        output=str(output),
        settings=settings,
        tokenizer=tokenizer,
        max_drop_rate=max_drop_rate,
        shards=shards,
        identity=json.loads(json.dumps(identity)),
    )


def prepare(job: Job, encode: EncodeCodes | None = None) -> dict[str, Any]:
    """All of it in this process: `start`, `write_shard` for each shard, `finish`; returns the manifest."""
    for shard in start(job):
        write_shard(job, shard, encode)
    return finish(job)


def start(job: Job) -> list[int]:
    """Opens the output folder, new or of an interrupted run with the same settings; returns the shards left to write.

    Raises:
        UserError: the folder holds something else, or was begun with other settings; names the first that differs.
    """
    output = epath.Path(job.output)
    progress = output / "progress"
    begun = progress / "settings.json"
    if begun.exists():
        difference = _difference(_read_json(begun), job.identity)
        if difference:
            raise UserError(f"--output={output}: was begun with {difference}; use the same, or another folder")
    elif output.exists() and not _untouched(output):
        raise UserError(f"--output={output}: holds files that are not of this command, expected a new folder")
    else:
        progress.mkdir(parents=True, exist_ok=True)
        _write_json(begun, job.identity)
    (output / ".incomplete").mkdir(exist_ok=True)
    (progress / "error.txt").unlink(missing_ok=True)
    return [shard for shard in range(len(job.shards)) if not _finished(job, shard)]


def write_shard(job: Job, shard: int, encode: EncodeCodes | None = None) -> None:
    """Writes one shard's files (one per task that it has records of) and then its progress file.

    Raises:
        UserError: more bad samples than allowed.
    """
    output, settings = epath.Path(job.output), job.settings
    tokenizer = _tokenizer(job.tokenizer) if job.tokenizer else None
    drops, counts = DropReport(), {"other_tasks": 0, "animated_images": 0}
    live = _Live(output / "progress" / f"{shard:05d}.count")
    with contextlib.ExitStack() as stack:
        files = _ShardFiles(output, shard, len(job.shards), stack)
        waiting: list[Prepared] = []  # for their codes
        for unit in job.shards[shard]:
            for item in job.source.read(unit):
                if not isinstance(item, Bad) and settings.tasks and item.task not in settings.tasks:
                    counts["other_tasks"] += 1
                    continue
                prepared = item if isinstance(item, Bad) else prepare_record(item, settings, tokenizer)
                if isinstance(prepared, Bad):
                    drops.drop(prepared)
                    drops.check(job.max_drop_rate, "--max_drop_rate", EARLY_DROPS)
                    continue
                drops.keep()
                live.update(drops.seen)
                counts["animated_images"] += prepared.animated
                if prepared.pixels is None:
                    files.write(prepared)
                    continue
                waiting.append(prepared)
                if len(waiting) == settings.code_batch:
                    _write_with_codes(waiting, settings, encode, files)
                    waiting = []
        if waiting:
            _write_with_codes(waiting, settings, encode, files)
    result = {"files": files.publish(), "drops": drops.to_json()} | counts
    _write_json(_progress_file(job, shard), result)
    live.close()


def finish(job: Job) -> dict[str, Any]:
    """Writes the manifest and returns it.

    Raises:
        UserError: a shard is not there, or more samples were bad than allowed: the first ten offenders.
    """
    output = epath.Path(job.output)
    drops, counts, files = DropReport(), {"other_tasks": 0, "animated_images": 0}, []
    for shard in range(len(job.shards)):
        if not _finished(job, shard):
            raise UserError(f"--output={output}: shard {shard} was not written; run the command again")
        result = _read_json(_progress_file(job, shard))
        drops.merge(DropReport.from_json(result["drops"]))
        counts = {name: counts[name] + result[name] for name in counts}
        files += result["files"]
    drops.check(job.max_drop_rate, "--max_drop_rate")
    manifest = {
        "format_version": FORMAT_VERSION,
        "settings_sha256": _hash_json(job.identity),
        "identity": job.identity,
        "tasks": {task: _totals(files, task) for task in TASKS if any(file["task"] == task for file in files)},
        "drops": drops.to_json(),
        **counts,
        "files": files,
    }
    _write_json(output / "manifest.json", manifest)
    (output / ".incomplete").rmtree(missing_ok=True)
    return manifest


def image_tokenizer_of(output: epath.PathLike) -> str:
    """The hash of the image tokenizer that made the codes of a prepared folder; "" where no manifest tells it."""
    path = epath.Path(output) / "manifest.json"
    try:
        return str(_read_json(path)["identity"]["image_tokenizer_sha256"]) if path.exists() else ""
    except (KeyError, TypeError):  # the manifest of another program
        return ""


def fail(job: Job, error: UserError) -> None:
    """Leaves an error for `failure`: engines that run workers elsewhere do not bring exceptions back as they are."""
    _write_text(epath.Path(job.output) / "progress" / "error.txt", str(error))


def failure(job: Job) -> UserError | None:
    """The error that a worker left."""
    path = epath.Path(job.output) / "progress" / "error.txt"
    return UserError(path.read_text()) if path.exists() else None


def done(job: Job) -> tuple[int, int]:
    """(finished shards, samples read so far) while workers write; for showing progress."""
    shards = samples = 0
    for shard in range(len(job.shards)):
        path = _progress_file(job, shard)
        with contextlib.suppress(OSError, ValueError):  # a file that is just being replaced
            if path.exists():
                shards += 1
                samples += _read_json(path)["drops"]["seen"]
            else:
                samples += int(path.with_suffix(".count").read_text())
    return shards, samples


class _ShardFiles:
    """The files of one shard under temporary names, opened when a task first occurs."""

    def __init__(self, output: epath.Path, shard: int, num_shards: int, stack: contextlib.ExitStack):
        self._output, self._suffix, self._stack = output, f"{shard:05d}-of-{num_shards:05d}.array_record", stack
        self._unique = uuid.uuid4().hex  # an engine may run a shard twice at once
        self._writers: dict[str, RecordWriter] = {}
        self._tokens: dict[str, int | None] = {}

    def write(self, prepared: Prepared) -> None:
        record = prepared.record
        if record.task not in self._writers:
            self._writers[record.task] = self._stack.enter_context(RecordWriter(self._temporary(record.task)))
            self._tokens[record.task] = 0
        self._writers[record.task].write(record)
        total = self._tokens[record.task]
        self._tokens[record.task] = None if total is None or record.tokens is None else total + record.tokens

    def publish(self) -> list[dict[str, Any]]:
        """Gives the closed files their names; returns what the manifest says about them."""
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
                    "sha256": _hash_file(temporary),
                }
            )
            temporary.replace(self._output / name)
        return files

    def _temporary(self, task: str) -> epath.Path:
        return self._output / ".incomplete" / f"{task}-{self._suffix}.{self._unique}"


class _Live:
    """The number of samples read of a shard that is being written, for people."""

    def __init__(self, path: epath.Path):
        self._path, self._next = path, time.monotonic() + REPORT_SECONDS

    def update(self, samples: int) -> None:
        if time.monotonic() >= self._next:
            self._path.write_text(str(samples))
            self._next = time.monotonic() + REPORT_SECONDS

    def close(self) -> None:
        self._path.unlink(missing_ok=True)


def _write_with_codes(
    batch: Sequence[Prepared], settings: Settings, encode: EncodeCodes | None, files: _ShardFiles
) -> None:
    """Computes the codes of a batch, filled up with zeros to one shape, and writes its records."""
    if encode is None:
        raise ValueError("settings.code_size is set, but there is no image tokenizer to encode with")
    images = [prepared.pixels for prepared in batch if prepared.pixels is not None]
    padding = ((0, settings.code_batch - len(images)), *[(0, 0)] * 3)
    for prepared, codes in zip(batch, np.asarray(encode(np.pad(np.stack(images), padding))), strict=False):
        record = prepared.record.with_codes(codes)
        if not settings.keep_images:
            record = dataclasses.replace(record, images=())
        files.write(dataclasses.replace(prepared, record=record))


@functools.lru_cache(maxsize=1)
def _tokenizer(path: str) -> Tokenizer:
    return Tokenizer.from_file(path)


def _untouched(output: epath.Path) -> bool:
    """Whether a folder is empty, or was left by a run that was killed before it wrote its settings."""
    paths = [
        path for folder in output.iterdir() for path in (folder.iterdir() if folder.name == "progress" else [folder])
    ]
    return all(path.parent.name == "progress" and path.name.startswith("settings.json.") for path in paths)


def _finished(job: Job, shard: int) -> bool:
    """Whether the shard's progress file and all files that it names are there."""
    path = _progress_file(job, shard)
    if not path.exists():
        return False
    try:
        files = _read_json(path)["files"]
        return all((epath.Path(job.output) / file["name"]).stat().length == file["bytes"] for file in files)
    except (ValueError, KeyError, TypeError, OSError):
        return False


def _progress_file(job: Job, shard: int) -> epath.Path:
    return epath.Path(job.output) / "progress" / f"{shard:05d}.json"


def _totals(files: Sequence[Mapping[str, Any]], task: str) -> dict[str, Any]:
    chosen = [file for file in files if file["task"] == task]
    tokens = [file["tokens"] for file in chosen]
    return {
        "files": len(chosen),
        "records": sum(file["records"] for file in chosen),
        "tokens": None if None in tokens else sum(tokens),
    }


def _difference(old: Any, new: Any, name: str = "") -> str:
    """The first setting that differs, "" if none does."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*new, *(key for key in old if key not in new)]
        found = (_difference(old.get(key), new.get(key), f"{name}.{key}".lstrip(".")) for key in keys)
        return next((difference for difference in found if difference), "")
    return "" if old == new else f"{name}={old!r}, now {new!r}"


def _version(path: epath.PathLike) -> tuple[float, float]:
    """(size, time of the last change) of an input file or folder: reading it all to compare would take too long."""
    status = epath.Path(path).stat()
    return status.length, status.mtime


def _hash_file(path: epath.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _read_json(path: epath.Path) -> Any:
    """Raises UserError for a file that is not JSON."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); expected what this command wrote") from error


def _write_json(path: epath.Path, value: Any) -> None:
    _write_text(path, json.dumps(value, indent=1) + "\n")


def _write_text(path: epath.Path, text: str) -> None:
    """Appears complete or not at all."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    temporary.write_text(text)
    temporary.replace(path)
