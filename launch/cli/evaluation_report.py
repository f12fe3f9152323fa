"""Fills the page of an evaluation with what the files of its output hold."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import PIL.Image
from etils import epath

from janus_jax.data.images import decode_image
from janus_jax.errors import UserError
from janus_jax.evaluation import results
from janus_jax.evaluation.benchmark import Benchmark, ImageBenchmark, Question
from janus_jax.evaluation.identity import INFORMATION
from janus_jax.phases import phase
from janus_jax.reports.evaluation_page import Section, Shown, render
from janus_jax.reports.text import format_table
from janus_jax.storage import write_whole

MAX_SHOWN = 50  # Number of requests that a section shows; fewer where there are more than five benchmarks.
MAX_ON_PAGE = 250  # Number of requests that a page shows, for a size below 10 MB.


def write(
    output: epath.Path, benchmarks: Sequence[Benchmark | ImageBenchmark], images: epath.Path | None = None
) -> str:
    """Writes the results and OUTPUT/report.html; returns the table for a terminal.

    Args:
        benchmarks: those whose images are shown.
        images: folder of generated images that another program made; None is that of the run.
    """
    content = results.write_results(output)
    opened = {benchmark.name: benchmark for benchmark in benchmarks}
    number = min(MAX_SHOWN, MAX_ON_PAGE // max(len(content["benchmarks"]), 1))
    with phase("writing the report"):
        sections = [
            _section(name, scores, output / name, opened.get(name), images or output / name / "images", number)
            for name, scores in content["benchmarks"].items()
        ]
    head, rows = results.table_of(content)
    path, run = output / "report.html", content["run"] or {}
    evaluated = run.get(INFORMATION, {}).get("checkpoint") or "predictions"
    write_whole(path, render(f"Evaluation of {evaluated}", head, rows, sections), shared=True)
    return f"{format_table([head, *rows])}\n\npage: {path}"


def _section(
    name: str,
    scores: Mapping[str, Any],
    folder: epath.Path,
    benchmark: Benchmark | ImageBenchmark | None,
    images: epath.Path,
    number: int,
) -> Section:
    """The part of the page about one benchmark, whose files are in a folder, with up to `number` samples."""
    samples = results.read_samples(folder)
    metric = scores["metrics"].get(scores["headline"])
    summary = "These answers are scored elsewhere."
    if metric is not None:
        summary = f"{scores['headline']}: {results.format_metric(metric)}, from {metric['count']}."
    judged = [sample for sample in samples if _is_judged(sample)]
    wrong = [sample for sample in judged if sample["score"] < 1]
    wrong.sort(key=lambda sample: (sample["parsed"] is not None, sample["score"]))  # the undecided ones first
    chosen = (wrong or samples)[:number]
    shown = images_of_samples(benchmark, images, chosen)
    figures = [(key, results.format_metric(value), value["count"]) for key, value in scores["metrics"].items()]
    return Section(
        name,
        summary,
        [
            ("All figures", [("figure", "value", "number"), *figures]),
            ("Counts", [("answers", "number"), *scores["counts"].items()]),
            *scores["tables"].items(),
        ],
        f"{len(chosen)} of {len(wrong)} that are not right" if wrong else f"{len(chosen)} of {len(samples)}",
        [_shown(sample, shown[sample["index"]]) for sample in chosen],
        scores["notes"],
    )


def images_of_samples(
    benchmark: Benchmark | ImageBenchmark | None, folder: epath.Path, samples: Iterable[Mapping[str, Any]]
) -> dict[int, Sequence[PIL.Image.Image]]:
    """The images of samples by index: those of the questions, or those that were generated.

    Args:
        folder: of generated images.
    """
    requests = {} if benchmark is None else {request.index: request for request in benchmark.requests}
    found: dict[int, Sequence[PIL.Image.Image]] = {}
    for sample in samples:
        request = requests.get(sample["index"])
        if isinstance(request, Question):
            read = [reference.read for reference in request.images]
        else:
            read = [(folder / name.removeprefix("images/")).read_bytes for name in sample["images"]]
        found[sample["index"]] = [image for image in map(_decode, read) if image is not None]
    return found


def _decode(read: Callable[[], bytes]) -> PIL.Image.Image | None:
    """An image; None if it cannot be read, which the sample itself says."""
    try:
        return decode_image(read(), "image")
    except (UserError, OSError):
        return None


def _shown(sample: Mapping[str, Any], images: Sequence[PIL.Image.Image]) -> Shown:
    facts = [("reason", sample["error"])] if sample["error"] else []
    if "text" in sample:
        facts += [("answer", sample["text"]), ("right answer", _as_text(sample["gold"]))]
        if sample["finish"] == "length":
            facts.append(("end", "cut off at the limit of new tokens"))
    if _is_judged(sample):
        facts.append(("read as", _as_text(sample["parsed"])))
    facts += [(name.replace("_", " "), _as_text(value)) for name, value in sample["fields"].items()]
    return Shown(f"{sample['id']} (index {sample['index']})", sample["prompt"], images, facts, _verdict(sample))


def _is_judged(sample: Mapping[str, Any]) -> bool:
    """Whether a sample by itself is right or wrong; an image of a Fréchet distance is not."""
    return sample["score"] is not None and ("text" in sample or sample["parsed"] is not None)


def _verdict(sample: Mapping[str, Any]) -> str:
    if sample["error"]:
        return "no answer"
    if not _is_judged(sample):
        return "not judged"
    if sample["parsed"] is None:
        return "undecided"
    return "right" if sample["score"] >= 1 else "partly right" if sample["score"] > 0 else "wrong"


def _as_text(value: Any) -> str:
    """A JSON value for readers; objects of a list stand on lines of their own."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_as_text(inner)}" for name, inner in value.items() if inner not in ("", None))
    if isinstance(value, list):
        return ("\n" if any(isinstance(inner, Mapping) for inner in value) else ", ").join(map(_as_text, value))
    return "nothing" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
