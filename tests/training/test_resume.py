"""Training 4 steps equals training 2, stopping, and training on: bit for bit, from real ArrayRecord files.

Of the image tokenizer, the run that stops is also validated and the straight one is not: that changes nothing either.
"""

import shutil
import signal
from typing import NamedTuple

import pytest

from janus_jax.errors import UserError
from janus_jax.models.params import flatten
from janus_jax.training import loop, plan
from janus_jax.training.metrics_log import read_metrics
from janus_jax.weights.load import load_params
from janus_jax.weights.native import open_params, read_architecture
from tests.helpers.tiny_runs import (
    adversarial_experiment,
    differing_leaves,
    flow_experiment,
    janus_experiment,
    saved_state,
)

# The tokenizer has two networks, two optimizers, running statistics and an average.
EXPERIMENTS = {"janus": janus_experiment, "vq": adversarial_experiment, "flow": flow_experiment}


class Runs(NamedTuple):
    parts: set[str]  # items of a checkpoint
    straight: object  # workdir of a run of 4 steps
    resumed: object  # workdir of the run that was stopped
    batches: list[int]  # number of batches read by the straight run, the stopped one, and the one that continued
    validated: set[int]  # steps after which the resumed run was evaluated


class WatchedBatches:
    """A `DevicePrefetch` that counts the batches taken and does something when the n-th is asked for."""

    def __init__(self, batches, number, action):
        self._batches, self._number, self._action = batches, number, action
        self.batches = 0

    def __next__(self):
        if self.batches + 1 == self._number:
            self._action()
        self.batches += 1
        return next(self._batches)

    def __getattr__(self, name):
        return getattr(self._batches, name)


def watched_train(config, workdir, maker, make_step, number=0, action=None):
    """Trains; returns how many batches were read, whatever ended the run."""
    watched = []

    def prefetch(*args):
        watched.append(WatchedBatches(original(*args), number, action))
        return watched[-1]

    original = loop.DevicePrefetch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "DevicePrefetch", prefetch)
        patch.setattr(plan, maker, make_step)
        if action is None:
            loop.train(config, workdir)
        else:
            with pytest.raises((KeyboardInterrupt, ConnectionError)):
                loop.train(config, workdir)
    return watched[-1].batches


def ctrl_c():
    signal.raise_signal(signal.SIGINT)


def crash():
    raise ConnectionError("the disk went away")


# Ctrl-C during step 2 saves that step. A crash in step 4 loses step 3, since the last checkpoint is that of step 2.
@pytest.fixture(
    scope="module",
    params=[("janus", 2, ctrl_c), ("vq", 4, crash), pytest.param(("flow", 2, ctrl_c), marks=pytest.mark.slow)],
    ids=lambda p: p[0],
)
def runs(request, data_folder, tmp_path_factory):
    name, number, action = request.param
    config = EXPERIMENTS[name](data_folder)
    config.data.held_out, config.validate.num_rows = 8, 4
    straight, resumed = tmp_path_factory.mktemp("straight"), tmp_path_factory.mktemp("resumed")
    compiled = []

    def make_step(*args):
        """The step of the first run for all runs, so that it is traced and compiled once. It is a pure function."""
        compiled.append(compiled[0] if compiled else original(*args))
        return compiled[0]

    maker = "make_adversarial_step" if name == "vq" else "make_train_step"
    original = getattr(plan, maker)
    batches = [
        watched_train(config, straight, maker, make_step),
    ]
    config.validate.every_steps = 2 if name == "vq" else 0
    batches += [
        watched_train(config, resumed, maker, make_step, number, action),
        watched_train(config, resumed, maker, make_step),
    ]
    parts = {"params", "opt_state", "data"} | ({"ema"} if config.train.ema else set())
    parts |= {"adversary"} if name == "vq" else set()
    return Runs(parts, straight, resumed, batches, validated={2, 4} if name == "vq" else set())


def test_a_resumed_run_reads_only_the_missing_batches(runs):
    assert runs.batches[0] == 4
    assert runs.batches[2] == 2  # a run from step 0 with the same seed would read 4 and end at the same bits


def test_stopped_and_resumed_run_ends_at_the_same_bits(runs):
    straight, resumed = saved_state(runs.straight, 4), saved_state(runs.resumed, 4)
    assert differing_leaves(straight, resumed) == []
    assert {path.split("'")[1] for path in straight} == runs.parts
    # The comparison sees the difference of two steps in each of the parts.
    moved = differing_leaves(straight, saved_state(runs.straight, 2))
    assert {path.split("'")[1] for path in moved} == runs.parts


def test_metrics_of_the_resumed_run_are_those_of_the_straight_one_without_repeated_steps(runs):
    def without_times(workdir):
        timed = ("validation/", "_second", "_seconds", "_wait_share", "goodput", "time", "memory/", "step_seconds/")
        lines = read_metrics(workdir)
        return [{k: v for k, v in line.items() if not any(part in k for part in timed)} for line in lines]

    assert [line["step"] for line in read_metrics(runs.resumed)] == [1, 2, 3, 4]
    assert without_times(runs.resumed) == without_times(runs.straight)


def test_held_out_rows_are_evaluated_at_their_steps(runs):
    validated = {line["step"] for line in read_metrics(runs.resumed) if "validation/loss" in line}
    assert validated == runs.validated
    assert not any("validation/loss" in line for line in read_metrics(runs.straight))


def test_a_workdir_is_read_at_a_step_and_as_its_average(runs):
    config = read_architecture(runs.straight)
    for item in runs.parts & {"params", "ema"}:
        params = flatten(load_params(open_params(runs.straight, config, ema=item == "ema", step=2)))
        loaded = {"".join(f"['{part}']" for part in (item, *path.split("/"))): leaf for path, leaf in params.items()}
        saved = {path: leaf for path, leaf in saved_state(runs.straight, 2).items() if path.startswith(f"['{item}']")}
        assert differing_leaves(loaded, saved) == []
    with pytest.raises(UserError, match="holds no checkpoint of step 3, only of 2, 4"):
        open_params(runs.straight, config, step=3)


def test_a_workdir_is_read_at_its_newest_checkpoint(runs):
    assert sorted(int(path.name) for path in (runs.straight / "checkpoints").iterdir()) == [2, 4]
    params = flatten(load_params(open_params(runs.straight, read_architecture(runs.straight))))
    loaded = {"".join(f"['{part}']" for part in ("params", *path.split("/"))): leaf for path, leaf in params.items()}
    newest = {path: leaf for path, leaf in saved_state(runs.straight, 4).items() if path.startswith("['params']")}
    assert differing_leaves(loaded, newest) == []


@pytest.mark.slow  # compiles two training steps
def test_a_run_goes_on_under_another_remat_policy_with_the_same_losses(data_folder, tmp_path, capsys):
    """The policy changes rounding at most, so a checkpoint does not depend on it."""
    config = janus_experiment(data_folder)
    config.remat = "full"
    loop.train(config, tmp_path / "full")
    shutil.copytree(tmp_path / "full", tmp_path / "other")
    shutil.rmtree(tmp_path / "other" / "checkpoints" / "4")
    capsys.readouterr()
    config.remat = "projections"
    loop.train(config, tmp_path / "other")
    printed = capsys.readouterr().out
    assert "resumed from checkpoint 2" in printed and "remat full -> projections" in printed
    expected, lines = read_metrics(tmp_path / "full"), read_metrics(tmp_path / "other")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line, reference in zip(lines, expected, strict=True):
        losses = {name for name in reference if name.startswith(("loss", "grad_norm"))}
        assert len(losses) > 3
        for name in losses:
            assert line[name] == pytest.approx(reference[name], rel=1e-6)
    assert expected[2]["loss"] != pytest.approx(expected[3]["loss"], rel=1e-3)
