"""After kill -9 at any moment, also while a checkpoint is written, the next start continues as if nothing happened."""

import random
import signal
import time
from pathlib import Path

import pytest

from janus_jax.training.metrics_log import read_metrics
from janus_jax.weights.native import saved_steps
from tests.helpers.tiny_runs import (
    cache_folder,
    data_workers,
    differing_leaves,
    saved_state,
    start_command,
    wait,
    write_digit_files,
)

STEPS, KILLS = 60, 20
# Where a run of two networks is killed, in this order; the last complete checkpoint that is then there, and the one
# that is not complete, which the first save of the next start removes.
PLACES = {
    "a save is half written": (1, 2),
    "a save is written but not complete": (2, 3),
    "the networks are updated": (2, 3),
    "a save is complete and the next begins": (4, None),
}
TWO_NETWORKS_STEPS = 6


@pytest.fixture
def start(tmp_path, tmp_path_factory):
    data = write_digit_files(tmp_path / "data")

    def start_run(workdir, steps, kind="", *more, module="launch.train"):
        return start_command(
            module,
            f"--config=tests/helpers/micro_experiment.py:{kind}{data}",
            f"--workdir={tmp_path / workdir}",
            f"--config.train.num_steps={steps}",
            "--config.checkpoint.every_steps=1",  # saves are nearly always under way
            *more,
            cache=cache_folder(tmp_path_factory),
        )

    return start_run


@pytest.mark.slow
def test_the_data_workers_of_a_killed_run_end_too(start, tmp_path):
    process = start("killed", 10**6, "", "--config.data.workers=1")
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
def test_a_run_killed_many_times_ends_at_the_bits_of_one_that_was_not(start, tmp_path):
    worker = "--config.data.workers=1"
    finish(start("straight", STEPS, "", worker))
    rng = random.Random(0)
    metrics = tmp_path / "killed" / "metrics.jsonl"
    reached = 0
    for _ in range(KILLS):
        process = start("killed", STEPS, "", worker)
        end = time.monotonic() + 300
        while process.poll() is None and (not metrics.exists() or last_step(metrics) <= reached):
            assert time.monotonic() < end
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.6))
        process.kill()
        process.communicate(timeout=60)
        reached = min(last_step(metrics), STEPS - 1)
    finish(start("killed", STEPS, "", worker))
    require_equal_runs(tmp_path, STEPS)


@pytest.mark.slow
def test_two_networks_killed_at_the_worst_places_end_at_the_bits_of_a_run_that_was_not(start, tmp_path):
    kind, steps = "adversarial=", TWO_NETWORKS_STEPS  # the adversarial loss starts in step 3
    finish(start("straight", steps, kind))
    for place, (complete, partial) in PLACES.items():
        process = start("killed", steps, kind, f"--kill={place}", module="tests.helpers.killed_train")
        _, errors = wait(process)
        assert process.returncode == -signal.SIGKILL, (place, errors)
        assert max(saved_steps(tmp_path / "killed")) == complete, place
        left = [path.name for path in (tmp_path / "killed" / "checkpoints").glob("*tmp*")]
        assert left == ([f"{partial}.orbax-checkpoint-tmp"] if partial else []), place
    finish(start("killed", steps, kind))
    require_equal_runs(tmp_path, steps)


def finish(process):
    _, errors = wait(process)
    assert process.returncode == 0, errors


def require_equal_runs(folder, steps):
    """Raises AssertionError unless the runs `straight` and `killed` have the same last checkpoint and losses."""
    straight, killed = folder / "straight", folder / "killed"
    assert differing_leaves(saved_state(straight, steps), saved_state(killed, steps)) == []
    losses = [[(line["step"], line["loss"]) for line in read_metrics(run)] for run in (straight, killed)]
    assert losses[0] == losses[1] and len(losses[0]) == steps


def last_step(metrics):
    """The number of complete lines of a file that may be written at this moment."""
    lines = metrics.read_text().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    return len(whole)
