"""Captions in damaged text or beside damaged metadata: the good one is taken, and nothing is guessed."""

import pytest

from janus_jax.data.dropped_samples import Reason
from janus_jax.data.formats.registry import open_dataset
from tests.helpers.source_files import image, read_all, read_notes, tar

PNG = image()


def read(tmp_path, *members):
    """(caption of the sample or None, reasons of drops, notes) of an archive with an image and these members."""
    (tmp_path / "0.tar").write_bytes(tar([("0.png", PNG), *members]))
    source = open_dataset("webdataset", str(tmp_path), {})
    records, bad = read_all(source)
    caption = records[0].messages[0].text if records else None
    return caption, [item.reason for item in bad], read_notes(source)


@pytest.mark.parametrize("raw", [b"caf\xe9 au lait", b"it\x92s", "a fox".encode("utf-16-le"), "狐狸".encode("gb18030")])
@pytest.mark.parametrize("field", ["txt", "json"])
def test_captions_in_other_encodings_are_dropped(tmp_path, raw, field):
    assert read(tmp_path, (f"0.{field}", raw)) == (None, [Reason.BAD_TEXT], {})


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("value", [b'"first"', b'["first", "second"]', b'[null, "first"]'])
def test_metadata_may_have_a_mark_and_several_captions(tmp_path, mark, value):
    assert read(tmp_path, ("0.json", mark + b'{"caption": ' + value + b"}"))[0] == "first"


# Members of a sample, its caption (None: it is dropped), and the notes on it.
GOOD_AND_BAD = {
    "damaged metadata": ([("0.txt", b"c"), ("0.json", b"{")], "c", {"bad_json in .json, caption taken from .txt": 1}),
    "metadata is a list": (
        [("0.txt", b"c"), ("0.json", b"[]")],
        "c",
        {"bad_field in .json, caption taken from .txt": 1},
    ),
    "metadata in Latin-1": (
        [("0.txt", b"c"), ("0.json", b'{"a": "\xe9"}')],
        "c",
        {"bad_text in .json, caption taken from .txt": 1},
    ),
    "caption in Latin-1": (
        [("0.txt", b"\xe9"), ("0.json", b'{"caption": "d"}')],
        "d",
        {"bad_text in .txt, caption taken from .json": 1},
    ),
    "empty caption": (
        [("0.txt", b""), ("0.json", b'{"caption": "d"}')],
        "d",
        {"no_text in .txt, caption taken from .json": 1},
    ),
    "both damaged": ([("0.txt", b"\xe9"), ("0.json", b"{")], None, {}),
    "NaN": ([("0.txt", b"c"), ("0.json", b'{"similarity": NaN}')], "c", {}),
}


@pytest.mark.parametrize(("members", "caption", "notes"), GOOD_AND_BAD.values(), ids=GOOD_AND_BAD.keys())
def test_a_good_caption_is_not_lost_for_a_damaged_one(tmp_path, members, caption, notes):
    expected = (caption, [] if caption else [Reason.BAD_TEXT], notes)
    assert read(tmp_path, *members) == expected
