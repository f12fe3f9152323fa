"""The quickstart clears only a folder that it made."""

import pytest
from absl.testing import flagsaver
from etils import epath

from janus_jax.errors import UserError
from launch.quickstart import WRITTEN, _claim, _timed


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
    with flagsaver.flagsaver(seed=7), pytest.raises(UserError, match=r"--seed=7, but the stopped run .* has seed 0"):
        _claim(folder)
