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

import jax
from absl import flags
from etils import epath

from launch import command_line
from launch.benchmarks import data, inference, training
from launch.benchmarks.result import format_results

SUITES = {"data": data.run, "inference": inference.run, "training": training.run}
SUITE = flags.DEFINE_enum("suite", None, list(SUITES), "what to measure")
JSON = flags.DEFINE_string("json", None, "file for the results")


def main() -> None:
    command_line.require("suite")
    results = SUITES[SUITE.value or ""]()
    device = jax.devices()[0].device_kind
    print(f"{platform.machine()}, {os.cpu_count()} cores, JAX on {device}, Python {platform.python_version()}")
    print(format_results(results))
    if JSON.value is not None:
        rows = [result.to_json() for result in results]
        content = {"suite": SUITE.value, "cores": os.cpu_count(), "device": device, "results": rows}
        epath.Path(JSON.value).write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    command_line.run(main)
