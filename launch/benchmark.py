"""Measures speed as ratios against named peers in the same run, and what a suite promises besides.

    python -m launch.benchmark --suite=data --json=data.json

Suites:
    data       the training stream against a plain loop and a PyTorch DataLoader; needs the extra [test]
    inference  decoding against transformers and the memory bandwidth, on a CPU or a GPU; needs the extra [test]
    training   the training step against transformers on a CPU; needs the extra [test]
"""

import json
import os
import platform
from collections.abc import Sequence

import jax
from absl import flags
from etils import epath

from benchmarks import data, inference, training
from benchmarks.result import Result, format_results
from launch.cli import errors

SUITES = {"data": data.run, "inference": inference.run, "training": training.run}
SUITE = flags.DEFINE_enum("suite", None, list(SUITES), "what to measure")
JSON = flags.DEFINE_string("json", None, "file for the results, written again after each of them")


def main() -> None:
    errors.require("suite")
    results: list[Result] = []
    try:
        for result in SUITES[SUITE.value or ""]():
            results.append(result)
            _write_json(results)
    finally:  # also what was measured before a suite failed or was stopped
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
    return jax.devices()[0].device_kind


if __name__ == "__main__":
    errors.run(main)
