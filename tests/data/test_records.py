import dataclasses

import msgpack
import numpy as np
import pytest

from janus_jax.data.prompts import Message
from janus_jax.data.records import Record, write_records
from janus_jax.errors import UserError
from tests.helpers.tiny_data import alternate, document, flat_png, generate, text, understand

RECORDS = [
    understand("<image>\nWhat? é", "A cat 猫.", images=[flat_png(1)], key="a/1"),
    understand("<image> or <image>?", "first", "sure?", "yes", images=[flat_png(1), flat_png(2)], key="a/2"),
    text("q", "a", key="b/1"),
    text("what does <image> mean?", "a marker", key="b/2"),
    document("Once upon a time.", key="c/1"),
    generate("a dog", flat_png(3), key="d/1"),
    Record(task="text", messages=(Message("system", "Be brief."), *alternate(("q", "a"))), key="e/1"),
]


@pytest.mark.parametrize("record", RECORDS, ids=[record.key for record in RECORDS])
def test_serialization_round_trip(record):
    assert Record.deserialize(record.serialize()) == record


def test_lengths_and_codes_are_stored_where_known():
    codes = np.array([0, 1, 16383, 65535])
    record = dataclasses.replace(generate("a dog", flat_png(3)), tokens=17).with_codes(codes)
    without_image = dataclasses.replace(record, images=())
    for one in (record, without_image):
        again = Record.deserialize(one.serialize())
        assert again == one and again.tokens == 17 and again.code_array.dtype == np.int32
        np.testing.assert_array_equal(again.code_array, codes)
    assert record.codes == b"\0\0\1\0\xff\x3f\xff\xff"
    assert generate("a dog", flat_png(3)).code_array is None
    with pytest.raises(UserError, match="codes 0 .. 65536 do not fit"):
        record.with_codes(np.array([0, 65536]))
    with pytest.raises(UserError, match="codes -1 .. 5 do not fit"):
        record.with_codes(np.array([5, -1]))


def test_records_of_the_first_version_are_read_and_of_the_next_refused():
    assert "version" not in msgpack.unpackb(payload()) and Record.deserialize(payload()).tokens is None
    assert msgpack.unpackb(text("q", "a").serialize())["version"] == 2
    with pytest.raises(UserError, match="format version 3.* 2$"):
        Record.deserialize(payload(version=3))


IMAGE = flat_png(0)
BROKEN = {
    "unknown task": (dict(task="caption"), r"task 'caption' is not one of"),
    "image without marker": (dict(messages=alternate(("q", "a"))), r"0 image markers but 1 images"),
    "marker without image": (dict(images=()), r"1 image markers but 0 images"),
    "more markers than images": (dict(messages=alternate(("<image><image>", "a"))), r"2 image markers but 1 images"),
    "assistant first": (dict(messages=alternate(("<image>", "a"))[::-1]), r"do not alternate"),
    "two users": (dict(messages=(Message("user", "<image>"), Message("user", "q"))), r"do not alternate"),
    "trailing user": (dict(messages=alternate(("<image>", "a", "q"))), r"do not alternate"),
    "unknown role": (dict(messages=(Message("user", "<image>"), Message("tool", "a"))), r"do not alternate"),
    "single message": (dict(messages=(Message("assistant", "<image>"),)), r"do not alternate"),
    "no messages": (dict(messages=(), images=()), r"do not alternate"),
    "only a system message": (dict(messages=(Message("system", "<image>"),)), r"do not alternate"),
    "a system message in the middle": (
        dict(messages=(Message("user", "<image>"), Message("system", "s"), Message("assistant", "a"))),
        r"do not alternate",
    ),
    "two system messages": (
        dict(messages=(Message("system", "s"), Message("system", "s"), *alternate(("<image>", "a")))),
        r"do not alternate",
    ),
    "a document with a system message": (
        dict(task="text", messages=(Message("system", "s"), Message("assistant", "a")), images=()),
        r"do not alternate",
    ),
    "generation with a system message": (
        dict(task="generate", messages=(Message("system", "s"), *alternate(("a", "<image>")))),
        r"one caption answered by",
    ),
    "empty answer in the middle": (dict(messages=alternate(("<image>", "", "q", "a"))), r"message is empty"),
    "empty answer": (dict(messages=alternate(("<image>", " \n"))), r"message is empty"),
    "generation answered by text": (
        dict(task="generate", messages=alternate(("<image>", "a"))),
        r"one caption answered by",
    ),
    "generation in two turns": (
        dict(task="generate", messages=alternate(("a", "b", "c", "<image>"))),
        r"one caption answered by",
    ),
    "generation without its condition image": (
        dict(task="generate", messages=alternate(("<image>", "<image>")), images=(IMAGE,)),
        r"2 image markers but 1 images",
    ),
    "images in a text sample": (dict(task="text"), r"0 image markers but 1 images"),
    "codes in an understanding sample": (dict(codes=b"\0\0"), r"2 bytes of codes .*'understand'"),
    "half a code": (
        dict(task="generate", messages=alternate(("a", "<image>")), codes=b"\0\0\0"),
        r"3 bytes of codes .*'generate'",
    ),
    "no tokens": (dict(tokens=0), r"a length of 0 tokens"),
    "empty document": (
        dict(task="text", messages=(Message("assistant", ""),), images=()),
        r"message is empty",
    ),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_every_broken_rule_is_an_error_that_names_the_sample(change, message, tmp_path):
    good = understand("<image>\nq", "a", images=[IMAGE], key="set/7")
    broken = dataclasses.replace(good, **change)
    with pytest.raises(UserError, match=rf"^set/7: .*{message}"):
        broken.validate()
    with pytest.raises(UserError, match=message):
        Record.deserialize(broken.serialize())
    with pytest.raises(UserError, match=message):
        write_records(tmp_path / "x.array_record", [good, broken])


def payload(**changes):
    good = {"task": "text", "messages": [["user", "q"], ["assistant", "a"]], "images": [], "key": "k"}
    return msgpack.packb(good | changes)


def test_the_undamaged_payload_is_a_record():
    assert Record.deserialize(payload()) == text("q", "a", key="k")


DAMAGED = {
    "empty": b"",
    "garbage": b"\xc1\xff\x00",
    "truncated": payload()[:-3],
    "trailing bytes": payload() + b"\x00",
    "not UTF-8": payload().replace(b"assistant", b"assist\xff\xfft"),
    "a list": msgpack.packb([1, 2]),
    "a number": msgpack.packb(3),
    "missing field": msgpack.packb({"task": "text", "messages": [], "images": []}),
    "messages are a number": payload(messages=3),
    "message without text": payload(messages=[["user"], ["assistant", "a"]]),
    "message of numbers": payload(messages=[1, 2]),
    "text is null": payload(messages=[["user", None], ["assistant", "a"]]),
    "image is text": payload(task="understand", messages=[["user", "<image>"], ["assistant", "a"]], images=["x"]),
    "image is a number": payload(task="understand", messages=[["user", "<image>"], ["assistant", "a"]], images=[3]),
    "task is null": payload(task=None),
    "length is text": payload(tokens="5"),
    "codes are a list": payload(codes=[1, 2]),
    "version is text": payload(version="2"),
    "version 0": payload(version=0),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_payload_is_a_user_error(data):
    with pytest.raises(UserError):
        Record.deserialize(data)
