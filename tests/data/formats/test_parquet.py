import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from janus_jax.data.dropped_samples import Reason
from janus_jax.data.formats.registry import open_dataset
from janus_jax.data.prompts import Message
from janus_jax.errors import UserError
from tests.helpers.source_files import image, read_all

PNG, BLUE = image(), image(colour=(0, 0, 255))
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TURN = pa.struct([("role", pa.string()), ("content", pa.string())])


def read(tmp_path, columns, row_group_size=2, metadata=None, **options):
    """`columns`: name -> (type, values)."""
    schema = pa.schema([(name, kind) for name, (kind, _) in columns.items()])
    if metadata:
        schema = schema.with_metadata({"huggingface": json.dumps(metadata)})
    table = pa.table({name: values for name, (_, values) in columns.items()}, schema=schema)
    pq.write_table(table, tmp_path / "train-00000.parquet", row_group_size=row_group_size)
    return read_all(open_dataset("parquet", str(tmp_path), options))


def image_of(data, path=None):
    return {"bytes": data, "path": path}


def test_image_and_caption(tmp_path):
    images = [image_of(PNG, "a.png"), image_of(BLUE), None, image_of(None, "../x.png"), image_of(PNG)]
    columns = {"image": (IMAGE, images), "text": (pa.string(), ["a &amp; b", "c", "d", "e", None])}
    records, bad = read(tmp_path, columns)
    assert [(r.key, r.task, r.messages[0].text, r.images[0]) for r in records] == [
        ("train-00000.parquet/0/0", "generate", "a & b", PNG),
        ("train-00000.parquet/0/1", "generate", "c", BLUE),
    ]
    assert [(item.key[-3:], item.reason) for item in bad] == [
        ("1/0", Reason.NO_IMAGE),
        ("1/1", Reason.MISSING_FILE),
        ("2/0", Reason.NO_TEXT),
    ]


def test_image_given_by_its_path(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(PNG)
    (tmp_path / "secret.png").write_bytes(PNG)
    paths = ["a.png", "../secret.png", "gone.png", str(tmp_path / "secret.png")]
    columns = {
        "image": (IMAGE, [image_of(None, path) for path in paths]),
        "caption": (pa.string(), ["c"] * 4),
    }
    records, bad = read(tmp_path, columns, image_root=(str(tmp_path / "images"),))
    assert [record.images for record in records] == [(PNG,)]
    assert [item.reason for item in bad] == [Reason.PATH_ESCAPE, Reason.MISSING_FILE, Reason.PATH_ESCAPE]


def test_class_labels_become_their_first_names(tmp_path):
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["tench, Tinca", "crane"]}}
    columns = {"image": (IMAGE, [image_of(PNG)] * 3), "label": (pa.int64(), [1, 0, 7])}
    records, bad = read(tmp_path, columns, metadata={"info": {"features": features}})
    assert [record.messages[0].text for record in records] == ["crane", "tench"]
    assert [item.reason for item in bad] == [Reason.BAD_FIELD]
    records, bad = read(tmp_path, columns)  # without names a number is no caption
    assert records == [] and [item.reason for item in bad] == [Reason.BAD_FIELD] * 3


def test_messages_with_a_list_of_images(tmp_path):
    turns = [{"role": "user", "content": "<image> or <image>?"}, {"role": "assistant", "content": "first"}]
    text_only = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    columns = {
        "images": (pa.list_(IMAGE), [[image_of(PNG), image_of(BLUE)], [], None, [image_of(PNG)]]),
        "messages": (pa.list_(TURN), [turns, text_only, text_only, turns]),
    }
    records, bad = read(tmp_path, columns, tasks=("understand", "text"))
    assert [(record.task, record.images) for record in records] == [
        ("understand", (PNG, BLUE)),
        ("text", ()),
        ("text", ()),
    ]
    assert [item.reason for item in bad] == [Reason.IMAGE_COUNT]


def test_messages_in_parts(tmp_path):
    part = pa.struct([("type", pa.string()), ("text", pa.string())])
    turn = pa.struct([("role", pa.string()), ("content", pa.list_(part))])
    question = {"role": "user", "content": [{"type": "text", "text": "What?"}, {"type": "image", "text": None}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}
    video = {"role": "user", "content": [{"type": "video", "text": None}]}
    columns = {
        "image": (IMAGE, [image_of(PNG)] * 2),
        "messages": (pa.list_(turn), [[question, answer], [video, answer]]),
    }
    records, bad = read(tmp_path, columns)
    assert records[0].messages == (Message("user", "<image>\nWhat?"), Message("assistant", "A cat."))
    assert [item.reason for item in bad] == [Reason.UNREAD_MEDIA]


def test_text_and_chosen_columns(tmp_path):
    columns = {"text": (pa.string(), ["one", None, " "]), "body": (pa.string(), ["two", "three", "four"])}
    records, bad = read(tmp_path, columns)
    assert [record.messages for record in records] == [(Message("assistant", "one"),)]
    assert [item.reason for item in bad] == [Reason.NO_TEXT] * 2
    records, _ = read(tmp_path, columns, text_column="body")
    assert [record.messages[0].text for record in records] == ["two", "three", "four"]
    with pytest.raises(UserError, match=r"^--text_column=nope: train-00000\.parquet has no such column, only"):
        read(tmp_path, columns, text_column="nope")
    with pytest.raises(UserError, match=r"^train-00000\.parquet: .*\['number'\]"):
        read(tmp_path, {"number": (pa.int64(), [1])})


def test_wrong_types_are_counted(tmp_path):
    assert [item.reason for item in read(tmp_path, {"text": (pa.int64(), [1, 2])})[1]] == [Reason.BAD_FIELD] * 2
    columns = {"image": (pa.int64(), [1]), "caption": (pa.string(), ["c"])}
    assert [item.reason for item in read(tmp_path, columns)[1]] == [Reason.BAD_FIELD]
    columns = {"messages": (pa.string(), ["hello"])}
    assert [item.reason for item in read(tmp_path, columns)[1]] == [Reason.BAD_FIELD]


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "flipped"])
def test_damaged_parquet_is_counted(tmp_path, damage):
    read(tmp_path, {"text": (pa.string(), [f"text number {i}" for i in range(100)])}, row_group_size=50)
    path = tmp_path / "train-00000.parquet"
    data = path.read_bytes()
    flipped = data[:20] + bytes(byte ^ 0xFF for byte in data[20:200]) + data[200:]
    path.write_bytes({"truncated": data[:-30], "empty": b"", "foreign": b"x" * 999, "flipped": flipped}[damage])
    records, bad = read_all(open_dataset("parquet", str(tmp_path), {}))
    assert [item.reason for item in bad] == [Reason.CORRUPT]
    assert len(records) == (50 if damage == "flipped" else 0)  # the other row group is whole


def test_a_row_that_is_not_utf8_is_lost_alone(tmp_path):
    buffers = [None, pa.py_buffer(np.array([0, 2, 4, 7], np.int32).tobytes()), pa.py_buffer(b"ab\xff\xfeend")]
    table = pa.table({"text": pa.Array.from_buffers(pa.string(), 3, buffers)})
    pq.write_table(table, tmp_path / "a.parquet")
    records, bad = read_all(open_dataset("parquet", str(tmp_path), {}))
    assert [(record.key, record.messages[0].text) for record in records] == [
        ("a.parquet/0/0", "ab"),
        ("a.parquet/0/2", "end"),
    ]
    assert [(item.key, item.reason) for item in bad] == [("a.parquet/0/1", Reason.BAD_TEXT)]


def test_two_columns_of_one_name_are_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], names=["text", "text", "body"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"^a\.parquet: 2 columns are named 'text', expected one"):
        open_dataset("parquet", str(tmp_path), {}).units()
    records, _ = read_all(open_dataset("parquet", str(tmp_path), {"text_column": "body"}))
    assert [record.messages[0].text for record in records] == ["c"]
