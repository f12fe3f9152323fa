"""Reads the first rows of a data stream and describes them: what `launch.inspect_data` prints and puts on its page."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from janus_jax.data.dropped_samples import one_line
from janus_jax.data.mixture import value_at
from janus_jax.data.records import TASKS
from janus_jax.data.stream import Stream, drop_reports
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.reports.batch_contents import Segment, Summary, segments, summarize
from janus_jax.reports.html import Card
from janus_jax.reports.text import format_table


class Table(NamedTuple):
    """A table of plain text."""

    caption: str
    head: list[str]
    rows: list[list[str]]


class Inspection(NamedTuple):
    """A description of some rows and of the sources that they come from."""

    title: str
    cards: list[Card]
    tables: list[Table]
    dropped: list[tuple[str, str]]  # (source and key, reason) of the first dropped samples
    rows: list[list[Segment]]  # packed rows; none of an image stream
    images: list[np.ndarray]  # images of an image stream; none of packed rows


def inspect_stream(
    stream: Stream, tokenizer: Tokenizer | None, data: ConfigDict, *, title: str, num_rows: int, step: int
) -> Inspection:
    """Reads whole batches until there are `num_rows` rows; the numbers are about all rows of these batches.

    Args:
        tokenizer: decodes the rows; None for a stream of images, which has no text.
        data: the config's `data`, for the ratio of the tasks that it asks for.
        step: number of the training step that reads the first of the batches.
    """
    batches: list[Any] = []
    keys: list[list[str]] = []
    while len(keys) < num_rows:
        batch, row_keys = stream.next_with_keys()
        batches.append(batch)
        keys += row_keys
    state = stream.get_state()
    sources = _source_table(state, stream.patterns)
    dropped = [
        (f"{name}: {sample.key}", f"{sample.reason}: {sample.detail}")
        for name, report in drop_reports(state).items()
        for sample in report.examples
    ]
    if tokenizer is None:
        images = [image for batch in batches for image in batch.pixels][:num_rows]
        cards = [Card("Images", str(images[0].shape), "height, width and channels of each")]
        return Inspection(title, cards, [sources], dropped, [], images)
    summary = summarize(batches)
    places = [(batch, row) for batch in batches for row in range(len(batch.tokens))][:num_rows]
    rows = [segments(batch, row, of_row, tokenizer) for (batch, row), of_row in zip(places, keys, strict=False)]
    return Inspection(title, _cards(summary), [_task_table(summary, data, step), sources], dropped, rows, [])


def format_inspection(inspection: Inspection) -> str:
    """The description of packed rows for a terminal: cards, mixture of the tasks, samples of each row."""
    task_table = inspection.tables[0]
    lines = ["; ".join(f"{card.label} {card.value} {card.hint}" for card in inspection.cards)]
    lines += [task_table.caption, format_table([task_table.head, *task_table.rows])]
    for number, row in enumerate(inspection.rows):
        samples = ", ".join(f"{segment.task} {one_line(segment.key)} ({segment.length})" for segment in row)
        lines.append(f"row {number}: {samples}")
    return "\n".join(lines)


def _cards(summary: Summary) -> list[Card]:
    samples, supervised = sum(summary.samples.values()), sum(summary.supervised.values())
    return [
        Card("Rows", f"{summary.rows:,}", "read for these numbers"),
        Card("Fill", f"{summary.used / summary.places:.1%}", "of all places hold a token"),
        Card("Samples", f"{samples / summary.rows:.1f}", "per row"),
        Card("Supervised", f"{supervised / summary.used:.1%}", "of the tokens carry loss"),
    ]


def _task_table(summary: Summary, data: ConfigDict, step: int) -> Table:
    weights = {task: value_at(data.ratio[task], step) for task in TASKS}
    total = {name: sum(getattr(summary, name).values()) or 1 for name in ("samples", "tokens", "supervised")}
    rows = [
        [
            task,
            f"{weights[task] / sum(weights.values()):.1%}",
            f"{summary.samples[task]:,} ({summary.samples[task] / total['samples']:.1%})",
            f"{summary.tokens[task]:,} ({summary.tokens[task] / total['tokens']:.1%})",
            f"{summary.supervised[task]:,} ({summary.supervised[task] / total['supervised']:.1%})",
            f"{summary.images[task]:,}",
        ]
        for task in TASKS
    ]
    head = ["task", f"ratio of {data.ratio_unit}", "samples", "tokens", "with loss", "images"]
    return Table("What the rows hold", head, rows)


def _source_table(state: Mapping[str, Any], patterns: Mapping[str, str]) -> Table:
    """Counts what was read of each source; this includes samples of rows that are not yet complete."""
    rows: list[list[str]] = []
    for name, report in drop_reports(state).items():
        truncated = sum(shard["truncated"][name] for shard in state["shards"].values())
        reasons: Sequence[str] = [f"{reason} {count}" for reason, count in report.reasons.items()]
        rows.append([f"{name} ({patterns[name]})", f"{report.seen:,}", ", ".join(reasons) or "none", f"{truncated:,}"])
    return Table("What the sources gave", ["source", "read", "dropped", "cut to a row"], rows)
