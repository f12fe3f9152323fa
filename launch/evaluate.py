"""Evaluates a model on benchmarks, on one process or on all hosts of a slice, and scores what is there.

    python -m launch.evaluate --checkpoint=Janus-Pro-7B --benchmarks=pope,gqa --data=benchmarks --output=evaluation
    python -m launch.evaluate --benchmarks=pope --data=benchmarks --predictions=answers.jsonl --output=others
    python -m launch.evaluate --data=benchmarks --list
    python -m launch.evaluate --compare=evaluation,others --output=comparison

Each process is started with the same command and works alone; a run that was interrupted goes on with the same command
on any number of processes. Without --checkpoint the answers in --output are scored again, without any device.
"""

import functools
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags
from etils import epath

from janus_jax.errors import UserError
from janus_jax.evaluation.prompts import PROTOCOLS
from janus_jax.evaluation.question_benchmark import QuestionBenchmark
from janus_jax.evaluation.selection import first_requests
from janus_jax.storage import prepare_folder
from janus_jax.training.resilience.exit_codes import RESTART
from launch.cli import errors, evaluation_model, metric_flags, phase_display

if TYPE_CHECKING:
    from janus_jax.evaluation import job

BENCHMARKS = flags.DEFINE_list("benchmarks", ["all"], "Names of benchmarks; all takes those that --data holds.")
DATA = flags.DEFINE_string("data", None, "Folder in which the files of the benchmarks are looked for, or one file.")
OUTPUT = flags.DEFINE_string("output", None, "Folder of the run, which is continued if it exists. Required.")
LIST = flags.DEFINE_bool("list", False, "Print what --data holds, and stop.")
PROTOCOL = flags.DEFINE_enum("protocol", "janus", PROTOCOLS, "Wording of the questions: that of Janus or of LLaVA.")
LIMIT = flags.DEFINE_integer(
    "limit",
    None,
    "Number of requests of each benchmark, the first ones. The figures are then not comparable.",
    lower_bound=1,
)
SAMPLES = flags.DEFINE_list("samples", [], "Ids or indices of questions: print question, answer and reading, and stop.")
ROWS = flags.DEFINE_integer("rows", 16, "Number of answers or images of a batch.", lower_bound=1)
NUM_IMAGES = flags.DEFINE_integer(
    "num_images", None, "Number of images per prompt. The default is that of the benchmark.", lower_bound=1
)
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
flags.adopt_module_key_flags(metric_flags)


def main() -> None:
    phase_display.show_phases()
    if COMPARE.value:
        from launch.cli import comparison

        errors.require("output")
        output = prepare_folder("output", OUTPUT.value or "")
        print(comparison.compare(COMPARE.value, output, _open_benchmarks() if DATA.value else []))
        return
    errors.require("data")
    if evaluation_model.CHECKPOINT.value:
        if PREDICTIONS.value or PARTIAL.value:
            raise UserError("--checkpoint goes together with neither --predictions nor --partial")
        evaluation_model.check_flags()
    benchmarks = _open_benchmarks()
    if LIST.value:
        from launch.cli import benchmark_listing

        print(benchmark_listing.format_listing(benchmarks, ROWS.value))
        return
    if SAMPLES.value:
        from launch.cli import evaluation_samples

        print(evaluation_samples.answered(benchmarks, SAMPLES.value))
        return
    errors.require("output")

    from janus_jax.evaluation.results import write_results
    from launch.cli import evaluation_report

    output = prepare_folder("output", OUTPUT.value or "")
    tasks = [_task(benchmark, output) for benchmark in benchmarks]
    if CONTAMINATION.value:
        from launch.cli import contamination

        print(contamination.report(benchmarks, CONTAMINATION.value, output))
        return
    if evaluation_model.CHECKPOINT.value:
        try:
            outcome = evaluation_model.evaluate(tasks, output, functools.partial(write_results, output))
        except OSError as error:  # a disk or bucket failed; a mistake of the user would be a UserError
            errors.fail_at_once(error, RESTART)
    else:
        outcome = _score(tasks)
    if outcome.stopped:
        print("stopped; the same command goes on", file=sys.stderr)
        sys.exit(RESTART)
    images = epath.Path(PREDICTIONS.value) if PREDICTIONS.value else None
    print(evaluation_report.write(output, benchmarks, images))
    for problem in outcome.problems:
        print(f"warning: {problem}", file=sys.stderr)
    if outcome.problems:
        sys.exit(1)


def _open_benchmarks() -> list[Any]:
    from launch.cli.open_benchmarks import open_benchmarks

    benchmarks = open_benchmarks(DATA.value or "", BENCHMARKS.value, PROTOCOL.value, NUM_IMAGES.value)
    return [first_requests(benchmark, LIMIT.value) for benchmark in benchmarks]


def _task(benchmark: Any, output: epath.Path) -> "job.Task":
    from janus_jax.evaluation import job

    settings = {"protocol": PROTOCOL.value, "split": getattr(benchmark, "split", "")}
    says_so = isinstance(benchmark, QuestionBenchmark) or LIMIT.value is None
    notes = [] if says_so else [f"First {LIMIT.value} prompts: not comparable with other figures."]
    return job.Task(benchmark, output / benchmark.name, ROWS.value, settings, notes)


def _score(tasks: Sequence["job.Task"]) -> "job.Outcome":
    """Scores answers of another program, or those in the output, without a model."""
    from janus_jax.evaluation import job

    if PREDICTIONS.value:
        if len(tasks) != 1:
            names = ",".join(task.benchmark.name for task in tasks)
            raise UserError(f"--predictions are those of one benchmark, but --benchmarks={names}")
        return job.Outcome(problems=job.score_predictions(tasks[0], epath.Path(PREDICTIONS.value)))
    if BENCHMARKS.value == ["all"]:
        tasks = [task for task in tasks if (task.folder / job.PLAN_FILE).exists()] or tasks
    problems: list[str] = []
    for task in map(job.stored_task, tasks):
        problems += job.score_stored(task, task.plan(), partial=PARTIAL.value)
    return job.Outcome(problems=problems)


if __name__ == "__main__":
    errors.run(main)
