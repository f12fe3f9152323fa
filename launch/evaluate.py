"""Evaluates a model on benchmarks, on one process or on all hosts of a slice, and scores what is there.

    python -m launch.evaluate --checkpoint=Janus-Pro-7B --benchmarks=pope,gqa --data=benchmarks --output=evaluation
    python -m launch.evaluate --benchmarks=pope --data=benchmarks --predictions=answers.jsonl --output=others
    python -m launch.evaluate --data=benchmarks --list
    python -m launch.evaluate --compare=evaluation,others --output=comparison

Each process is started with the same command and works alone; a run that was interrupted goes on with the same command
on any number of processes. Without --checkpoint the answers in --output are scored again, without any device.
"""

import sys
from collections.abc import Sequence
from typing import Any

from absl import flags
from etils import epath

from janus_jax.errors import UserError
from janus_jax.evaluation import job
from janus_jax.evaluation.model_answers import ROLE_STRINGS
from janus_jax.evaluation.prompts import PROTOCOLS
from janus_jax.evaluation.selection import first_requests
from janus_jax.storage import prepare_folder
from janus_jax.training.resilience.exit_codes import RESTART
from launch.cli import benchmark_listing, comparison, contamination, errors, evaluation_model, evaluation_report
from launch.cli.open_benchmarks import open_benchmarks

CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Model folder or training workdir. The default is to score the answers in --output."
)
EMA = flags.DEFINE_bool("ema", False, "Take the average of a workdir's parameters over its steps.")
BENCHMARKS = flags.DEFINE_list("benchmarks", ["all"], "Names of benchmarks; all takes those that --data holds.")
DATA = flags.DEFINE_string("data", None, "Folder in which the files of the benchmarks are looked for, or one file.")
OUTPUT = flags.DEFINE_string("output", None, "Folder of the run, which is continued if it exists. Required.")
LIST = flags.DEFINE_bool("list", False, "Print what --data holds, and stop.")
PROTOCOL = flags.DEFINE_enum("protocol", "janus", PROTOCOLS, "Wording of the questions: that of Janus or of LLaVA.")
ROLE_STRINGS_FLAG = flags.DEFINE_enum(
    "role_strings",
    "checkpoint",
    ROLE_STRINGS,
    "Strings for user and assistant: those of the checkpoint's prompt style, or the words of VLMEvalKit's adaptor.",
)
LIMIT = flags.DEFINE_integer(
    "limit", None, "Number of requests of each benchmark, the first ones. The figures are then not comparable.",
    lower_bound=1,
)
SAMPLES = flags.DEFINE_list("samples", [], "Ids or indices of questions: print question, answer and reading, and stop.")
ROWS = flags.DEFINE_integer("rows", job.ROWS, "Number of answers or images of a batch.", lower_bound=1)
MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", None, "Length of the longest answer in tokens. The default is that of the benchmark.",
    lower_bound=1,
)
NUM_IMAGES = flags.DEFINE_integer(
    "num_images", None, "Number of images per prompt. The default is that of the benchmark.", lower_bound=1
)
CFG_WEIGHT = flags.DEFINE_float(
    "cfg_weight", None, "Weight of the guidance of images. The default is 5 for codes and 2 for JanusFlow."
)
SEED = flags.DEFINE_integer("seed", 0, "Seed of images, 0 to 2**32 - 1. Answers are greedy.")
VAE = flags.DEFINE_string("vae", None, "JanusFlow: folder of its VAE. The default is CHECKPOINT/vae.")
PREDICTIONS = flags.DEFINE_string(
    "predictions",
    None,
    "Answers of another program to one benchmark: its official file, or JSON Lines with index or id, and text. For a "
    "benchmark of images a folder of INDEX/NUMBER.png.",
)
PARTIAL = flags.DEFINE_bool("partial", False, "Without --checkpoint: score the batches that are finished.")
COMPARE = flags.DEFINE_list("compare", [], "Outputs of two runs, or folders of images, that are compared.")
CONTAMINATION = flags.DEFINE_list(
    "contamination", [], "Patterns of prepared ArrayRecord files in which the images and questions are looked for."
)


def main() -> None:
    if COMPARE.value:
        errors.require("output")
        comparison.compare(COMPARE.value, prepare_folder("output", OUTPUT.value or ""), DATA.value, BENCHMARKS.value)
        return
    errors.require("data")
    benchmarks = open_benchmarks(DATA.value or "", BENCHMARKS.value, PROTOCOL.value, NUM_IMAGES.value)
    benchmarks = [first_requests(benchmark, LIMIT.value) for benchmark in benchmarks]
    if LIST.value:
        print(benchmark_listing.format_listing(benchmarks, ROWS.value))
        return
    if SAMPLES.value:
        _show_samples(benchmarks)
        return
    errors.require("output")
    output = prepare_folder("output", OUTPUT.value or "")
    tasks = [_task(benchmark, output) for benchmark in benchmarks]
    if CONTAMINATION.value:
        print(contamination.report(benchmarks, CONTAMINATION.value, output))
        return
    if CHECKPOINT.value:
        if PREDICTIONS.value or PARTIAL.value:
            raise UserError("--checkpoint goes together with neither --predictions nor --partial")
        outcome = evaluation_model.evaluate(_model_options(), tasks, output)
    else:
        outcome = _score(tasks)
    if outcome.stopped:
        print("stopped; the same command goes on", file=sys.stderr)
        sys.exit(RESTART)
    print(evaluation_report.write(output, benchmarks, PREDICTIONS.value))
    for problem in outcome.problems:
        print(f"warning: {problem}", file=sys.stderr)
    if outcome.problems:
        sys.exit(1)
