"""Held-out records of all tasks are evaluated before the first step, and later evaluations tell the change since."""

import json

import pytest

from janus_jax.errors import UserError
from janus_jax.training import loop
from janus_jax.training.metrics_log import read_metrics
from janus_jax.training.plan import make_plan
from tests.helpers.tiny_runs import janus_experiment

LOSSES = ("loss/understand", "loss/text", "loss/generate")


@pytest.mark.slow
def test_a_run_of_one_task_tells_the_change_of_all_three(data_folder, tmp_path, capsys):
    config = janus_experiment(data_folder, num_steps=2)
    config.data.held_out = 8
    config.data.ratio.update(understand=0.0, text=0.0)  # images alone, which is known to harm answers
    config.validate.update(every_steps=2, num_rows=4, at_start=True, tasks=("understand", "text", "generate"))
    loop.train(config, tmp_path)
    start = json.loads((tmp_path / "validation_at_start.json").read_text())
    last = read_metrics(tmp_path)[-1]
    printed = capsys.readouterr().out
    for name in LOSSES:
        assert last[f"validation/{name}"] != start[name]
        change = last[f"validation/{name}"] - start[name]
        assert last[f"validation/change/{name}"] == pytest.approx(change, abs=1e-6)
        assert f"{name} {last[f'validation/{name}']:.4f} ({change:+.4f})" in printed
    config.train.num_steps = 4
    loop.train(config, tmp_path)  # a resumed run compares with the same start
    resumed = read_metrics(tmp_path)[-1]
    assert resumed["step"] == 4
    change = resumed["validation/loss/text"] - start["loss/text"]
    assert resumed["validation/change/loss/text"] == pytest.approx(change, abs=1e-6)


def test_an_unknown_task_is_refused(data_folder):
    config = janus_experiment(data_folder)
    config.validate.tasks = ("draw",)
    with pytest.raises(UserError, match=r"validate\.tasks"):
        make_plan(config)
