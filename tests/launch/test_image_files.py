"""Files of prompts are read as what they say, or refused by their line; a grid of many images is bounded."""

import codecs

import PIL.Image
import pytest

from janus_jax.errors import UserError
from launch.cli import image_files
from launch.cli.image_files import ImageFolder, read_prompts

TEXT = "a handwritten seven\n\n  ein Löwe 中  \nan owl\n"
EXPECTED = {0: "a handwritten seven", 2: "ein Löwe 中", 3: "an owl"}


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        codecs.BOM_UTF8 + TEXT.encode(),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace("\n", "\r").encode(),
        TEXT.encode("utf-16"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        TEXT.encode("utf-32"),
        TEXT.replace("ein", "\ufeffein").encode(),  # two files with marks, joined
    ],
    ids=["plain", "mark", "windows", "old mac", "utf-16", "utf-16-be", "utf-32", "joined"],
)
def test_the_same_prompts_in_any_encoding_with_a_mark(data, tmp_path):
    (tmp_path / "prompts.txt").write_bytes(data)
    assert read_prompts(str(tmp_path / "prompts.txt")) == EXPECTED


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (TEXT.encode("latin-1", "replace"), 3),
        ("a\nein Löwe".encode("cp1252"), 2),
        ("a seven\nan owl".encode("utf-16-le"), 1),
        ("中".encode("gbk"), 1),
        (b"a\nb\n\xed\xa0\xbd\n", 3),
        (TEXT.encode("utf-16")[:-1], 4),
    ],
    ids=["latin-1", "windows", "no mark", "gbk", "surrogate", "cut"],
)
def test_anything_else_is_one_line_with_file_and_line(data, line, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes(data)
    with pytest.raises(UserError) as error:
        read_prompts(str(path))
    assert f"--prompts_file={path}: line {line} " in str(error.value) and "\n" not in str(error.value)


def test_a_file_without_prompts_or_that_is_none_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_bytes(codecs.BOM_UTF8 + b"\r\n \n")
    for path in (tmp_path / "empty.txt", tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=f"--prompts_file={path}: "):
            read_prompts(str(path))


def test_the_grid_shows_a_bounded_number_of_images(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(image_files, "GRID_IMAGES", 6)
    folder = ImageFolder(str(tmp_path / "out"))
    for start in (0, 4, 8):
        folder.add([PIL.Image.new("RGB", (2, 2), (start + i, 0, 0)) for i in range(4)])
    folder.add_grid(images_per_prompt=12)
    grid = PIL.Image.open(tmp_path / "out" / "grid.png")
    assert grid.size == (3 * 2, 2 * 2)
    assert [grid.getpixel((2 * (i % 3), 2 * (i // 3)))[0] for i in range(6)] == list(range(6))
    assert folder.count == len(list((tmp_path / "out").glob("0*.png"))) == 12
    assert "the first 6 of 12 images" in capsys.readouterr().out
