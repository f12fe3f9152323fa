"""Looks benchmarks up in training data: `launch.evaluate --contamination`."""

from collections.abc import Sequence

from etils import epath

from janus_jax.data.record_reader import open_records
from janus_jax.evaluation import results
from janus_jax.evaluation.benchmark import Benchmark, ImageBenchmark
from janus_jax.evaluation.contamination import Index, Searched, without_overlap
from janus_jax.phases import phase
from janus_jax.reports.text import format_table
from janus_jax.storage import write_json


def report(benchmarks: Sequence[Benchmark | ImageBenchmark], patterns: Sequence[str], output: epath.Path) -> str:
    """Writes OUTPUT/contamination.json and returns a table.

    Where the output has scores, the table has the mean score of the samples, and that of those that were not found.

    Raises UserError for a pattern that matches no ArrayRecord file.
    """
    sources = [open_records(pattern, "--contamination") for pattern in patterns]
    with phase("reading the images of the benchmarks"):
        index = Index(benchmarks)
    searched = [index.search(source) for source in sources]
    total = Searched(*(sum(counts) for counts in zip(*searched, strict=True)))
    head = ["benchmark", "requests", "same image", "similar image", "same question", "mean score", "of the rest"]
    table, content = [head], []
    for overlap in index.overlaps:
        counts = (overlap.requests, len(overlap.same_images), len(overlap.similar_images), len(overlap.same_questions))
        figures: list[str] = ["", ""]
        rest = None
        if (output / overlap.benchmark / results.SAMPLES_FILE).exists():
            samples = results.read_samples(output / overlap.benchmark)
            scores = [sample["score"] for sample in samples if sample["score"] is not None]
            rest = without_overlap(samples, overlap)
            if scores:
                of_rest = f"{rest[0]:.2f} of {rest[1]}" if rest else "none left"
                figures = [f"{100 * sum(scores) / len(scores):.2f}", of_rest]
        table.append([overlap.benchmark, *map(str, counts), *figures])
        content.append({**overlap.to_json(), "score_of_the_rest": rest})
    found = {"searched": total._asdict(), "patterns": list(patterns), "benchmarks": content}
    write_json(output / "contamination.json", found)
    read = f"{total.records:,} records with {total.images:,} images were read, {total.unreadable:,} could not be read."
    return f"{format_table(table)}\n\n{read}"
