"""Measures speed relative to named peers in the same run, and some promises such as memory and resume time.

    python -m launch.benchmark --suite=data --json=data.json

Suites, each needs the extra [test]:
    data       the training stream, compared with a plain loop and a PyTorch DataLoader
    inference  decoding, compared with transformers and the memory bandwidth, on a CPU or a GPU
    tokenizer  the step of an image tokenizer and its discriminator, compared with PyTorch on a CPU
    training   the training step, compared with transformers on a CPU
    windows    one image with several codes per pass, compared with one code per pass and transformers, on a CPU; needs
               --checkpoint

It runs from a checkout: the suites are in benchmarks/, which is not installed.
"""

import importlib
import json
import os
import platform
from collections.abc import Sequence

from absl import flags
from etils import epath

from benchmarks.quiet_peer import quiet_peer
from benchmarks.result import Result, format_results
from launch.cli import errors

SUITES = ["data", "inference", "tokenizer", "training", "windows"]  # modules of benchmarks/
SUITE = flags.DEFINE_enum("suite", None, SUITES, "Suite to run. Required.")
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "For --suite=windows: the model that `python -m examples.digits.code_windows` trains."
)
JSON = flags.DEFINE_string("json", None, "File for the results, written after each result. Default: print only.")


def main() -> None:
    errors.require("suite")
    arguments = []
    if SUITE.value == "windows":
        errors.require("checkpoint")
        arguments = [CHECKPOINT.value]
    results: list[Result] = []
    try:
        with quiet_peer():
            for result in importlib.import_module(f"benchmarks.{SUITE.value}").run(*arguments):
                results.append(result)
                _write_json(results)
    finally:  # a suite that failed or was stopped keeps what it has measured
        if results:
            _print_table(results)


def _print_table(results: Sequence[Result]) -> None:
    print(f"{platform.machine()}, {os.cpu_count()} cores, JAX on {_device()}, Python {platform.python_version()}")
    print(format_results(results))


def _write_json(results: Sequence[Result]) -> None:
    if JSON.value is not None:
        rows = [result.to_json() for result in results]
        content = {"suite": SUITE.value, "cores": os.cpu_count(), "device": _device(), "results": rows}
        epath.Path(JSON.value).write_text(json.dumps(content, indent=2) + "\n")


def _device() -> str:
    import jax

    return jax.devices()[0].device_kind


if __name__ == "__main__":
    errors.run(main)
