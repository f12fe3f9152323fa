"""Files and folders that are written as a whole or not at all."""

import errno
import os
from pathlib import Path

import pytest
from etils import epath

from janus_jax.errors import UserError
from janus_jax.storage import (
    absolute,
    disk_errors,
    matching,
    new_folder,
    prepare_folder,
    read_json,
    why_none,
    write_whole,
)


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_whole(path, "old")

    def full_disk(self, content):
        Path(self).write_bytes(content[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(epath.Path(path)), "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "new")
    assert Path(path).read_text() == "old" and os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_has_its_name_only_when_it_is_complete(tmp_path, exists):
    output = epath.Path(tmp_path / "out")
    if exists:
        output.mkdir()
    with (
        pytest.raises(UserError, match=rf"{output}: cannot be written \(No space left on device\)"),
        new_folder(output),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert os.listdir(tmp_path) == (["out"] if exists else []) and not (exists and os.listdir(output))
    with new_folder(output) as folder:
        (folder / "inside").write_text("")
        assert not (output / "inside").exists()
    assert os.listdir(output) == ["inside"] and os.listdir(tmp_path) == ["out"]
    with pytest.raises(UserError, match=rf"{output}: exists already"), new_folder(output):
        pytest.fail("started to work")


def test_a_json_file_is_read_up_to_a_size(tmp_path):
    path = epath.Path(tmp_path / "a.json")
    with pytest.raises(UserError, match="a.json is missing"):
        read_json(path)
    path.write_text('{"a": 1}')
    assert read_json(path) == {"a": 1}
    with pytest.raises(UserError, match="a.json: larger than 7 bytes"):
        read_json(path, max_bytes=7)


def test_errors_of_the_disk_name_the_path_and_others_pass():
    for error, more in ((OSError("full"), ()), (ValueError("full"), (ValueError,))):
        with pytest.raises(UserError, match=r"here: cannot be written \(full\)"), disk_errors("here", *more):
            raise error
    with pytest.raises(UserError, match="^mine$"), disk_errors("here", ValueError):
        raise UserError("mine")
    with pytest.raises(ValueError, match="^other$"), disk_errors("here"):
        raise ValueError("other")


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


def test_only_the_last_part_of_a_path_is_a_pattern_and_only_where_nothing_has_that_name(tmp_path):
    folder = tmp_path / "exp[1]*?"
    (tmp_path / "exp1xx").mkdir()
    folder.mkdir()
    for name in ("a-0", "a-1", "a-[0]", "b"):
        (folder / name).write_text("")
        (tmp_path / "exp1xx" / name).write_text("")

    def found(pattern):
        return [os.fspath(path.relative_to(folder)) for path in matching(folder / pattern)]

    assert found("a-*") == ["a-0", "a-1", "a-[0]"]
    assert found("a-[01]") == ["a-0", "a-1"]
    assert found("a-[0]") == ["a-[0]"]
    assert found("a-[[]*") == ["a-[0]"]
    assert found("c*") == []
    assert matching(folder) == [folder]
    assert matching(tmp_path / "exp*" / "b") == []
    assert sorted(path.name for path in (absolute(folder) / ".").glob("a-?")) == ["a-0", "a-1"]
    assert "no folder" in why_none(tmp_path / "exp*" / "b") and "last part" in why_none(tmp_path / "exp*" / "b")
    assert why_none(folder / "c*") == "" and "[[]" in why_none(folder / "c[1]*")
