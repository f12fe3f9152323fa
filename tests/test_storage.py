import os

import pytest

from janus_jax.errors import UserError
from janus_jax.storage import absolute, prepare_folder


def test_an_output_folder_is_made_and_one_that_cannot_be_written_names_the_flag(tmp_path):
    made = prepare_folder("output", tmp_path / "a" / "b")
    assert made.is_dir() and list(made.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=rf"--output={tmp_path}/file: cannot be written"):
        prepare_folder("output", tmp_path / "file")


def test_a_bucket_stays_one_and_a_local_path_starts_at_the_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert os.fspath(absolute("gs://bucket/runs/x")) == "gs://bucket/runs/x"
    assert os.fspath(absolute("runs/x")) == str(tmp_path / "runs" / "x")
