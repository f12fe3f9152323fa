import json
import os

import pytest

from janus_jax.data.dropped_samples import Reason
from janus_jax.data.formats import json_elements, json_list
from janus_jax.data.formats.registry import open_dataset
from janus_jax.data.prompts import Message
from janus_jax.errors import UserError
from tests.helpers.source_files import image, read_all, turns

PNG = image()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images" / "coco").mkdir(parents=True)
    (tmp_path / "images" / "coco" / "1.jpg").write_bytes(PNG)  # a wrong suffix, as in the OCR-VQA recipe
    (tmp_path / "images" / "2.png").write_bytes(image(colour=(0, 0, 1)))
    (tmp_path / "secret.png").write_bytes(PNG)
    return tmp_path


def read(folder, samples, roots=None, raw=None):
    data = json.dumps(samples, ensure_ascii=False).encode("utf-8", "surrogatepass") if raw is None else raw
    (folder / "data.json").write_bytes(data)
    roots = (str(folder / "images"),) if roots is None else roots
    return read_all(open_dataset("llava", str(folder / "data.json"), {"image_root": roots}))


def sample(*texts, image="coco/1.jpg", **more):
    return {"id": 7, "image": image, "conversations": turns(*texts)} | more


# The four shapes of the format: text before and after the marker, text only, several images.
def test_the_four_shapes_of_llava(folder):
    samples = [
        sample("<image>\nWhat colour?", "Red.", "Large?", "No.", id="000000000001"),
        sample("Describe.\n<image>", "A plain field – 图片."),
        {"id": "text-3", "model": "", "conversations": turns("Write about rain.", "Rain.")},
        sample("<image>\nor\n<image>?", "The second.", image=["coco/1.jpg", "2.png"]),
        sample("Yes?", "yes", image=None) | {"image": None},
    ]
    records, bad = read(folder, samples)
    assert bad == []
    assert [record.task for record in records] == ["understand", "understand", "text", "understand", "text"]
    assert [record.messages[0].text for record in records] == [
        "<image>\nWhat colour?",
        "<image>\nDescribe.",  # moved to the front, as LLaVA does
        "Write about rain.",
        "<image>\nor\n<image>?",  # several keep their places
        "Yes?",
    ]
    assert len(records[0].messages) == 4 and records[1].messages[1] == Message("assistant", "A plain field – 图片.")
    assert [len(record.images) for record in records] == [1, 1, 0, 2, 0] and records[0].images == (PNG,)
    assert [record.key for record in records] == [f"data.json/{i}" for i in range(5)]


@pytest.mark.parametrize(
    ("roles", "kept"),
    [
        ("gpt human gpt", "user assistant"),
        ("human gpt human", "user assistant"),
        ("system human gpt", "system user assistant"),
        ("gpt gpt human gpt human", "user assistant"),
        ("human human gpt", None),
        ("human gpt gpt", None),
        ("human system gpt", None),
        ("gpt", None),
        ("human", None),
        ("", None),
        ("human tool", None),
    ],
)
def test_roles_are_cut_to_pairs_or_the_sample_is_dropped(folder, roles, kept):
    conversation = [{"from": role, "value": f"text {i}"} for i, role in enumerate(roles.split())]
    records, bad = read(folder, [{"conversations": conversation}])
    if kept:
        assert [message.role for message in records[0].messages] == kept.split()
    else:
        assert [item.reason for item in bad] == [Reason.BAD_ROLES]


BAD = {
    "two markers, one image": (sample("<image><image>", "a"), Reason.IMAGE_COUNT),
    "no marker": (sample("q", "a"), Reason.IMAGE_COUNT),
    "one marker, two images": (sample("<image>", "a", image=["2.png", "2.png"]), Reason.IMAGE_COUNT),
    "image is missing": (sample("<image>", "a", image="coco/gone.jpg"), Reason.MISSING_FILE),
    "image is a folder": (sample("<image>", "a", image="coco"), Reason.MISSING_FILE),
    "image is a number": (sample("<image>", "a", image=3), Reason.BAD_FIELD),
    "a thousand images": (sample("<image>", "a", image=["2.png"] * 1000), Reason.TOO_LARGE),
    "image is an empty path": (sample("<image>", "a", image=""), Reason.MISSING_IMAGE),
    "empty path without a marker": (sample("q", "a", image=""), Reason.MISSING_IMAGE),
    "half of a character": (sample("q \ud83d", "a", image=None), Reason.BAD_TEXT),
    "parent folder": (sample("<image>", "a", image="../secret.png"), Reason.PATH_ESCAPE),
    "parent folder inside": (sample("<image>", "a", image="coco/../../secret.png"), Reason.PATH_ESCAPE),
    "far away": (sample("<image>", "a", image="../../../../etc/passwd"), Reason.PATH_ESCAPE),
    "absolute": (sample("<image>", "a", image="/etc/passwd"), Reason.PATH_ESCAPE),
    "Windows": (sample("<image>", "a", image="..\\secret.png"), Reason.PATH_ESCAPE),
    "drive": (sample("<image>", "a", image="c:/secret.png"), Reason.PATH_ESCAPE),
    "NUL byte": (sample("<image>", "a", image="2.png\0.jpg"), Reason.PATH_ESCAPE),
    "link out of the root": (sample("<image>", "a", image="link.png"), Reason.PATH_ESCAPE),
    "folder link out of the root": (sample("<image>", "a", image="out/secret.png"), Reason.PATH_ESCAPE),
    "a pipe": (sample("<image>", "a", image="pipe"), Reason.MISSING_FILE),
    "a name that no file can have": (sample("<image>", "a", image="x" * 5000), Reason.MISSING_FILE),
    "a URL": (sample("<image>", "a", image="http://example.org/a.jpg"), Reason.MISSING_FILE),
    "no conversation": ({"id": 1}, Reason.BAD_FIELD),
    "conversation is text": ({"conversations": "hello"}, Reason.BAD_FIELD),
    "turn is text": ({"conversations": ["hello"]}, Reason.BAD_FIELD),
    "value is null": ({"conversations": [{"from": "human", "value": None}]}, Reason.BAD_FIELD),
    "empty answer": ({"conversations": turns("q", " ")}, Reason.NO_TEXT),
    "empty answer in the middle": ({"conversations": turns("q", "", "r", "b")}, Reason.NO_TEXT),
    "a number": (5, Reason.BAD_FIELD),
    "a list": ([], Reason.BAD_FIELD),
    "null": (None, Reason.BAD_FIELD),
}


@pytest.mark.parametrize(("element", "reason"), BAD.values(), ids=BAD.keys())
def test_bad_sample_is_counted_and_its_neighbours_are_read(folder, element, reason):
    os.symlink(folder / "secret.png", folder / "images" / "link.png")
    os.symlink(folder, folder / "images" / "out")
    os.mkfifo(folder / "images" / "pipe")
    good = sample("<image>", "a")
    records, bad = read(folder, [good, element, good])
    assert [item.reason for item in bad] == [reason] and bad[0].key == "data.json/1"
    assert [record.key for record in records] == ["data.json/0", "data.json/2"]


def test_link_within_the_root_and_a_root_that_is_a_link_are_fine(folder):
    os.symlink(folder / "images" / "2.png", folder / "images" / "inside.png")
    os.symlink(folder / "images", folder / "linked_root")
    records, bad = read(folder, [sample("<image>", "a", image="inside.png")], roots=(str(folder / "linked_root"),))
    assert len(records) == 1 and bad == []


def test_longest_prefix_chooses_the_root(folder):
    images = folder / "images"
    roots = (f"coco={images / 'coco'}", f"coco/deep={images}", str(images))
    paths = ["coco/1.jpg", "coco/deep/2.png", "2.png", "coco/2.png"]
    records, bad = read(folder, [sample("<image>", "a", image=path) for path in paths], roots)
    assert len(records) == 3 and records[1].images == records[2].images
    assert [(item.key, item.reason) for item in bad] == [("data.json/3", Reason.MISSING_FILE)]


def test_without_a_root_no_image_is_read(folder):
    assert [item.reason for item in read(folder, [sample("<image>", "a")], roots=())[1]] == [Reason.MISSING_FILE]


def test_escaped_halves_of_a_character_are_joined_and_one_alone_is_damage(folder):
    def element(escaped):
        return b'{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "%s"}]}' % escaped

    raw = b"[" + element(rb"a \ud83d\ude00") + b"," + element(rb"\ude00a") + b"," + element(rb"a\ud800") + b"]"
    records, bad = read(folder, None, raw=raw)
    assert [record.messages[1].text for record in records] == ["a 😀"]
    assert [item.reason for item in bad] == [Reason.BAD_TEXT] * 2


GOOD = json.dumps(sample("<image>", "a")).encode()
# (content, records, reasons in order); what is damaged inside one element costs only that one.
DAMAGED = {
    "byte order mark": (b"\xef\xbb\xbf[" + GOOD + b"]", 1, []),
    "empty list": (b" [ ] ", 0, []),
    "white space": (b"\n[\n" + GOOD + b" ,\r\n\t" + GOOD + b"\n]\n", 2, []),
    "truncated in an element": (b"[" + GOOD + b"," + GOOD[:-5], 1, [Reason.CORRUPT]),
    "truncated between elements": (b"[" + GOOD + b",", 1, [Reason.CORRUPT]),
    "empty file": (b"", 0, [Reason.CORRUPT]),
    "an object": (GOOD, 0, [Reason.CORRUPT]),
    "JSON lines": (GOOD + b"\n" + GOOD, 0, [Reason.CORRUPT]),
    "garbage": (bytes(range(256)) * 8, 0, [Reason.CORRUPT]),
    "HTML": (b"<html>", 0, [Reason.CORRUPT]),
    "garbage between elements": (b"[" + GOOD + b", oops, " + GOOD + b"]", 1, [Reason.CORRUPT]),
    "not UTF-8": (b'[{"a": "\xff\xfe"},' + GOOD + b"]", 1, [Reason.BAD_TEXT]),
    "NUL byte in text": (b'[{"a": "\0"},' + GOOD + b"]", 1, [Reason.BAD_JSON]),
    "NUL bytes between": (b"[" + GOOD + b",\0\0" + GOOD + b"]", 1, [Reason.CORRUPT]),
    "huge number": (b'[{"a": ' + b"9" * 10000 + b"}," + GOOD + b"]", 1, [Reason.BAD_JSON]),
    "deep nesting": (b"[" + b"[" * 100_000, 0, [Reason.CORRUPT]),
    "another list behind it": (b"[" + GOOD + b"]\n[" + GOOD + b"]", 1, [Reason.CORRUPT]),
    "garbage behind it": (b"[" + GOOD + b"] \n oops", 1, [Reason.CORRUPT]),
    "syntax error long before the end": (b"[" + GOOD + b',{"a" 5}' + b" " * (10 << 20) + b"]", 1, [Reason.CORRUPT]),
    "huge list": (b"[" + GOOD + b",[1" + b",1" * (5 << 20) + b"]]", 1, [Reason.TOO_LARGE]),
    "huge text": (b'[{"a": "' + b"x" * (10 << 20) + b'"},' + GOOD + b"]", 0, [Reason.TOO_LARGE]),
}


@pytest.mark.parametrize(("raw", "count", "reasons"), DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_file(folder, raw, count, reasons):
    records, bad = read(folder, None, raw=raw)
    assert len(records) == count and sorted(item.reason for item in bad) == reasons


def test_units_read_alone_give_the_whole_file(folder, monkeypatch):
    samples = [sample(f"<image>é {i}", "x" * (1 + i * 37 % 400)) for i in range(23)]
    whole, _ = read(folder, samples)
    monkeypatch.setattr(json_list, "UNIT_SAMPLES", 5)
    monkeypatch.setattr(json_elements, "MAX_TEXT_BYTES", 700)  # also the size of reads, so that elements straddle them
    source = open_dataset("llava", str(folder / "data.json"), {"image_root": (str(folder / "images"),)})
    units = source.units()
    assert [unit.first for unit in units] == [0, 5, 10, 15, 20]
    backwards = [list(source.read(unit)) for unit in reversed(units)]
    assert [record for part in reversed(backwards) for record in part] == whole


@pytest.mark.parametrize("count", [4, 5, 6])
def test_what_follows_the_list_is_counted_once_in_any_unit(folder, monkeypatch, count):
    monkeypatch.setattr(json_list, "UNIT_SAMPLES", 5)
    monkeypatch.setattr(json_elements, "MAX_TEXT_BYTES", 700)
    raw = json.dumps([sample("<image>", "a")] * count).encode() + b"\n[{}]"
    records, bad = read(folder, None, raw=raw)
    assert len(records) == count and [item.reason for item in bad] == [Reason.CORRUPT]


def test_missing_file_and_root_are_errors(folder):
    with pytest.raises(UserError, match=r"^--input: .*nope\.json' matches no file"):
        open_dataset("llava", str(folder / "nope.json"), {}).units()
    with pytest.raises(UserError, match=r"^--image_root=coco=/nope: '/nope' is not a folder"):
        open_dataset("llava", str(folder / "data.json"), {"image_root": ("coco=/nope",)})
    for prefix in ("", "coco="):
        roots = tuple(f"{prefix}{folder / name}" for name in ("images", "images/coco"))
        with pytest.raises(UserError, match=rf"^--image_root={roots[1]}: {folder}/images is there already"):
            open_dataset("llava", str(folder / "data.json"), {"image_root": roots})


def test_an_equals_sign_in_the_name_of_a_root_is_no_prefix(folder):
    (folder / "split=train").mkdir()
    (folder / "split=train" / "2.png").write_bytes(PNG)
    records, bad = read(folder, [sample("<image>", "a", image="2.png")], roots=(str(folder / "split=train"),))
    assert len(records) == 1 and bad == []
