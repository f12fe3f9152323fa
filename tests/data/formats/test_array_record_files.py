from array_record.python.array_record_module import ArrayRecordWriter

from janus_jax.data.dropped_samples import Reason
from janus_jax.data.formats import array_record_files
from janus_jax.data.formats.registry import open_dataset
from janus_jax.data.prompts import Message
from janus_jax.data.records import Record, write_records
from tests.helpers.source_files import read_all


def text(i):
    return Record(task="text", messages=(Message("assistant", f"text {i}"),), key=f"k/{i}")


def test_shards_give_their_records_back(tmp_path, monkeypatch):
    monkeypatch.setattr(array_record_files, "UNIT_RECORDS", 3)
    write_records(tmp_path / "a.array_record", [text(i) for i in range(7)])
    source = open_dataset("array_record", str(tmp_path), {})
    assert len(source.units()) == 3
    assert read_all(source) == ([text(i) for i in range(7)], [])


def test_damaged_shards_and_records_are_counted(tmp_path):
    writer = ArrayRecordWriter(str(tmp_path / "a.array_record"), "group_size:1")
    for payload in (text(0).serialize(), b"garbage", text(1).serialize()):
        writer.write(payload)
    writer.close()
    write_records(tmp_path / "b.array_record", [text(i) for i in range(5)])
    data = bytearray((tmp_path / "b.array_record").read_bytes())
    position = data.index(b"text 2") if b"text 2" in data else len(data) // 3
    data[position] ^= 0xFF
    (tmp_path / "b.array_record").write_bytes(data)
    (tmp_path / "c.array_record").write_bytes(b"x" * 5000)
    records, bad = read_all(open_dataset("array_record", str(tmp_path), {}))
    assert [item.reason for item in bad][0] is Reason.BAD_RECORD and bad[-1].key == "c.array_record"
    assert {item.reason for item in bad[1:]} == {Reason.CORRUPT} and 4 <= len(records) <= 6
