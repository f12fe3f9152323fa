"""After kill -9 at any moment, also while a checkpoint is written, the next start continues as if nothing happened."""

import random
import time
from pathlib import Path

import pytest

from janus_jax.training.metrics_log import read_metrics
from tests.helpers.tiny_runs import (
    cache_folder,
    data_workers,
    differing_leaves,
    saved_state,
    start_command,
    write_digit_files,
)

STEPS = 60
# Kills of each kind of run: a Janus, and an image tokenizer with its discriminator, which saves two networks.
KILLS = {"": 20, "adversarial=": 5}


@pytest.fixture
def start(tmp_path, tmp_path_factory):
    data = write_digit_files(tmp_path / "data")

    def start_run(workdir, steps, kind=""):
        return start_command(
            "launch.train",
            f"--config=tests/helpers/micro_experiment.py:{kind}{data}",
            f"--workdir={tmp_path / workdir}",
            f"--config.train.num_steps={steps}",
            "--config.checkpoint.every_steps=1",  # saves are nearly always under way
            "--config.data.workers=1",
            cache=cache_folder(tmp_path_factory),
        )

    return start_run


@pytest.mark.slow
def test_the_data_workers_of_a_killed_run_end_too(start, tmp_path):
    process = start("killed", 10**6)
    metrics = tmp_path / "killed" / "metrics.jsonl"
    end = time.monotonic() + 300
    while not metrics.exists():
        assert process.poll() is None, process.communicate(timeout=60)
        assert time.monotonic() < end
        time.sleep(0.1)
    (worker,) = data_workers(process)
    process.kill()
    process.wait(timeout=60)
    end = time.monotonic() + 10
    while alive(worker):
        assert time.monotonic() < end
        time.sleep(0.1)


def alive(process):
    command = Path(f"/proc/{process}/cmdline")
    try:
        return bool(command.read_text())  # a zombie has none
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("kind", KILLS)
def test_a_run_killed_many_times_ends_at_the_bits_of_one_that_was_not(start, tmp_path, kind):
    def finish(process):
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors

    finish(start("straight", STEPS, kind))
    rng = random.Random(0)
    metrics = tmp_path / "killed" / "metrics.jsonl"
    reached = 0
    for _ in range(KILLS[kind]):
        process = start("killed", STEPS, kind)
        end = time.monotonic() + 300
        while process.poll() is None and (not metrics.exists() or last_step(metrics) <= reached):
            assert time.monotonic() < end
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.6))
        process.kill()
        process.communicate(timeout=60)
        reached = min(last_step(metrics), STEPS - 1)
    finish(start("killed", STEPS, kind))
    assert differing_leaves(saved_state(tmp_path / "straight", STEPS), saved_state(tmp_path / "killed", STEPS)) == []
    losses = [
        [(line["step"], line["loss"]) for line in read_metrics(tmp_path / name)] for name in ("straight", "killed")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == STEPS


def last_step(metrics):
    """The number of complete lines of a file that may be written at this moment."""
    lines = metrics.read_text().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    return len(whole)
