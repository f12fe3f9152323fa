"""A sample that says it has an image never becomes text silently, in whatever way it says so."""

import base64
import json

import numpy as np
import pytest

from janus_jax.data.dropped_samples import Reason
from janus_jax.data.formats.registry import open_dataset
from tests.helpers.source_files import image, read_all, read_notes, turns

RED, BLUE = image(), image(colour=(0, 0, 255))
DATA_URL = "data:image/png;base64," + base64.b64encode(BLUE).decode()
RAW_BASE64 = {suffix: image(suffix, size=(40, 30)) for suffix in ("PNG", "JPEG", "WEBP", "GIF")}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "red.png").write_bytes(RED)
    (tmp_path / "images" / "blue.png").write_bytes(BLUE)
    return tmp_path


def data_set(folder, samples, form="list"):
    name, format = {"list": ("a.json", "llava"), "lines": ("a.jsonl", "llava"), "text": ("a.jsonl", "text")}[form]
    lines = "".join(json.dumps(sample) + "\n" for sample in samples)
    (folder / name).write_text(json.dumps(samples) if form == "list" else lines)
    return open_dataset(format, str(folder / name), {"image_root": (str(folder / "images"),)})


def messages(content, answer="Red."):
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]


def part(kind, **values):
    return [{"type": kind, **values}, {"type": "text", "text": "What?"}]


QUESTION = turns("<image>\nWhat?", "Red.")
# Samples that become one question about one image, and that image.
READ = {
    "images": ({"images": ["red.png"], "messages": messages("<image>What?")}, RED),
    "images, one path": ({"images": "red.png", "messages": messages("<image>What?")}, RED),
    "image and images alike": (
        {"image": "red.png", "images": ["red.png"], "messages": messages("<image>\nWhat?")},
        RED,
    ),
    "image is null": ({"image": None, "images": ["red.png"], "messages": messages("<image>\nWhat?")}, RED),
    "data URL": ({"image": DATA_URL, "messages": messages("<image>\nWhat?")}, BLUE),
    "objects with paths": ({"images": [{"path": "blue.png"}], "messages": messages("<image>\nWhat?")}, BLUE),
    "an object with more": ({"image": {"path": "red.png", "box": [1, 2]}, "messages": messages("<image>What?")}, RED),
    "part with a path": ({"messages": messages(part("image", image="red.png"))}, RED),
    "part of an image beside": ({"images": ["blue.png"], "messages": messages(part("image"))}, BLUE),
    "OpenAI": ({"messages": messages(part("image_url", image_url={"url": DATA_URL, "detail": "low"}))}, BLUE),
    "OpenAI, a path": ({"messages": messages(part("image_url", image_url={"url": "red.png"}))}, RED),
    "OpenAI, responses": ({"messages": messages(part("input_image", image_url=DATA_URL))}, BLUE),
    "Anthropic": (
        {
            "messages": messages(
                part("image", source={"type": "base64", "media_type": "image/png", "data": DATA_URL.split(",")[1]})
            )
        },
        BLUE,
    ),
    "an id beside": ({"image": "red.png", "image_id": 7, "video_id": 3, "messages": messages("<image>\nWhat?")}, RED),
}


@pytest.mark.parametrize(("sample", "expected"), READ.values(), ids=READ.keys())
@pytest.mark.parametrize("form", ["list", "lines", "text"])
def test_images_are_read_in_every_form(folder, sample, expected, form):
    records, bad = read_all(data_set(folder, [sample], form))
    assert bad == [] and [record.task for record in records] == ["understand"]
    assert [message.text for message in records[0].messages] == ["<image>\nWhat?", "Red."]
    assert records[0].images == (expected,)


@pytest.mark.parametrize("file_format", RAW_BASE64)
def test_base64_without_a_header_is_an_image(folder, file_format):
    text = base64.encodebytes(RAW_BASE64[file_format]).decode()  # in lines
    records, _ = read_all(data_set(folder, [{"image": text, "conversations": QUESTION}]))
    assert records[0].images == (RAW_BASE64[file_format],)


def test_a_line_may_hold_images_larger_than_any_text(folder):
    large = np.random.default_rng(0).bytes(4 << 20)
    url = "data:image/png;base64," + base64.b64encode(large).decode()
    sample = {"messages": messages(part("image_url", image_url={"url": url}))}
    records, bad = read_all(data_set(folder, [sample, sample], "lines"))
    assert bad == [] and [record.images for record in records] == [(large,)] * 2
    text = {"messages": messages("x" * (4 << 20))}
    assert [item.reason for item in read_all(data_set(folder, [text], "lines"))[1]] == [Reason.TOO_LARGE]


def test_images_of_parts_and_beside_them_keep_their_order(folder):
    parts = [{"type": "image"}, {"type": "text", "text": "or"}, {"type": "image_url", "image_url": {"url": DATA_URL}}]
    more = [{"type": "text", "text": "and"}, {"type": "image"}]
    sample = {"images": ["red.png", "blue.png"], "messages": messages(parts) + messages(more)}
    records, _ = read_all(data_set(folder, [sample]))
    assert records[0].images == (RED, BLUE, BLUE)
    assert records[0].messages[0].text == "<image>\nor\n<image>"


TEXT_TURNS = {"conversations": turns("What?", "Red.")}
RAW_IMAGE = base64.b64encode(RED).decode()
DROPPED = {
    "marker without an image": ({"conversations": QUESTION}, Reason.MISSING_IMAGE),
    "no list of images": ({"images": [], "conversations": QUESTION}, Reason.MISSING_IMAGE),
    "images are null": ({"images": None, "image": None, "conversations": QUESTION}, Reason.MISSING_IMAGE),
    "empty path": ({"images": [""], "conversations": turns("What?", "Red.")}, Reason.MISSING_IMAGE),
    "part without an image": ({"messages": messages(part("image"))}, Reason.MISSING_IMAGE),
    "part with an empty URL": ({"messages": messages(part("image_url", image_url={"url": ""}))}, Reason.MISSING_IMAGE),
    "marker in an answer": ({"conversations": turns("Draw.", "<image>")}, Reason.MISSING_IMAGE),
    "marker of another model": (
        {"image": "red.png", "conversations": turns("<image> <image_1>", "a")},
        Reason.MISSING_IMAGE,
    ),  # fmt: skip
    "marker of Qwen": ({"conversations": turns("Picture 1: <img>red.png</img> What?", "a")}, Reason.MISSING_IMAGE),
    "marker of Janus": ({"conversations": turns("<image_placeholder> What?", "a")}, Reason.MISSING_IMAGE),
    "video": ({"video": "0.mp4", "conversations": QUESTION}, Reason.UNREAD_MEDIA),
    "videos beside an image": (
        {"image": "red.png", "videos": ["0.mp4"], "conversations": QUESTION},
        Reason.UNREAD_MEDIA,
    ),  # fmt: skip
    "audio of bytes": ({"audio": {"path": "a.flac"}, "conversations": turns("q", "a")}, Reason.UNREAD_MEDIA),
    "a path under another key": ({"image_path": "red.png", "conversations": turns("q", "a")}, Reason.UNREAD_MEDIA),
    "a URL under another key": (
        {"img_url": "http://x.org/a.JPG?w=3", "conversations": turns("q", "a")},
        Reason.UNREAD_MEDIA,
    ),  # fmt: skip
    "a list of media": ({"media": [{"type": "image", "path": "red.png"}], **TEXT_TURNS}, Reason.UNREAD_MEDIA),
    "a file under any key": ({"attachments": ["red.png"], **TEXT_TURNS}, Reason.UNREAD_MEDIA),
    "an image in an object": ({"metadata": {"image": "coco/1"}, **TEXT_TURNS}, Reason.UNREAD_MEDIA),
    "base64 under any key": ({"blob": RAW_IMAGE, **TEXT_TURNS}, Reason.UNREAD_MEDIA),
    "frames of a video": ({"frames": ["0001", "0002"], **TEXT_TURNS}, Reason.UNREAD_MEDIA),
    "speech": ({"clip": "a.wav", **TEXT_TURNS}, Reason.UNREAD_MEDIA),
    "a path without a suffix": ({"imgPath": "coco/1", **TEXT_TURNS}, Reason.UNREAD_MEDIA),
    "image inside a message": (
        {"messages": [{"role": "user", "content": "q", "images": ["red.png"]}, *messages("")[1:]]},
        Reason.UNREAD_MEDIA,
    ),
    "part of a video": ({"messages": messages(part("video_url", video_url={"url": "a.mp4"}))}, Reason.UNREAD_MEDIA),
    "part of sound": ({"messages": messages(part("input_audio", input_audio={}))}, Reason.UNREAD_MEDIA),
    "image and images differ": (
        {"image": "red.png", "images": ["blue.png"], "conversations": QUESTION},
        Reason.BAD_FIELD,
    ),  # fmt: skip
    "a URL to fetch": ({"image": "https://example.org/a.png", "conversations": QUESTION}, Reason.MISSING_FILE),
    "a data URL in plain text": ({"image": "data:image/svg+xml,<svg/>", "conversations": QUESTION}, Reason.BAD_FIELD),
    "damaged base64": ({"image": DATA_URL[:-3] + "!", "conversations": QUESTION}, Reason.BAD_IMAGE),
    "a path outside in a part": ({"messages": messages(part("image", image="../a.png"))}, Reason.PATH_ESCAPE),
    "more images than parts": ({"images": ["red.png"] * 2, "messages": messages(part("image"))}, Reason.IMAGE_COUNT),
}


@pytest.mark.parametrize(("sample", "reason"), DROPPED.values(), ids=DROPPED.keys())
@pytest.mark.parametrize("form", ["list", "lines"])
def test_an_image_that_is_announced_but_not_read_is_counted(folder, sample, reason, form):
    good = {"image": "red.png", "conversations": QUESTION}
    records, bad = read_all(data_set(folder, [good, sample, good], form))
    assert [item.reason for item in bad] == [reason] and len(records) == 2


@pytest.mark.parametrize("key", ["image", "images", "video", "audio"])
def test_a_document_beside_an_image_is_counted(folder, key):
    records, bad = read_all(data_set(folder, [{"text": "a caption", key: "red.png"}, {"text": "b"}], "text"))
    assert [item.reason for item in bad] == [Reason.UNREAD_MEDIA] and len(records) == 1


MARKERS = {
    Reason.MISSING_IMAGE: ["<Image>", "<image >", "<image/>", "<IMAGE>", "<ImageHere>", "<image_soft_token>", "<img>\n",
                           "<start_of_image>", "<|vision_start|><|image_pad|>", "[IMG]", "<image-2>"],
    Reason.UNREAD_MEDIA: ["<video>\n", "<audio>", "<|audio_1|>", "<video1>", "[video]"],
}  # fmt: skip


@pytest.mark.parametrize(("marker", "reason"), [(marker, reason) for reason in MARKERS for marker in MARKERS[reason]])
def test_a_marker_of_another_model_is_never_learnt_as_words(folder, marker, reason):
    samples = [{"conversations": turns(text, "Red.")} for text in (f"{marker}What?", f"What?\n{marker}", "What?")]
    records, bad = read_all(data_set(folder, samples))
    assert [item.reason for item in bad] == [reason] * 2 and len(records) == 1


def test_html_in_a_text_is_no_marker(folder):
    texts = [
        "How do I use <img> and <video> in HTML?",
        'Is <img src="a.png"> right?',
        "[imagine] <imagery> <audiobook>",
    ]
    samples = [{"conversations": turns(text, "<video>\n<source>\n</video>")} for text in texts]
    samples += [{"conversations": turns("q", "a"), "id": "17", "source": "books", "scores": {"url": "http://x.org"}}]
    records, bad = read_all(data_set(folder, samples))
    assert bad == [] and [record.messages[0].text for record in records] == [*texts, "q"]


def test_a_document_with_a_marker_or_beside_a_file_is_counted(folder):
    samples = [{"text": "a <image_1> b"}, {"text": "a caption", "file_name": "red.png"}, {"text": "<video> is a tag"}]
    records, bad = read_all(data_set(folder, samples, "text"))
    assert [item.reason for item in bad] == [Reason.MISSING_IMAGE, Reason.UNREAD_MEDIA] and len(records) == 1


def test_unread_keys_that_look_like_media_are_noted(folder):
    samples = [{"image": "red.png", "image_id": i, "source": "x", "conversations": QUESTION} for i in range(3)]
    samples += [{"text_only": True, "image": None, "Image_Width": None, "conversations": turns("q", "a")}]
    samples += [{"video": "a.mp4", "conversations": QUESTION}]
    assert read_notes(data_set(folder, samples)) == {"key not read: image_id": 3, "key not read: video": 1}
