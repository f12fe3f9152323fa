"""The ways in which Hugging Face data sets encode images, captions and messages as Arrow columns."""

import base64
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from janus_jax.data.dropped_samples import Reason
from janus_jax.data.formats.registry import open_dataset
from janus_jax.errors import UserError
from tests.helpers.source_files import image, read_all, read_notes

RED, BLUE = image(size=(40, 30)), image(colour=(0, 0, 255))
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TURN = pa.struct([("role", pa.string()), ("content", pa.string())])
TURNS = [{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": "Red."}]
TEXT_TURNS = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "Red."}]


@pytest.fixture
def data_set(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "red.png").write_bytes(RED)

    def of(columns, features=None, **options):
        """`columns`: name -> (type, values)."""
        schema = pa.schema([(name, kind) for name, (kind, _) in columns.items()])
        if features:
            schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        table = pa.table({name: values for name, (_, values) in columns.items()}, schema=schema)
        pq.write_table(table, tmp_path / "a.parquet")
        options = {"image_root": (str(tmp_path / "images"),)} | options
        return open_dataset("parquet", str(tmp_path / "a.parquet"), options)

    return of


def of_red(data=RED):
    return {"bytes": data, "path": "red.png"}


# An image column, and a value of it that stands for the red image.
IMAGE_COLUMNS = {
    "struct": (IMAGE, of_red()),
    "struct of large types": (pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())]), of_red()),
    "struct with a path only": (IMAGE, of_red(None)),
    "list of structs": (pa.list_(IMAGE), [of_red()]),
    "large list": (pa.large_list(IMAGE), [of_red()]),
    "struct of lists": (pa.struct([("bytes", pa.list_(pa.binary()))]), {"bytes": [RED]}),
    "struct of lists and a null": (
        pa.struct([("bytes", pa.list_(pa.binary())), ("path", pa.list_(pa.string()))]),
        {"bytes": [RED], "path": None},
    ),
    "bytes": (pa.binary(), RED),
    "large bytes": (pa.large_binary(), RED),
    "bytes of one size": (pa.binary(len(RED)), RED),
    "path": (pa.string(), "red.png"),
    "path in a dictionary": (pa.dictionary(pa.int32(), pa.string()), "red.png"),
    "large path": (pa.large_string(), "red.png"),
    "list of paths": (pa.list_(pa.string()), ["red.png"]),
    "base64": (pa.string(), base64.b64encode(RED).decode()),
    "data URL": (pa.string(), "data:image/png;base64," + base64.b64encode(RED).decode()),
}


@pytest.mark.parametrize(("kind", "value"), IMAGE_COLUMNS.values(), ids=IMAGE_COLUMNS.keys())
@pytest.mark.parametrize("column", ["image", "picture"])
def test_every_encoding_of_an_image_is_read(data_set, kind, value, column):
    """Half of the rows have no image: they are counted where a caption or marker needs one, and text otherwise."""
    chosen = {"image_column": column} if column == "picture" else {}
    pairs = {column: (kind, [value, None]), "caption": (pa.string(), ["c", "d"])}
    records, bad = read_all(data_set(pairs, **chosen))
    assert [(record.images, record.messages[0].text) for record in records] == [((RED,), "c")]
    assert [item.reason for item in bad] == [Reason.NO_IMAGE]
    rows = {column: (kind, [value, None, None]), "messages": (pa.list_(TURN), [TURNS, TURNS, TEXT_TURNS])}
    records, bad = read_all(data_set(rows, **chosen))
    assert [(record.task, record.images) for record in records] == [("understand", (RED,)), ("text", ())]
    assert [item.reason for item in bad] == [Reason.MISSING_IMAGE]


@pytest.mark.parametrize("null", [{"bytes": None, "path": None}, None])
def test_a_null_image_is_none(data_set, null):
    rows = {"image": (IMAGE, [null]), "messages": (pa.list_(TURN), [TURNS])}
    assert [item.reason for item in read_all(data_set(rows))[1]] == [Reason.MISSING_IMAGE]


CAPTIONS = {
    "list": (pa.list_(pa.string()), ["first", "second"]),
    "large list": (pa.large_list(pa.large_string()), ["first", "second"]),
    "list with a null": (pa.list_(pa.string()), [None, "first"]),
    "dictionary": (pa.dictionary(pa.int8(), pa.string()), "first"),
    "bytes": (pa.binary(), b"\xef\xbb\xbffirst"),
    "UTF-16": (pa.binary(), "first".encode("utf-16")),
}


@pytest.mark.parametrize(("kind", "value"), CAPTIONS.values(), ids=CAPTIONS.keys())
def test_of_several_captions_the_first_is_taken(data_set, kind, value):
    columns = {"image": (IMAGE, [of_red()] * 2), "caption": (kind, [value, None])}
    records, bad = read_all(data_set(columns))
    assert [record.messages[0].text for record in records] == ["first"]
    assert [item.reason for item in bad] == [Reason.NO_TEXT]


def test_empty_list_of_captions_and_other_encodings_are_counted(data_set):
    columns = {"image": (IMAGE, [of_red()]), "caption": (pa.list_(pa.string()), [[]])}
    assert [item.reason for item in read_all(data_set(columns))[1]] == [Reason.NO_TEXT]
    columns = {"image": (IMAGE, [of_red()]), "caption": (pa.binary(), [b"caf\xe9"])}
    assert [item.reason for item in read_all(data_set(columns))[1]] == [Reason.BAD_TEXT]


COLUMNS_OF = pa.struct([("role", pa.list_(pa.string())), ("content", pa.list_(pa.string()))])
PART = pa.struct([("type", pa.string()), ("text", pa.string()), ("image", IMAGE)])
PARTS_OF = pa.struct([("type", pa.list_(pa.string())), ("text", pa.list_(pa.string()))])
MESSAGES = {
    "list of structs": (pa.list_(TURN), TURNS),
    "struct of lists": (COLUMNS_OF, {"role": ["user", "assistant"], "content": ["<image>\nWhat?", "Red."]}),
    "JSON": (pa.string(), json.dumps(TURNS)),
    "parts as a struct of lists": (
        pa.list_(pa.struct([("role", pa.string()), ("content", PARTS_OF)])),
        [
            {"role": "user", "content": {"type": ["image", "text"], "text": [None, "What?"]}},
            {"role": "assistant", "content": {"type": ["text"], "text": ["Red."]}},
        ],
    ),
}


@pytest.mark.parametrize(("kind", "value"), MESSAGES.values(), ids=MESSAGES.keys())
def test_every_encoding_of_messages_is_read(data_set, kind, value):
    records, bad = read_all(data_set({"image": (IMAGE, [of_red()]), "conversations": (kind, [value])}))
    assert bad == [] and records[0].images == (RED,)
    assert [tuple(message) for message in records[0].messages] == [("user", "<image>\nWhat?"), ("assistant", "Red.")]


def test_parts_may_hold_their_images(data_set):
    content = [{"type": "image", "image": {"bytes": BLUE}}, {"type": "text", "text": "What?"}]
    value = [{"role": "user", "content": content}, {"role": "assistant", "content": [{"type": "text", "text": "B"}]}]
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.list_(PART))]))
    records, bad = read_all(data_set({"messages": (kind, [value])}))
    assert bad == [] and records[0].images == (BLUE,)


def test_columns_of_messages_must_have_one_length(data_set):
    value = {"role": ["user", "assistant"], "content": ["q"]}
    assert [item.reason for item in read_all(data_set({"messages": (COLUMNS_OF, [value])}))[1]] == [Reason.BAD_FIELD]


FEATURES = ({"_type": "Image"}, [{"_type": "Image"}], {"_type": "Sequence", "feature": {"_type": "Image"}})
UNREAD = {
    "struct": ("img", IMAGE, of_red(), None),
    "list": ("img", pa.list_(IMAGE), [of_red()], None),
    "any name": ("screen", IMAGE, of_red(), None),
    "bytes with a name of images": ("picture", pa.binary(), RED, None),
    "a second image column": ("images", IMAGE, of_red(), None),
    "video": ("video", pa.string(), "a.mp4", None),
    "sound": ("speech", IMAGE, of_red(), {"speech": {"_type": "Audio"}}),
    **{f"feature {i}": ("x", pa.string(), "red.png", {"x": feature}) for i, feature in enumerate(FEATURES)},
}


@pytest.mark.parametrize(("column", "kind", "value", "features"), UNREAD.values(), ids=UNREAD.keys())
@pytest.mark.parametrize("other", ["messages", "text", "image"])
def test_a_column_of_media_that_nobody_reads_is_an_error(data_set, column, kind, value, features, other):
    others = {
        "messages": {"messages": (pa.list_(TURN), [TEXT_TURNS])},
        "text": {"text": (pa.string(), ["t"])},
        "image": {"image": (IMAGE, [of_red()]), "caption": (pa.string(), ["c"])},
    }[other]
    if other != "image" and column == "images":
        return  # It is the column of images, since there is no other.
    columns = {column: (kind, [value]), **others}
    with pytest.raises(UserError, match=rf"^a\.parquet: .*'{column}'.*--image_column"):
        data_set(columns, features).units()
    chosen = "image" if other == "image" else "none"
    source = data_set(columns, features, image_column=chosen)
    records, bad = read_all(source)
    assert bad == [] and [record.task for record in records] == ["generate" if other == "image" else "text"]
    assert read_notes(source) == {f"column not read: {column}": 1}


def test_a_text_column_that_names_an_image_is_no_text(data_set):
    rows = {
        "messages": (pa.list_(TURN), [TEXT_TURNS] * 3),
        "image_path": (pa.string(), ["red.png", None, ""]),
        "image_id": (pa.string(), ["17", "18", "19"]),
    }
    source = data_set(rows)
    records, bad = read_all(source)
    assert [item.reason for item in bad] == [Reason.UNREAD_MEDIA] and len(records) == 2
    assert read_notes(source) == {"column not read: image_id": 3, "column not read: image_path": 3}
    records, bad = read_all(data_set(rows, image_column="none"))
    assert bad == [] and len(records) == 3


# A column under a name that tells nothing, and a value of it that tells of an image, video or sound.
ELSEWHERE = {
    "bytes": (pa.binary(), RED),
    "list of bytes": (pa.list_(pa.binary()), [RED]),
    "MP4": (pa.binary(), b"\0\0\0 ftypisom"),
    "path": (pa.string(), "coco/red.png"),
    "URL": (pa.string(), "https://x.org/a.webp?w=3"),
    "base64": (pa.string(), base64.b64encode(RED).decode()),
    "structure with a path": (
        pa.struct([("kind", pa.string()), ("path", pa.string())]),
        {"kind": "a", "path": "a.wav"},
    ),
}


@pytest.mark.parametrize(("kind", "value"), ELSEWHERE.values(), ids=ELSEWHERE)
@pytest.mark.parametrize("rows", ["messages", "text"])
def test_media_under_any_name_make_no_text_of_a_row(data_set, kind, value, rows):
    text = {"messages": (pa.list_(TURN), [TEXT_TURNS] * 2), "text": (pa.string(), ["a dog"] * 2)}[rows]
    columns = {rows: text, "extra": (kind, [value, None])}
    records, bad = read_all(data_set(columns))
    assert [item.reason for item in bad] == [Reason.UNREAD_MEDIA] and len(records) == 1
    records, bad = read_all(data_set(columns, image_column="none"))
    assert bad == [] and len(records) == 2


def test_an_image_deep_in_a_structure_is_an_error(data_set):
    kind = pa.struct([("sample", pa.list_(pa.struct([("picture", IMAGE)])))])
    columns = {"text": (pa.string(), ["a"]), "meta": (kind, [{"sample": [{"picture": of_red()}]}])}
    with pytest.raises(UserError, match="'meta'"):
        data_set(columns).units()


def test_columns_of_numbers_texts_and_hashes_are_no_media(data_set):
    columns = {
        "text": (pa.string(), ["a"]), "md5": (pa.binary(), [b"\x01\xd8\xff"]), "url": (pa.string(), ["http://x.org/"]),
        "meta": (pa.struct([("title", pa.string())]), [{"title": "on cat.gif"}]), "ids": (pa.list_(pa.int32()), [[1]]),
    }  # fmt: skip
    records, bad = read_all(data_set(columns))
    assert bad == [] and len(records) == 1
