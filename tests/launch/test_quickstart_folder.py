"""The quickstart clears only a folder that it made; its ablation compares at equal compute."""

import pytest
from absl.testing import flagsaver
from etils import epath

from configs import quickstart_flow
from examples.digits.ablation import arm_configs, flops_of_step
from examples.digits.quickstart import WRITTEN, _claim, _timed
from janus_jax.errors import UserError


@pytest.mark.parametrize("name", WRITTEN)
def test_a_folder_with_files_of_others_is_refused_and_left_alone(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine").write_text("kept")
    with pytest.raises(UserError, match=rf"--output={tmp_path}: holds {name}"):
        _claim(epath.Path(tmp_path))
    assert (tmp_path / name / "mine").read_text() == "kept"


def test_an_unfinished_run_goes_on_and_a_finished_one_is_cleared(tmp_path):
    folder = epath.Path(tmp_path)
    _claim(folder)
    (folder / "runs").mkdir()
    (folder / "mine.txt").write_text("kept")
    _claim(folder)
    assert (folder / "runs").exists()
    (folder / "report.json").write_text("{}")
    _claim(folder)
    assert sorted(path.name for path in folder.iterdir()) == [".janus_jax_quickstart", "mine.txt"]


def test_an_ablation_is_added_to_a_finished_run_of_the_same_seed(tmp_path):
    folder = epath.Path(tmp_path)
    seconds = _claim(folder)
    for name in ("stage1", "evaluation"):
        with _timed(folder, seconds, name):
            pass
    (folder / "runs").mkdir()
    (folder / "report.json").write_text("{}")
    with flagsaver.flagsaver(ablation=True, seed=7), pytest.raises(UserError, match="has seed 0"):
        _claim(folder)
    with flagsaver.flagsaver(ablation=True):
        assert list(_claim(folder)) == ["stage1"]  # evaluated again
    assert (folder / "runs").exists() and not (folder / "report.json").exists()


def test_arms_of_the_ablation_do_the_same_operations_at_every_point():
    """To half a step; the arm without the loss has less to do in each."""
    config = quickstart_flow.get_config("ablation")
    arms = arm_configs(config, 4)
    assert [arm.loss.alignment_weight for arm in arms.values()] == [1.0, 0.0]
    assert arms["with"].train.num_steps == config.train.num_steps < arms["without"].train.num_steps
    work = {name: arm.checkpoint.every_steps * flops_of_step(arm) for name, arm in arms.items()}
    assert abs(work["with"] - work["without"]) <= flops_of_step(arms["without"]) / 2
    assert all(arm.train.num_steps == 4 * arm.checkpoint.every_steps for arm in arms.values())
    assert all(arm.checkpoint.keep == 4 and arm.train.schedule == "constant" for arm in arms.values())


def test_a_stopped_run_keeps_its_seconds_and_refuses_another_seed(tmp_path):
    folder = epath.Path(tmp_path)
    seconds = _claim(folder)
    with _timed(folder, seconds, "stage1"):
        pass
    with pytest.raises(KeyboardInterrupt), _timed(folder, seconds, "stage2"):
        raise KeyboardInterrupt
    assert list(seconds) == ["stage1", "stage2"]
    again = _claim(folder)
    assert again == seconds
    with _timed(folder, again, "stage2"):
        pass
    assert _claim(folder)["stage2"] > seconds["stage2"]
    with flagsaver.flagsaver(seed=7), pytest.raises(UserError, match=r"--seed=7, but the run .* has seed 0"):
        _claim(folder)
