"""Shows what a config feeds its model: the first rows as a page, and the mixture in numbers; or writes exact rows.

    python -m launch.inspect_data --config=configs/janus_pro_1b.py:stage2 --config.data.tokenizer=tokenizer.json \\
        --config.data.sources.text='("data/text-*.array_record",)' ... --output=inspection
    python -m launch.inspect_data --config=... --dump=rows.npz --start_step=100 --steps=2 --process_index=1 \\
        --process_count=4

The numbers are of the whole batches that the rows are from. A smaller --config.train.batch_size reads less of each
logical shard, but the same rows first.

--dump writes the batches number start_step, start_step + 1, ... (the first is number 0) that this process would feed:
every field of the batch as an array [steps, rows, ...], and `keys` [steps, rows], the keys of a row's samples as JSON.
"""

import contextlib
import json
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tqdm
from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from janus_jax.batches import PackedBatch
from janus_jax.data.dropped_samples import one_line
from janus_jax.data.mixture import value_at
from janus_jax.data.records import TASKS
from janus_jax.data.stream import Stream, drop_reports, format_reports
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.errors import UserError
from janus_jax.reports.batch_contents import Summary, segments, summarize
from janus_jax.reports.inspection_page import Fact, InspectionPage, render
from janus_jax.storage import prepare_folder
from janus_jax.training.checkpointing import read_data_state
from janus_jax.training.setup import check_config, model_config, open_stream, open_tokenizer
from janus_jax.weights.native import saved_steps
from launch.cli import errors

CONFIG = config_flags.DEFINE_config_file("config", help_string="as of launch.train")
OUTPUT = flags.DEFINE_string("output", None, "folder for inspect.html")
ROWS = flags.DEFINE_integer("rows", 8, "rows shown; the numbers are of the batches that they are from", lower_bound=1)
SPLIT = flags.DEFINE_enum("split", "train", ["train", "validation"], "validation: what data.held_out keeps apart")
DUMP = flags.DEFINE_string("dump", None, "NPZ file for exact rows, instead of --output")
START_STEP = flags.DEFINE_integer("start_step", 0, "number of the first batch", lower_bound=0)
STEPS = flags.DEFINE_integer("steps", 1, "batches dumped", lower_bound=1)
PROCESS_INDEX = flags.DEFINE_integer("process_index", 0, "the process whose rows are read", lower_bound=0)
PROCESS_COUNT = flags.DEFINE_integer("process_count", 1, "processes that share the stream", lower_bound=1)
WORKDIR = flags.DEFINE_string("workdir", None, "start from the last data state saved there, not from the beginning")


def main() -> None:
    errors.require("config")
    if (OUTPUT.value is None) == (DUMP.value is None):
        raise UserError("expected either --output or --dump")
    if PROCESS_INDEX.value >= PROCESS_COUNT.value:
        raise UserError(f"--process_index={PROCESS_INDEX.value}, expected less than {PROCESS_COUNT.value}")
    config = CONFIG.value
    check_config(config)
    architecture = model_config(config)
    tokenizer = open_tokenizer(config, architecture)
    stream = open_stream(
        config,
        architecture,
        tokenizer,
        validation=SPLIT.value == "validation",
        process_index=PROCESS_INDEX.value,
        process_count=PROCESS_COUNT.value,
    )
    with contextlib.closing(stream):
        if DUMP.value is not None:
            path = epath.Path(DUMP.value)
            prepare_folder("dump", path.parent)
            _seek(stream)
            _dump(stream, path)
        else:
            output = prepare_folder("output", OUTPUT.value)
            _seek(stream)
            _inspect(stream, config, tokenizer, output)


def _seek(stream: Stream) -> None:
    """Brings the stream to --start_step: from a saved state where there is one, else by reading."""
    done = 0
    if WORKDIR.value is not None:
        steps = [step for step in saved_steps(WORKDIR.value) if step <= START_STEP.value]
        if not steps:
            raise UserError(f"--workdir={WORKDIR.value}: no checkpoint at or before --start_step={START_STEP.value}")
        done = max(steps)
        stream.set_state(read_data_state(WORKDIR.value, done))
    for _ in tqdm.trange(done, START_STEP.value, desc="skipping", unit="batch", disable=done == START_STEP.value):
        next(stream)


def _dump(stream: Stream, path: epath.Path) -> None:
    """One array at a time on disk: a batch of pixels may be larger than the memory."""
    with tempfile.TemporaryDirectory() as folder:
        arrays: dict[str, np.memmap] = {}
        keys: list[list[str]] = []
        for step in tqdm.trange(STEPS.value, desc="dumping", unit="batch"):
            batch, row_keys = stream.next_with_keys()
            keys.append([json.dumps(row) for row in row_keys])
            for name, values in batch._asdict().items():
                if values is None:
                    continue
                if name not in arrays:
                    shape = (STEPS.value, *values.shape)
                    file = Path(folder) / f"{name}.npy"
                    arrays[name] = np.lib.format.open_memmap(file, "w+", values.dtype, shape)
                arrays[name][step] = values
        np.save(Path(folder) / "keys.npy", np.array(keys))
        for array in arrays.values():
            array.flush()
        with path.open("wb") as target, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for file in sorted(Path(folder).iterdir()):
                archive.write(file, file.name)
    print(f"{path}: batches {START_STEP.value} to {START_STEP.value + STEPS.value - 1}, {len(keys[0])} rows each")


def _inspect(stream: Stream, config: ConfigDict, tokenizer: Tokenizer | None, output: epath.Path) -> None:
    batches: list[Any] = []
    keys: list[list[str]] = []
    while len(keys) < ROWS.value:
        batch, row_keys = stream.next_with_keys()
        batches.append(batch)
        keys += row_keys
    title = f"{config.name}, {SPLIT.value} data from batch {START_STEP.value}"
    state = stream.get_state()
    tables = [_drop_table(state, stream.patterns)]
    dropped = [
        (f"{name}: {bad.key}", f"{bad.reason}: {bad.detail}")
        for name, report in drop_reports(state).items()
        for bad in report.examples
    ]
    if tokenizer is None:
        images = [image for batch in batches for image in batch.pixels][: ROWS.value]
        page = InspectionPage(
            title, [Fact("Images", str(images[0].shape), "of one batch entry")], tables, dropped, [], images
        )
    else:
        summary = summarize(batches)
        tables.insert(0, _task_table(summary, config))
        page = InspectionPage(title, _facts(summary), tables, dropped, _rows(batches, keys, tokenizer), [])
        print("; ".join(f"{fact.label} {fact.value} {fact.hint}" for fact in page.facts))
        _print(tables[0])
        for number, row in enumerate(page.rows):
            samples = ", ".join(f"{segment.task} {one_line(segment.key)} ({segment.length})" for segment in row)
            print(f"row {number}: {samples}")
    print(format_reports(state, stream.patterns))
    (output / "inspect.html").write_text(render(page))
    print(f"page: {output / 'inspect.html'}")


def _rows(batches: Sequence[PackedBatch], keys: Sequence[Sequence[str]], tokenizer: Tokenizer) -> list:
    shown = [(batch, row) for batch in batches for row in range(len(batch.tokens))][: ROWS.value]
    return [segments(batch, row, own, tokenizer) for (batch, row), own in zip(shown, keys, strict=False)]


def _facts(summary: Summary) -> list[Fact]:
    samples, supervised = sum(summary.samples.values()), sum(summary.supervised.values())
    return [
        Fact("Rows", f"{summary.rows:,}", "that these numbers are of"),
        Fact("Fill", f"{summary.used / summary.places:.1%}", "of all places hold a token"),
        Fact("Samples", f"{samples / summary.rows:.1f}", "per row"),
        Fact("Supervised", f"{supervised / summary.used:.1%}", "of the tokens carry loss"),
    ]


def _task_table(summary: Summary, config: ConfigDict) -> tuple[str, list[str], list[list[str]]]:
    weights = {task: value_at(config.data.ratio[task], START_STEP.value) for task in TASKS}
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
    head = ["task", f"ratio of {config.data.ratio_unit}", "samples", "tokens", "with loss", "images"]
    return ("What the rows hold", head, rows)


def _drop_table(state: Mapping[str, Any], patterns: Mapping[str, str]) -> tuple[str, list[str], list[list[str]]]:
    """Also counts the samples of rows that are still open."""
    rows = []
    for name, report in drop_reports(state).items():
        cut = sum(shard["truncated"][name] for shard in state["shards"].values())
        reasons = ", ".join(f"{reason} {count}" for reason, count in report.reasons.items()) or "none"
        rows.append([f"{name} ({patterns[name]})", f"{report.seen:,}", reasons, f"{cut:,}"])
    return ("What the sources gave", ["source", "read", "dropped", "cut to a row"], rows)


def _print(content: tuple[str, list[str], list[list[str]]]) -> None:
    caption, head, rows = content
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    print(caption)
    for row in (head, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    errors.run(main)
