"""Compares two runs, or folders of images: `launch.evaluate --compare`."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import PIL.Image
from etils import epath

from janus_jax.data.images import decode_image
from janus_jax.errors import UserError
from janus_jax.evaluation import results
from janus_jax.evaluation.benchmark import Benchmark, ImageBenchmark
from janus_jax.evaluation.comparison import Comparison, compare_runs, is_run
from janus_jax.evaluation.image_files import images_below
from janus_jax.phases import phase
from janus_jax.reports import evaluation_page, side_by_side
from janus_jax.reports.text import format_table
from janus_jax.storage import write_json, write_whole
from launch.cli.evaluation_report import MAX_ON_PAGE, MAX_SHOWN, images_of_samples

HEAD = ["benchmark", "figure", "A minus B", "95 %", "p", "number", "McNemar p", "seen with 80 % power"]
PROMPTS_FILE = "prompts.txt"  # in a folder of images: one line per image, in the order of their names


def compare(sources: Sequence[str], output: epath.Path, benchmarks: Sequence[Benchmark | ImageBenchmark]) -> str:
    """Writes the comparison of two runs with scores, and of the images of runs or folders; returns what was found.

    Args:
        benchmarks: those whose images are shown beside questions; may be empty.

    Raises UserError for fewer than two sources, or sources that have nothing in common.
    """
    folders = [epath.Path(source) for source in sources]
    missing = [folder for folder in folders if not folder.is_dir()]
    if missing or len(folders) < 2:
        reason = f"{missing[0]} is no folder" if missing else "a single source"
        raise UserError(f"--compare={','.join(sources)}: {reason}, expected two runs, or two or more folders of images")
    found = []
    with phase("comparing"):
        if len(folders) == 2 and all(map(is_run, folders)):
            found.append(_compare_scores(folders[0], folders[1], output, benchmarks))
        names = _common_images(folders)
        found += [_compare_images(folders, name, output) for name in names]
    if not found:
        raise UserError(f"--compare={','.join(sources)}: neither two runs with scores nor folders of images")
    return "\n".join(found)


def _compare_scores(
    a: epath.Path, b: epath.Path, output: epath.Path, benchmarks: Sequence[Benchmark | ImageBenchmark]
) -> str:
    """Writes compare.json and compare.html; returns the table."""
    comparisons = compare_runs(a, b)
    write_json(output / "compare.json", {"a": str(a), "b": str(b), "benchmarks": [c.to_json() for c in comparisons]})
    rows = [row for comparison in comparisons for row in _rows(comparison)]
    opened = {benchmark.name: benchmark for benchmark in benchmarks}
    number = min(MAX_SHOWN, MAX_ON_PAGE // len(comparisons))
    sections = [_section(comparison, opened.get(comparison.benchmark), a, number) for comparison in comparisons]
    page = output / "compare.html"
    write_whole(page, evaluation_page.render(f"A: {a.name}, B: {b.name}", HEAD, rows, sections))
    notes = [f"{comparison.benchmark}: {note}" for comparison in comparisons for note in comparison.notes]
    return "\n".join([format_table([HEAD, *rows]), *notes, f"page: {page}"])


def _rows(comparison: Comparison) -> Iterator[list[str]]:
    for name, found in comparison.differences.items():
        low, high = found.interval
        row = [comparison.benchmark, name, f"{found.difference:+.2f}", f"{low:+.2f} to {high:+.2f}"]
        is_mean = name == "mean score"
        power = f"{comparison.detectable:.2f}" if is_mean else ""
        exact = "" if comparison.mcnemar is None or not is_mean else f"{comparison.mcnemar:.3g}"
        yield [*row, f"{found.p_value:.3g}", str(found.count), exact, power]


def _section(
    comparison: Comparison, benchmark: Benchmark | ImageBenchmark | None, a: epath.Path, number: int
) -> evaluation_page.Section:
    """The requests whose scores differ; the images are those of the questions, or of A."""
    chosen = comparison.flipped[:number]
    images = images_of_samples(benchmark, a / comparison.benchmark / "images", [pair[0] for pair in chosen])
    shown = []
    for first, second in chosen:
        facts = [
            ("A", str(first.get("text", first["parsed"]))),
            ("B", str(second.get("text", second["parsed"]))),
            ("right answer", str(first.get("gold", ""))),
            ("score", f"{first['score']:g} and {second['score']:g}"),
        ]
        verdict = "A is better" if first["score"] > second["score"] else "B is better"
        shown.append(evaluation_page.Shown(first["id"], first["prompt"], images[first["index"]], facts, verdict))
    summary = f"{len(comparison.flipped)} of {comparison.count} scores differ."
    heading = f"{len(chosen)} of {len(comparison.flipped)} that differ"
    return evaluation_page.Section(comparison.benchmark, summary, (), heading, shown, comparison.notes)


class _Source(NamedTuple):
    """The images of one source, by their path in its folder without the ending."""

    name: str
    images: Mapping[str, Any]
    prompts: Mapping[str, str]
    verdicts: Mapping[str, str]


def _common_images(folders: Sequence[epath.Path]) -> list[str]:
    """Names of the benchmarks of which all sources have images; "" where the sources are folders of images."""
    if all(map(is_run, folders)):
        names = [path.parent.name for path in folders[0].glob("*/images")]
        return sorted(name for name in names if all((folder / name / "images").exists() for folder in folders))
    return [""]


def _compare_images(folders: Sequence[epath.Path], benchmark: str, output: epath.Path) -> str:
    """Writes a page with the images of all sources side by side; returns where it is."""
    sources = [_open_source(folder, benchmark) for folder in folders]
    common = [name for name in sources[0].images if all(name in source.images for source in sources)]
    if not common:
        raise UserError(f"--compare: {folders[0]} and the others have no image of the same name")
    names = common[: MAX_ON_PAGE // len(sources)]
    rows = []
    for name in names:
        prompt = next((source.prompts[name] for source in sources if name in source.prompts), name)
        images = [_decode(source.images[name]) for source in sources]
        rows.append(side_by_side.Row(prompt, images, [source.verdicts.get(name, "") for source in sources]))
    scores = _figures(folders, benchmark) if benchmark else []
    note = f"{len(names)} of {len(common)} images that all sources have."
    page = output / (f"images_{benchmark}.html" if benchmark else "images.html")
    title = benchmark or "Images side by side"
    write_whole(page, side_by_side.render(title, [source.name for source in sources], scores, rows, note))
    return f"{note} page: {page}"


def _open_source(folder: epath.Path, benchmark: str) -> _Source:
    root = folder / benchmark / "images" if benchmark else folder
    images = {os.path.splitext(os.path.relpath(image.name, root))[0]: image for image in images_below(root)}
    prompts, verdicts = {}, {}
    if benchmark:
        for sample in results.read_samples(folder / benchmark):
            for path in sample["images"]:
                name = path.removeprefix("images/").removesuffix(".png")
                prompts[name], verdicts[name] = sample["prompt"], str(sample["parsed"] or "")
    elif (folder / PROMPTS_FILE).exists():
        lines = (folder / PROMPTS_FILE).read_text().splitlines()
        if len(lines) != len(images):
            raise UserError(
                f"{folder / PROMPTS_FILE}: {len(lines)} lines, expected one for each of {len(images)} images"
            )
        prompts = dict(zip(images, lines, strict=True))
    return _Source(str(folder), images, prompts, verdicts)


def _figures(folders: Sequence[epath.Path], benchmark: str) -> list[list[str]]:
    """The table of all figures of a benchmark, a column per source."""
    scores = [results.read_scores(folder)[benchmark]["metrics"] for folder in folders]
    names = [name for name in scores[0] if all(name in others for others in scores)]
    rows = [[name, *(results.format_metric(metrics[name]) for metrics in scores)] for name in names]
    return [["figure", *(folder.name for folder in folders)], *rows]


def _decode(image: Any) -> PIL.Image.Image | None:
    try:
        return decode_image(image.read(), image.name)
    except UserError:
        return None
