"""The output folder of a job: what is in it, how a run begins, continues and ends.

OUTPUT/TASK-00003-of-00016.array_record    records of one task
OUTPUT/manifest.json                       counts, tokens, drops and hashes; written when everything else is there
OUTPUT/progress/settings.json              identity of the job, which a repeated run must have too
OUTPUT/progress/00003.json                 result of a finished part, which a repeated run skips
OUTPUT/progress/00003.count                number of samples read so far of an unfinished part
OUTPUT/progress/error.txt                  why a part failed
OUTPUT/.incomplete/                        files that are being written; they are renamed when complete
"""

import contextlib
import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from janus_jax.data.dropped_samples import DropReport, NoteCounts
from janus_jax.data.preparation.hashes import hash_json
from janus_jax.data.preparation.job import Job
from janus_jax.data.records import TASKS
from janus_jax.errors import UserError
from janus_jax.storage import write_whole

# Numbers that the manifest adds up over all parts.
COUNTS = ("other_tasks", "animated_images", "image_metadata_ignored")


def start(job: Job) -> list[int]:
    """Opens the output folder, which is new or of an interrupted run; returns the numbers of the parts to write.

    Raises:
        UserError: The folder holds other files, or was begun with other settings. The message names the first
            setting that differs.
    """
    output = epath.Path(job.output)
    progress = output / "progress"
    settings = progress / "settings.json"
    if settings.exists():
        difference = _difference(_read_json(settings), job.identity)
        if difference:
            raise UserError(f"--output={output}: was begun with {difference}; use the same, or another folder")
    elif output.exists() and not _is_untouched(output):
        raise UserError(f"--output={output}: holds files that are not of this command, expected a new folder")
    else:
        progress.mkdir(parents=True, exist_ok=True)
        write_whole(settings, _to_text(job.identity))
    (output / ".incomplete").mkdir(exist_ok=True)
    _error_file(job).unlink(missing_ok=True)
    return [part for part in range(len(job.parts)) if not _is_finished(job, part)]


def finish_part(job: Job, part: int, result: Mapping[str, Any]) -> None:
    """Records that a part is finished."""
    _write_shared(job, _result_file(job, part), _to_text(result))


def finish(job: Job) -> dict[str, Any]:
    """Writes the manifest and returns it.

    Raises:
        UserError: A part is missing, too many samples were dropped, or there is no record and `job.allow_empty` is
            not set. The message has the first examples. Only in the last case the manifest is written.
    """
    output = epath.Path(job.output)
    drops, counts, notes = DropReport(), dict.fromkeys(COUNTS, 0), NoteCounts()
    files: list[dict[str, Any]] = []
    for part in range(len(job.parts)):
        if not _is_finished(job, part):
            raise UserError(f"--output={output}: part {part} was not written; run the command again")
        result = _read_json(_result_file(job, part))
        drops.merge(DropReport.from_json(result["drops"]))
        counts = {name: counts[name] + result.get(name, 0) for name in counts}  # Older versions knew fewer.
        notes.merge(result.get("notes", {}))
        files += result["files"]
    for note in job.dataset.unread():
        notes.add(note)
    drops.check(job.max_drop_rate, "--max_drop_rate")
    manifest = {
        "format_version": job.identity["format_version"],
        "settings_sha256": hash_json(job.identity),
        "identity": job.identity,
        "tasks": {task: _totals(files, task) for task in TASKS if any(file["task"] == task for file in files)},
        "drops": drops.to_json(),
        "notes": notes.to_json(),
        **counts,
        "files": files,
    }
    write_whole(output / "manifest.json", _to_text(manifest))
    (output / ".incomplete").rmtree(missing_ok=True)
    if not files and not job.allow_empty:
        raise UserError(f"--output={output}: {_why_empty(drops, counts)}; --allow_empty accepts an empty output")
    return manifest


def _why_empty(drops: DropReport, counts: Mapping[str, int]) -> str:
    if not drops.seen and not counts["other_tasks"]:
        return "no record was written, since the input holds no sample"
    others = f"; {counts['other_tasks']:,} records are of other tasks than --task" if counts["other_tasks"] else ""
    dropped = f"; {drops.dropped:,} samples dropped ({drops.describe_reasons()})" if drops.dropped else ""
    return f"no record was written{others}{dropped}" + (f"; first: {drops.describe_examples()}" if dropped else "")


def describe(manifest: Mapping[str, Any]) -> str:
    """The counts of a manifest as lines of text. A notable loss is the last line."""
    lines = []
    for task, totals in manifest["tasks"].items():
        tokens = "" if totals["tokens"] is None else f", {totals['tokens']:,} tokens"
        lines.append(f"{task}: {totals['records']:,} records{tokens} in {totals['files']} files")
    drops = manifest["drops"]
    lines.append(f"dropped: {drops['dropped']:,} of {drops['seen']:,} samples")
    lines += [f"  {reason}: {count:,}" for reason, count in drops["reasons"].items()]
    lines += [f"  {key}: {reason} ({detail})" for key, reason, detail in drops["examples"]]
    if "corrupt" in drops["reasons"]:
        lines.append("  corrupt: what follows the damage in its file or row group is lost and not counted")
    lines += [f"{name.replace('_', ' ')}: {manifest[name]:,}" for name in COUNTS if manifest[name]]
    lines += [f"noted: {text}: {count:,}" for text, count in manifest["notes"].items()]
    lines += filter(None, [DropReport.from_json(drops).notable_loss("the data set")])
    return "\n".join(lines)


def image_tokenizer_of(output: epath.PathLike) -> str:
    """Hash of the image tokenizer that computed the codes in a prepared folder; "" if no manifest tells it."""
    path = epath.Path(output) / "manifest.json"
    try:
        return str(_read_json(path)["identity"]["image_tokenizer_sha256"]) if path.exists() else ""
    except (KeyError, TypeError):  # The manifest of another program.
        return ""


def fail(job: Job, error: UserError) -> None:
    """Stores an error for `failure`. Engines that run workers elsewhere do not return exceptions as they are."""
    _write_shared(job, _error_file(job), str(error))


def failure(job: Job) -> UserError | None:
    """The error that a worker stored."""
    path = _error_file(job)
    return UserError(path.read_text()) if path.exists() else None


def count_file(job: Job, part: int) -> epath.Path:
    """Path of the number of samples that were read so far of an unfinished part."""
    return _progress_file(job, part, "count")


def done(job: Job) -> tuple[int, int]:
    """(finished parts, samples read) so far, while workers write."""
    parts = samples = 0
    for part in range(len(job.parts)):
        path = _result_file(job, part)
        with contextlib.suppress(OSError, ValueError):  # A file that is being replaced.
            if path.exists():
                parts += 1
                samples += _read_json(path)["drops"]["seen"]
            else:
                samples += int(count_file(job, part).read_text())
    return parts, samples


def _result_file(job: Job, part: int) -> epath.Path:
    return _progress_file(job, part, "json")


def _error_file(job: Job) -> epath.Path:
    return epath.Path(job.output) / "progress" / "error.txt"


def _progress_file(job: Job, part: int, suffix: str) -> epath.Path:
    return epath.Path(job.output) / "progress" / f"{part:05d}.{suffix}"


def _write_shared(job: Job, path: epath.Path, text: str) -> None:
    """Writes a file that several processes may write at the same time: an engine may run a part twice at once."""
    temporary = epath.Path(job.output) / ".incomplete" / f"{path.name}.{uuid.uuid4().hex}"
    temporary.write_text(text)
    temporary.replace(path)


def _is_untouched(output: epath.Path) -> bool:
    """Whether a folder is empty, or was left by a run that was killed before it wrote its settings."""
    paths = [
        path for folder in output.iterdir() for path in (folder.iterdir() if folder.name == "progress" else [folder])
    ]
    return all(path.parent.name == "progress" and path.name == ".settings.json.partial" for path in paths)


def _is_finished(job: Job, part: int) -> bool:
    """Whether the result of a part is there, with all files that it names."""
    path = _result_file(job, part)
    if not path.exists():
        return False
    try:
        files = _read_json(path)["files"]
        return all((epath.Path(job.output) / file["name"]).stat().length == file["bytes"] for file in files)
    except (ValueError, KeyError, TypeError, OSError):
        return False


def _totals(files: Sequence[Mapping[str, Any]], task: str) -> dict[str, Any]:
    chosen = [file for file in files if file["task"] == task]
    tokens = [file["tokens"] for file in chosen]
    return {
        "files": len(chosen),
        "records": sum(file["records"] for file in chosen),
        "tokens": None if None in tokens else sum(tokens),
    }


def _difference(old: Any, new: Any, name: str = "") -> str:
    """The first setting that differs, with both values; "" if none does."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*new, *(key for key in old if key not in new)]
        found = (_difference(old.get(key), new.get(key), f"{name}.{key}".lstrip(".")) for key in keys)
        return next((difference for difference in found if difference), "")
    return "" if old == new else f"{name}={old!r}, now {new!r}"


def _read_json(path: epath.Path) -> Any:
    """Raises UserError for a file that is not JSON."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); expected what this command wrote") from error


def _to_text(value: Any) -> str:
    return json.dumps(value, indent=1) + "\n"
