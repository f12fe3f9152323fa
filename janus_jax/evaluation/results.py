"""Scores the results of a run and writes them down: per benchmark, and all benchmarks as one table.

    OUTPUT/<benchmark>/samples.jsonl   one line per request: what was asked, answered, read, and what it earned
    OUTPUT/<benchmark>/scores.json     all figures of the benchmark
    OUTPUT/<benchmark>/...             the file for the benchmark's official server or script
    OUTPUT/results.json, results.md    the headline of each benchmark beside published figures

Every file depends on the stored answers and the benchmark alone, so that several workers may write it at once.
"""

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from janus_jax.errors import UserError
from janus_jax.evaluation.benchmark import Answer, Benchmark, ImageBenchmark, Question, SampleScore, Scores
from janus_jax.evaluation.identity import INFORMATION
from janus_jax.evaluation.paper import Figure, independent_figure, paper_figure
from janus_jax.evaluation.records import AnswerRecord, ImagesRecord, Record
from janus_jax.storage import read_json, write_json, write_whole

MAX_ERROR_SHARE = 0.01  # Share of requests without a result above which a run ends with exit code 1.
MAX_SCORES_BYTES = 1 << 26
RUN_FILE, RESULTS_FILE = "run.json", "results.json"
SCORES_FILE, SAMPLES_FILE = "scores.json", "samples.jsonl"


def score(
    benchmark: Benchmark | ImageBenchmark,
    records: Mapping[int, Record],
    folder: epath.Path,
    *,
    images: epath.Path | None = None,
    notes: Sequence[str] = (),
    plan_sha256: str | None = None,
) -> None:
    """Scores the results of all requests and writes the files of the benchmark.

    Args:
        records: by index, one for each request.
        folder: OUTPUT/<benchmark>, which exists.
        images: folder of generated images; None is `folder/images`.
        notes: what a reader must know of this run, besides what the benchmark itself says.
        plan_sha256: of the plan whose results these are, if all of them are there; see `is_scored`.

    Raises:
        UserError: the benchmark needs what is not there, such as the detections of GenEval.
    """
    ordered = [records[request.index] for request in benchmark.requests]
    if isinstance(benchmark.requests[0], Question):
        answers = [record.to_answer() for record in ordered if isinstance(record, AnswerRecord)]
        scores = benchmark.score(answers)  # type: ignore[arg-type]
    else:
        scores = benchmark.score(images or folder / "images")  # type: ignore[arg-type]
    samples = (
        _sample(request, record, sample)
        for request, record, sample in zip(benchmark.requests, ordered, scores.samples, strict=True)
    )
    lines = "".join(f"{json.dumps(sample, ensure_ascii=False)}\n" for sample in samples)
    write_whole(folder / SAMPLES_FILE, lines, shared=True)
    content = {**_to_json(benchmark.name, scores, ordered, notes), "plan_sha256": plan_sha256}
    write_json(folder / SCORES_FILE, content, shared=True)


def write_submission(benchmark: Benchmark | ImageBenchmark, records: Mapping[int, Record], folder: epath.Path) -> None:
    """Writes the file for the benchmark's official server or script. Benchmarks of images write theirs themselves.

    The files are made in a folder of this process, and each gets its place in one step.

    Raises UserError for an answer that the form cannot hold, or when an optional library is missing.
    """
    if not isinstance(benchmark.requests[0], Question):
        return
    ordered = [records[request.index] for request in benchmark.requests]
    answers: Any = [record.to_answer() for record in ordered if isinstance(record, AnswerRecord)]
    temporary = folder / f".submission-{uuid.uuid4().hex[:8]}"
    temporary.mkdir()
    try:
        for path in benchmark.write_submission(answers, temporary):
            path.replace(folder / path.relative_to(temporary))
    finally:
        temporary.rmtree()


def is_scored(folder: epath.Path, plan_sha256: str) -> bool:
    """Whether another worker has scored all results of a plan."""
    path = folder / SCORES_FILE
    return path.exists() and read_json(path, MAX_SCORES_BYTES).get("plan_sha256") == plan_sha256


def records_of_answers(answers: Iterable[Answer]) -> dict[int, AnswerRecord]:
    """Answers that another program wrote, as the records of a run."""
    return {
        answer.index: AnswerRecord(
            answer.index, answer.text, answer.num_tokens, answer.finish, answer.error, converted=answer.converted
        )
        for answer in answers
    }


def error_share(records: Mapping[int, Record]) -> float:
    """The share of requests that have no result, such as those with an unreadable image."""
    return sum(bool(record.error) for record in records.values()) / max(len(records), 1)


def read_scores(output: epath.Path) -> dict[str, dict[str, Any]]:
    """The content of the scores.json of each benchmark that was scored, by its name in alphabetical order."""
    folders = sorted((path for path in output.iterdir() if (path / SCORES_FILE).exists()), key=lambda path: path.name)
    return {folder.name: read_json(folder / SCORES_FILE, MAX_SCORES_BYTES) for folder in folders}


def read_samples(folder: epath.Path) -> list[dict[str, Any]]:
    """The lines of the samples.jsonl of OUTPUT/<benchmark>. Raises UserError for a missing or damaged file."""
    path = folder / SAMPLES_FILE
    try:
        lines = [json.loads(line) for line in path.read_text().removesuffix("\n").split("\n")]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON Lines ({error})") from error
    if not all(isinstance(line, dict) and isinstance(line.get("index"), int) for line in lines):
        raise UserError(f"{path}: expected one object with an index per line")
    return lines


def write_results(output: epath.Path) -> dict[str, Any]:
    """Writes results.json and results.md of all benchmarks that were scored; returns the content of results.json.

    Figures stand beside those of the papers where run.json says that the model has the architecture of a released one.
    """
    run = read_json(output / RUN_FILE) if (output / RUN_FILE).exists() else {}
    model = run.get(INFORMATION, {}).get("preset")
    benchmarks = {
        name: {
            **scores,
            "paper": _compare(scores, paper_figure(model or "", name)),
            "users": _compare(scores, independent_figure(model or "", name)),
        }
        for name, scores in read_scores(output).items()
    }
    content = {"model": model, "run": run or None, "benchmarks": benchmarks}
    write_json(output / RESULTS_FILE, content, shared=True)
    head, rows = table_of(content)
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))
    text += (
        "\n\nThe interval is that of 95 %. Differences to the paper are also in standard errors (SE) of our figure.\n"
    )
    notes = [f"- {name}: {note}\n" for name, scores in benchmarks.items() for note in scores["notes"]]
    write_whole(output / "results.md", "\n".join([text, "".join(notes)]) if notes else text, shared=True)
    return content


def table_of(content: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of the table of all benchmarks as text, without columns that are empty.

    Args:
        content: of results.json.
    """
    head = ["benchmark", "figure", "ours", "paper", "difference", "users", "number"]
    head += ["undecided", "truncated", "no answer"]
    rows = []
    for name, scores in content["benchmarks"].items():
        counts = [str(scores["counts"].get(count, "")) for count in ("undecided", "truncated", "unreadable")]
        metric = scores["metrics"].get(scores["headline"])
        if metric is None:
            rows.append([name, "none: scored elsewhere", *[""] * 5, *counts])
            continue
        paper, users = scores["paper"], scores["users"]
        compared = [f"{paper['value']:g}", describe_difference(paper)] if paper else ["", ""]
        of_users = "" if users is None else f"{users['value']:g}"
        if users is not None and users["high"] is not None:
            of_users += f" to {users['high']:g}"
        rows.append(
            [name, scores["headline"], format_metric(metric), *compared, of_users, str(metric["count"]), *counts]
        )
    kept = [place for place in range(len(head)) if not rows or any(row[place] for row in rows)]
    return [head[place] for place in kept], [[row[place] for place in kept] for row in rows]


def format_metric(metric: Mapping[str, Any]) -> str:
    """The value with its 95 % interval."""
    if metric["interval"] is None:
        return f"{metric['value']:.2f}"
    low, high = metric["interval"]
    return f"{metric['value']:.2f} ({low:.2f} to {high:.2f})"


def describe_difference(figure: Mapping[str, Any]) -> str:
    """In words, how far our figure is from a published one."""
    difference = f"{figure['difference']:+.2f}"
    if figure["standard_errors"] is None:
        return difference
    verdict = (
        "within 2 SE" if abs(figure["standard_errors"]) <= 2 else ("above" if figure["difference"] > 0 else "below")
    )
    return f"{difference} ({figure['standard_errors']:+.1f} SE, {verdict})"


def _compare(scores: Mapping[str, Any], figure: Figure | None) -> dict[str, Any] | None:
    """A published figure, and how far the headline is from it."""
    metric = scores["metrics"].get(scores["headline"])
    if figure is None or metric is None:
        return None
    difference = metric["value"] - figure.value
    errors = difference / metric["stderr"] if metric["stderr"] else None
    return {**figure._asdict(), "difference": difference, "standard_errors": errors}


def _to_json(name: str, scores: Scores, records: Sequence[Record], notes: Sequence[str]) -> dict[str, Any]:
    counts = {
        "truncated": sum(isinstance(record, AnswerRecord) and record.finish == "length" for record in records),
        "unreadable": sum(bool(record.error) for record in records),
    }
    return {
        "benchmark": name,
        "headline": scores.headline,
        "metrics": {name: metric._asdict() for name, metric in scores.metrics.items()},
        "counts": {**counts, **scores.counts},
        "tables": scores.tables,
        "notes": [*notes, *scores.notes],
    }


def _sample(request: Any, record: Record, sample: SampleScore) -> dict[str, Any]:
    """A line of samples.jsonl."""
    if sample.index != request.index:
        raise ValueError(f"the score of index {sample.index} stands where that of {request.index} is expected")
    read = {"parsed": sample.parsed, "score": sample.score, "error": record.error, "fields": sample.fields}
    asked = {"index": request.index, "id": request.id, "prompt": request.prompt}
    if isinstance(record, ImagesRecord):
        names = [f"images/{request.index:05d}/{number:05d}.png" for number in range(len(record.images))]
        return {**asked, "images": names, "sha256": record.images, **read}
    return {
        **asked,
        "images": [image.name for image in request.images],
        "sha256": record.images,
        "text": record.text,
        "tokens": record.num_tokens,
        "finish": record.finish,
        "gold": request.gold,
        "cluster": request.cluster,
        **read,
    }
