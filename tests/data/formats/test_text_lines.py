import gzip
import json

import pytest
import zstandard

from janus_jax.data.dropped_samples import Reason
from janus_jax.data.formats import json_lines, streams
from janus_jax.data.formats.registry import open_dataset
from janus_jax.errors import UserError
from tests.helpers.source_files import read_all

SUFFIXES = {
    "jsonl": lambda data: data,
    "jsonl.gz": gzip.compress,
    "jsonl.zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}
LINE = b'{"text": "good"}\n'


def read(tmp_path, data, suffix="jsonl", **options):
    (tmp_path / f"part.{suffix}").write_bytes(data)
    return read_all(open_dataset("text", str(tmp_path / f"part.{suffix}"), options))


def texts(records):
    return [record.messages[0].text for record in records]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_documents(tmp_path, suffix):
    values = ["First document.", "Deuxième, naïve façade 🙂", "", None, "line\nbreak", "a\u2028b\u0085c"]
    data = "".join(json.dumps({"text": value, "meta": {}}, ensure_ascii=False) + "\n" for value in values).encode()
    records, bad = read(tmp_path, SUFFIXES[suffix](data), suffix)
    assert texts(records) == [value for value in values if value]
    assert [item.reason for item in bad] == [Reason.NO_TEXT] * 2
    assert {record.task for record in records} == {"text"} and records[0].messages[0].role == "assistant"
    assert [record.key for record in records][:2] == [
        f"part.{suffix}:0",
        f"part.{suffix}:{data.index(b'{', 1 + data.index(b'}}'))}",
    ]


def test_another_field_and_conversations(tmp_path):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    data = json.dumps({"content": "x"}) + "\n" + json.dumps({"messages": turns}) + "\n" + json.dumps({"text": "y"})
    records, bad = read(tmp_path, data.encode(), text_field="content")
    assert [[tuple(message) for message in record.messages] for record in records] == [
        [("assistant", "x")],
        [("user", "q"), ("assistant", "a")],
    ]
    assert [item.reason for item in bad] == [Reason.NO_TEXT]


# Lines between two good ones, and why they are dropped (None: they are read).
LINES = {
    "a number": (b"3", Reason.BAD_FIELD),
    "a list": (b"[1]", Reason.BAD_FIELD),
    "text is a number": (b'{"text": 3}', Reason.BAD_FIELD),
    "not JSON": (b"oops", Reason.BAD_JSON),
    "cut": (b'{"text": "a', Reason.BAD_JSON),
    "NUL bytes": (b"\0\0\0", Reason.BAD_TEXT),
    "UTF-16": ('{"text": "a"}'.encode("utf-16-le"), Reason.BAD_TEXT),
    "not UTF-8": (b'{"text": "\xff"}', Reason.BAD_TEXT),
    "an image marker": (b'{"text": "see <image>"}', Reason.MISSING_IMAGE),
    "half of a character": (b'{"text": "b\\ud800"}', Reason.BAD_TEXT),
    "deep": (b"[" * 100_000, Reason.BAD_JSON),
    "huge number": (b'{"text": ' + b"9" * 5000 + b"}", Reason.BAD_JSON),
    "huge": (b'{"text": "' + b"x" * (5 << 20) + b'"}', Reason.TOO_LARGE),
    "many values": (b'{"text": "a", "images": [' + b"[]," * (2 << 20) + b"[]]}", Reason.TOO_LARGE),
    "byte order mark inside": (b'\xef\xbb\xbf{"text": "a"}', None),
    "Windows line": (b'{"text": "a"}\r', None),
    "two objects": (b'{"text": "a"} {"text": "b"}', Reason.BAD_JSON),
}


@pytest.mark.parametrize(("line", "reason"), LINES.values(), ids=LINES.keys())
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_bad_line_is_counted_and_its_neighbours_are_read(tmp_path, line, reason, suffix):
    records, bad = read(tmp_path, SUFFIXES[suffix](LINE + line + b"\n\n" + LINE), suffix)
    assert [item.reason for item in bad] == ([reason] if reason else [])
    assert texts(records) == (["good", "good"] if reason else ["good", "a", "good"])


def test_files_with_byte_order_marks_may_be_joined(tmp_path):
    part = b'\xef\xbb\xbf{"text": "a"}\n'
    records, bad = read(tmp_path, part * 3)
    assert texts(records) == ["a"] * 3 and bad == []


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])  # Python writes them with their mark
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_other_encodings_with_a_mark(tmp_path, encoding, suffix, monkeypatch):
    monkeypatch.setattr(streams, "CHUNK", 7)  # characters straddle the pieces
    monkeypatch.setattr(json_lines, "UNIT_BYTES", 10)
    values = ["Füchse", "狐狸" * 50, "🦊"]
    lines = "".join(json.dumps({"text": value}, ensure_ascii=False) + "\n" for value in values)
    records, bad = read(tmp_path, SUFFIXES[suffix](lines.encode(encoding)), suffix)
    assert texts(records) == values and bad == []
    records, bad = read(tmp_path, SUFFIXES[suffix](lines.encode(encoding)[:-1]), suffix)
    assert texts(records)[:1] == values[:1] and [item.reason for item in bad] == [Reason.CORRUPT]


@pytest.mark.parametrize("suffix", ["jsonl.gz", "jsonl.zst"])
def test_several_members_or_frames_and_truncation(tmp_path, suffix):
    compress = SUFFIXES[suffix]
    data = compress(LINE * 2) + compress(b"") + compress(LINE)
    records, bad = read(tmp_path, data, suffix)
    assert len(records) == 3 and bad == []
    for cut in (1, 6, len(compress(LINE)) // 2):
        records, bad = read(tmp_path, data[:-cut], suffix)
        assert [item.reason for item in bad] == [Reason.CORRUPT] and len(records) >= 2
    assert [item.reason for item in read(tmp_path, b"<html>" * 100, suffix)[1]] == [Reason.CORRUPT]
    damaged = bytearray(compress(LINE * 1000))
    damaged[len(damaged) // 2] ^= 0xFF
    assert Reason.CORRUPT in [item.reason for item in read(tmp_path, bytes(damaged), suffix)[1]]


def test_zstd_with_a_window_beyond_the_default_limit(tmp_path):
    parameters = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=False)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = compressor.compress(LINE) + compressor.flush()  # without a content size, which would shrink the window
    with pytest.raises(zstandard.ZstdError, match="too much memory"):
        zstandard.ZstdDecompressor().decompressobj().decompress(data)
    records, bad = read(tmp_path, data, "jsonl.zst")
    assert texts(records) == ["good"] and bad == []


@pytest.mark.parametrize("suffix", ["jsonl.gz", "jsonl.zst"])
def test_bomb_is_one_line_over_the_limit(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(streams, "MAX_LINE_BYTES", 1 << 20)
    data = SUFFIXES[suffix](LINE + bytes(100 << 20) + b"\n" + LINE)
    assert len(data) < 200_000
    records, bad = read(tmp_path, data, suffix)
    assert texts(records) == ["good", "good"] and [item.reason for item in bad] == [Reason.TOO_LARGE]


@pytest.mark.parametrize("unit_bytes", [1, 7, 16, 17, 18, 100, 1000])
def test_byte_ranges_give_every_line_once(tmp_path, monkeypatch, unit_bytes):
    data = b"".join(json.dumps({"text": f"{i}" * (1 + i % 7)}).encode() + b"\n" * (1 + i % 3) for i in range(30))
    (tmp_path / "a.jsonl").write_bytes(data)
    source = open_dataset("text", str(tmp_path / "a.jsonl"), {})
    whole, _ = read_all(source)
    monkeypatch.setattr(json_lines, "UNIT_BYTES", unit_bytes)
    parts, bad = read_all(source)
    assert bad == [] and len(whole) == 30 and parts == whole


def test_several_files_in_sorted_order_and_no_file(tmp_path):
    for name in ("b.jsonl", "a.jsonl.gz"):
        (tmp_path / name).write_bytes(SUFFIXES[name[2:]](LINE))
    records, _ = read_all(open_dataset("text", [str(tmp_path / "*"), str(tmp_path)], {}))
    assert [record.key for record in records] == ["a.jsonl.gz:0", "b.jsonl:0"]
    with pytest.raises(UserError, match=r"^--input: .*c\*' matches no file"):
        open_dataset("text", str(tmp_path / "c*"), {}).units()
