"""Shows what a config feeds its model: the first rows as a page and the mixture in numbers. Or writes exact rows.

    python -m launch.inspect_data --config=configs/janus_pro_1b.py:stage2 --config.data.tokenizer=tokenizer.json \\
        --config.data.sources.text='("data/text-*.array_record",)' ... --output=inspection
    python -m launch.inspect_data --config=... --dump=rows.npz --start_step=100 --steps=2 --process_index=1 \\
        --process_count=4

The numbers describe the whole batches that the shown rows come from. A smaller --config.train.batch_size reads less of
each logical shard, but the first rows are the same.

--dump writes the batches number start_step, start_step + 1, ... (the first is number 0) that this process would feed:
every field of the batch as an array [steps, rows, ...], and `keys` [steps, rows], the keys of a row's samples as JSON.
"""

import contextlib
from typing import TYPE_CHECKING

import tqdm
from absl import flags
from etils import epath
from ml_collections import config_flags

from janus_jax.errors import UserError
from janus_jax.storage import prepare_folder
from launch.cli import errors

if TYPE_CHECKING:
    from janus_jax.data.stream import Stream

CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="Config file and its argument, configs/NAME.py:STAGE; --config.a.b=VALUE changes a field."
)
OUTPUT = flags.DEFINE_string("output", None, "Folder for the page, inspect.html. Required without --dump.")
ROWS = flags.DEFINE_integer("rows", 8, "Number of rows on the page.", lower_bound=1)
SPLIT = flags.DEFINE_enum(
    "split", "train", ["train", "validation"], "Part of the data; validation is what data.held_out keeps apart."
)
DUMP = flags.DEFINE_string("dump", None, "NPZ file for exact rows, instead of --output.")
START_STEP = flags.DEFINE_integer("start_step", 0, "Number of the first batch.", lower_bound=0)
STEPS = flags.DEFINE_integer("steps", 1, "With --dump: number of batches.", lower_bound=1)
PROCESS_INDEX = flags.DEFINE_integer("process_index", 0, "Number of the process whose rows are read.", lower_bound=0)
PROCESS_COUNT = flags.DEFINE_integer("process_count", 1, "Number of processes that share the stream.", lower_bound=1)
WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Training workdir: start from its last data state at or before --start_step. By default, read from the beginning.",
)


def main() -> None:
    errors.require("config")
    if (OUTPUT.value is None) == (DUMP.value is None):
        raise UserError("expected either --output or --dump")
    if PROCESS_INDEX.value >= PROCESS_COUNT.value:
        raise UserError(f"--process_index={PROCESS_INDEX.value}, expected less than {PROCESS_COUNT.value}")
    config = CONFIG.value

    from janus_jax.data.row_dump import dump_batches
    from janus_jax.data.stream import format_reports
    from janus_jax.reports.inspection import format_inspection, inspect_stream
    from janus_jax.reports.inspection_page import render
    from janus_jax.training.architecture import model_config
    from janus_jax.training.setup import check_config, open_stream, open_tokenizer

    architecture = model_config(config)
    check_config(config, architecture)
    tokenizer = open_tokenizer(config, architecture)
    if SPLIT.value == "validation" and not config.data.held_out:
        raise UserError(
            "--split=validation: data.held_out=0 keeps no record apart; give the --config.data.held_out of the run"
        )
    stream = open_stream(
        config,
        architecture,
        tokenizer,
        validation=SPLIT.value == "validation",
        process_index=PROCESS_INDEX.value,
        process_count=PROCESS_COUNT.value,
    )
    first, last = START_STEP.value, START_STEP.value + STEPS.value - 1
    with contextlib.closing(stream):
        if DUMP.value is not None:
            path = epath.Path(DUMP.value)
            prepare_folder("dump", path.parent)
            _seek(stream)
            print(f"{path}: batches {first} to {last}, {dump_batches(stream, path, STEPS.value)} rows each")
            return
        output = prepare_folder("output", OUTPUT.value)
        _seek(stream)
        title = f"{config.name}, {SPLIT.value} data from batch {first}"
        inspection = inspect_stream(stream, tokenizer, config.data, title=title, num_rows=ROWS.value, step=first)
        if inspection.rows:
            print(format_inspection(inspection))
        print(format_reports(stream.get_state(), stream.patterns))
        (output / "inspect.html").write_text(render(inspection))
        print(f"page: {output / 'inspect.html'}")


def _seek(stream: "Stream") -> None:
    """Brings the stream to --start_step: from the saved state in --workdir if given, and by reading from there."""
    from janus_jax.training.checkpointing import read_data_state
    from janus_jax.weights.native import saved_steps

    done = 0
    if WORKDIR.value is not None:
        steps = [step for step in saved_steps(WORKDIR.value) if step <= START_STEP.value]
        if not steps:
            raise UserError(f"--workdir={WORKDIR.value}: no checkpoint at or before --start_step={START_STEP.value}")
        done = max(steps)
        stream.set_state(read_data_state(WORKDIR.value, done))
    for _ in tqdm.trange(done, START_STEP.value, desc="skipping", unit="batch", disable=done == START_STEP.value):
        next(stream)


if __name__ == "__main__":
    errors.run(main)
