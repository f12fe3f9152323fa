"""Evaluates the quickstart's model on small benchmarks of real digits in official formats, on two processes.

    python -m examples.digits.evaluate_demo --checkpoint=quickstart/checkpoint --output=evaluate-demo

    evaluate-demo/data/          held-out digits in the formats of POPE, MMBench, VQAv2 and GenEval
    evaluate-demo/results/       what launch.evaluate writes; open report.html

The detector of GenEval is a classifier of digits. The benchmarks show how an evaluation works, and that images, options
and answers arrive where they belong. The model was never asked with options or for yes and no, and says "yes" to
nothing: its figure of POPE shows what the official reading makes of such answers.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from examples.digits import data as digits
from examples.digits.benchmark import Judge
from examples.digits.small_benchmarks import detect, write_benchmarks
from janus_jax.errors import UserError
from janus_jax.storage import prepare_folder
from launch.cli import errors

CHECKPOINT = flags.DEFINE_string("checkpoint", "quickstart/checkpoint", "Model folder of the quickstart.")
OUTPUT = flags.DEFINE_string("output", "evaluate-demo", "Folder for everything that is written.")
QUESTIONS = flags.DEFINE_integer("questions", 100, "Number of digits that are asked about.", lower_bound=2)
PROCESSES = flags.DEFINE_integer("processes", 2, "Number of processes that share the work.", lower_bound=1)
TIME_LIMIT = 1800  # Seconds for each process.


def main() -> None:
    if not Path(CHECKPOINT.value, "model.json").exists():
        raise UserError(f"--checkpoint={CHECKPOINT.value}: no model; `make quickstart` trains one in quickstart/")
    output = prepare_folder("output", OUTPUT.value)
    data, results = Path(output / "data"), Path(output / "results")
    training, held_out = digits.load_digits()
    chosen = digits.Digits(held_out.intensities[: QUESTIONS.value], held_out.labels[: QUESTIONS.value])
    write_benchmarks(data, chosen)
    model = [f"--checkpoint={CHECKPOINT.value}", "--cfg_weight=1.25", "--max_new_tokens=16"]
    count = PROCESSES.value
    evaluate(data, results, [[*model, f"--process_id={i}", f"--num_processes={count}"] for i in range(count)])
    detections = Path(output / "detections.jsonl")
    detect(results / "geneval/images", Judge(training), detections)
    evaluate(data, results, [[f"--detections={detections}"]])
    print((results / "results.md").read_text())
    print(f"page: {results / 'report.html'}")


def evaluate(data: Path, output: Path, processes: Sequence[Sequence[str]]) -> None:
    """Runs launch.evaluate in several processes at once. Code 1 says that GenEval still waits for its detections."""
    command = [sys.executable, "-m", "launch.evaluate", f"--data={data}", f"--output={output}"]
    running = [subprocess.Popen([*command, *arguments]) for arguments in processes]
    try:
        codes = [process.wait(TIME_LIMIT) for process in running]
    finally:
        for process in running:
            process.kill()
    if not set(codes) <= {0, 1}:
        raise UserError(f"the processes of launch.evaluate ended with the codes {codes}")


if __name__ == "__main__":
    errors.run(main)
