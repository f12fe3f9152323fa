import pickle

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from janus_jax.data.record_reader import open_records
from janus_jax.data.records import Record, write_records
from janus_jax.errors import UserError
from tests.helpers.tiny_data import document

RECORDS = [document(f"text {i}", key=f"d/{i}") for i in range(7)]


def read(source):
    return [Record.deserialize(source[i].data) for i in range(len(source))]


@pytest.fixture
def folder(tmp_path):
    """Two files; their sorted order is not that of the records."""
    write_records(tmp_path / "b.array_record", RECORDS[:2])
    write_records(tmp_path / "a.array_record", RECORDS[2:])
    (tmp_path / "other.bin").write_bytes(b"not matched")
    return tmp_path


def test_files_are_read_in_sorted_order(folder):
    source = open_records(f"{folder}/*.array_record", "field")
    assert read(source) == RECORDS[2:] + RECORDS[:2]
    assert [source[i].origin for i in (0, 4, 5, 6)] == [
        "a.array_record:0",
        "a.array_record:4",
        "b.array_record:0",
        "b.array_record:1",
    ]
    assert read(pickle.loads(pickle.dumps(source))) == read(source)  # as workers receive it


@pytest.mark.parametrize("index", [-1, 7, 10**9])
def test_index_out_of_range(folder, index):
    with pytest.raises(IndexError):
        open_records(f"{folder}/*.array_record", "field")[index]


@pytest.mark.parametrize("held_out", [1, 3, 6])
def test_held_out_records_are_the_last_and_never_in_the_training_part(folder, held_out):
    pattern = f"{folder}/*.array_record"
    train, validation = (open_records(pattern, "field", held_out, part) for part in (False, True))
    assert read(train) + read(validation) == RECORDS[2:] + RECORDS[:2]
    assert len(validation) == held_out
    with pytest.raises(IndexError):
        train[len(train)]


def test_holding_out_everything_is_refused(folder):
    with pytest.raises(UserError, match=r"field: .* has 7 records, and data\.held_out=7"):
        open_records(f"{folder}/*.array_record", "field", held_out=7)


def test_fingerprint_tells_other_records_but_not_another_folder(folder, tmp_path_factory):
    first = open_records(f"{folder}/*.array_record", "field").fingerprint()
    moved = tmp_path_factory.mktemp("moved")
    for file in folder.glob("*.array_record"):
        (moved / file.name).write_bytes(file.read_bytes())
    assert open_records(f"{moved}/*.array_record", "field").fingerprint() == first
    assert open_records(f"{folder}/*.array_record", "field", held_out=1).fingerprint() != first
    write_records(moved / "c.array_record", RECORDS[:1])
    assert open_records(f"{moved}/*.array_record", "field").fingerprint() != first


def test_record_with_a_wrong_checksum_is_told_and_the_others_are_read(tmp_path):
    rng = np.random.default_rng(0)
    records = [document(rng.bytes(2000).hex(), key=f"d/{i}") for i in range(5)]
    path = tmp_path / "x.array_record"
    write_records(path, records)
    data = bytearray(path.read_bytes())
    data[data.index(records[2].serialize()[500:520]) if records[2].serialize()[500:520] in data else 6000] ^= 1
    path.write_bytes(bytes(data))
    source = open_records(str(path), "field")
    damaged = [i for i in range(5) if source[i].data is None]
    assert len(damaged) == 1
    assert all(Record.deserialize(source[i].data) == records[i] for i in range(5) if i not in damaged)


@pytest.mark.parametrize("pattern", ["*.array_record", "missing/*.array_record", "exact.array_record"])
def test_pattern_without_a_match_is_an_error_that_names_field_and_pattern(pattern, tmp_path):
    with pytest.raises(UserError, match=r"^data\.sources\.text: '.*array_record' matches no file"):
        open_records(f"{tmp_path}/{pattern}", "data.sources.text")


@pytest.mark.parametrize("damage", ["truncated", "foreign", "empty"])
def test_damaged_file_among_others_is_an_error_that_names_field_and_file(damage, folder):
    path = folder / "b.array_record"
    data = path.read_bytes()
    path.write_bytes({"truncated": data[: len(data) // 2], "foreign": b"hello" * 1000, "empty": b""}[damage])
    with pytest.raises(UserError, match=r"^data\.sources\.text: cannot read [^,]*b\.array_record as ArrayRecord"):
        open_records(f"{folder}/*.array_record", "data.sources.text")


def test_file_without_records_is_an_error(tmp_path):
    ArrayRecordWriter(str(tmp_path / "x.array_record"), "group_size:1").close()
    with pytest.raises(UserError, match=r"field: .*x\.array_record' has 0 records"):
        open_records(f"{tmp_path}/x.array_record", "field")
