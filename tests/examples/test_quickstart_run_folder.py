"""A quickstart run clears only a folder that a quickstart made, and keeps count of its seconds."""

import pytest
from etils import epath

from examples.digits.run_folder import WRITTEN, RunFolder
from janus_jax.errors import UserError


def claim(path, seed=0, **options):
    return RunFolder.claim(epath.Path(path), model=options.pop("model", "janus"), seed=seed, **options)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_folder_with_files_of_others_is_refused_and_left_alone(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine").write_text("kept")
    with pytest.raises(UserError, match=rf"--output={tmp_path}: holds {name}"):
        claim(tmp_path)
    assert (tmp_path / name / "mine").read_text() == "kept"


def test_an_unfinished_run_goes_on_and_a_finished_one_is_cleared(tmp_path):
    claim(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "mine.txt").write_text("kept")
    claim(tmp_path)
    assert (tmp_path / "runs").exists()
    (tmp_path / "report.json").write_text("{}")
    claim(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".janus_jax_quickstart", "mine.txt"]


def test_something_is_added_to_a_finished_run_of_the_same_model_and_seed(tmp_path):
    run = claim(tmp_path, model="flow")
    for name in ("stage1", "evaluation"):
        with run.timed(name):
            pass
    (tmp_path / "runs").mkdir()
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(UserError, match="has seed 0"):
        claim(tmp_path, model="flow", seed=7, add_to_finished=True)
    with pytest.raises(UserError, match=r"--model=janus.* flow"):
        claim(tmp_path, add_to_finished=True)
    assert list(claim(tmp_path, model="flow", add_to_finished=True).seconds) == ["stage1"]  # evaluated again
    assert (tmp_path / "runs").exists() and not (tmp_path / "report.json").exists()


def test_a_stopped_run_keeps_its_seconds_and_refuses_another_seed(tmp_path):
    run = claim(tmp_path)
    with run.timed("stage1"):
        pass
    with pytest.raises(KeyboardInterrupt), run.timed("stage2"):
        raise KeyboardInterrupt
    assert list(run.seconds) == ["stage1", "stage2"]
    again = claim(tmp_path)
    assert again.seconds == run.seconds
    with again.timed("stage2"):
        pass
    assert claim(tmp_path).seconds["stage2"] > run.seconds["stage2"]
    with pytest.raises(UserError, match=r"--seed=7, .*seed 0"):
        claim(tmp_path, seed=7)
