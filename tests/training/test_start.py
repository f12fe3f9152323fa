"""What the start of a run says before the first step."""

import pytest

from janus_jax.models.params import init_params
from janus_jax.training.start import open_run
from janus_jax.weights.native import save_params
from tests.helpers.tiny_runs import MICRO_VQ, janus_experiment


@pytest.mark.parametrize("prompts", [(), ("a cat",)])
def test_samples_without_prompts_are_named(data_folder, tmp_path, capsys, prompts):
    config = janus_experiment(data_folder)
    config.sample.update(every_steps=2, prompts=prompts)
    open_run(config, tmp_path / "run")
    assert ("sample.every_steps=2, but sample.prompts is empty" in capsys.readouterr().out) == (not prompts)


def test_a_run_that_starts_from_nothing_says_so_and_one_that_starts_from_a_part_does_not(data_folder, tmp_path, capsys):
    config = janus_experiment(data_folder)
    open_run(config, tmp_path / "random")
    assert "WARNING: all parameters are random" in capsys.readouterr().out
    save_params(tmp_path / "vq", MICRO_VQ, init_params(MICRO_VQ, seed=0))
    config.init.vq = str(tmp_path / "vq")
    open_run(config, tmp_path / "part")
    assert "WARNING" not in capsys.readouterr().out
