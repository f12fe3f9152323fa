import gzip
import io
import json
import tarfile

import numpy as np
import PIL.Image
import pytest

from janus_jax.data.dropped_samples import Reason, SampleError
from janus_jax.data.formats import streams, tar_members
from janus_jax.data.formats.registry import open_dataset
from janus_jax.data.images import decode_image
from janus_jax.errors import UserError
from tests.helpers.source_files import image, link, read_all, read_notes, tar

PNG = image()
PAIR = (("0.png", PNG), ("0.txt", b"a square"))


def read(tmp_path, data, name="00000.tar", **options):
    (tmp_path / name).write_bytes(data)
    return read_all(open_dataset("webdataset", str(tmp_path), options))


def captions(records):
    return {record.key.split("/", 1)[1]: record.messages[0].text for record in records}


def reasons(bad):
    return [item.reason for item in bad]


def test_pairs_become_records_to_draw(tmp_path):
    records, bad = read(tmp_path, tar([*PAIR, ("1.jpg", PNG), ("1.json", b"{}"), ("1.txt", b"two")]))
    assert bad == [] and [record.task for record in records] == ["generate", "generate"]
    assert records[0].key == "00000.tar/0" and records[0].images == (PNG,)
    assert [message.text for message in records[0].messages] == ["a square", "<image>"]
    assert captions(records) == {"0": "a square", "1": "two"}


def test_a_pair_can_give_both_tasks(tmp_path):
    records, _ = read(tmp_path, tar(PAIR), tasks=("understand", "generate"), question="What is it?")
    assert [(record.key, record.task) for record in records] == [
        ("00000.tar/0/understand", "understand"),
        ("00000.tar/0/generate", "generate"),
    ]
    assert [message.text for message in records[0].messages] == ["<image>\nWhat is it?", "a square"]


def test_without_a_question_the_caption_follows_the_image(tmp_path):
    records, _ = read(tmp_path, tar(PAIR), tasks=("understand",), question="")
    assert records[0].messages[0].text == "<image>"


@pytest.mark.parametrize(
    ("name", "key", "field"),
    [
        ("a.b.JPG", "a", None),  # the field is "b.jpg", which is no image
        ("dir.d/a.JPG", "dir.d/a", "jpg"),
        ("./a.png", "a", "png"),
        ("a/b/c.webp", "a/b/c", "webp"),
    ],
)
def test_key_ends_at_the_first_dot_of_the_base_name(tmp_path, name, key, field):
    text = (name.replace("./", "", 1) if name.startswith("./") else name).rpartition("/")
    stem = f"{text[0]}{text[1]}{text[2].split('.')[0]}"
    records, bad = read(tmp_path, tar([(name, PNG), (f"{stem}.txt", b"c")]))
    if field:
        assert [record.key for record in records] == [f"00000.tar/{key}"] and not bad
    else:
        assert reasons(bad) == [Reason.NO_IMAGE] and bad[0].key == f"00000.tar/{key}"


CAPTIONS = {
    "white space": (b" two\n\nlines\t here ", "two lines here"),
    "entities": (b"&quot;Tom &amp; Jerry&quot; &#39;x&#39;", "\"Tom & Jerry\" 'x'"),
    "byte order mark": (b"\xef\xbb\xbfcaf\xc3\xa9", "café"),
    "UTF-16 with a mark": ("狐狸 fox".encode("utf-16"), "狐狸 fox"),
    "control characters": (b"a\0b \x1b[31mred\xc2\x85", "a b [31mred"),
    "only control characters": (b"\0\0", None),
    "an image marker": (b"an <image> of &lt;image&gt; tags", "an of tags"),
    "looks like a file but is text": (b"see photo.jpg", "see photo.jpg"),
    "empty": (b"", None),
    "blank": (b" \n ", None),
    "only entities for blanks": (b"&nbsp;", None),
    "a file name": (b"IMG_2034.JPG", None),
    "only a marker": (b"<image>", None),
}


@pytest.mark.parametrize(("raw", "cleaned"), CAPTIONS.values(), ids=CAPTIONS.keys())
def test_captions_are_cleaned(tmp_path, raw, cleaned):
    records, bad = read(tmp_path, tar([("0.png", PNG), ("0.txt", raw)]))
    if cleaned is None:
        assert records == [] and reasons(bad) == [Reason.NO_TEXT]
    else:
        assert captions(records) == {"0": cleaned}


def test_caption_of_the_metadata(tmp_path):
    metadata = json.dumps({"caption": "short", "long": "a long one"}).encode()
    data = tar([("0.png", PNG), ("0.txt", b"txt"), ("0.json", metadata), ("1.png", PNG), ("1.json", metadata)])
    assert captions(read(tmp_path, data)[0]) == {"0": "txt", "1": "short"}
    assert captions(read(tmp_path, data, caption_key="long")[0]) == {"0": "a long one", "1": "a long one"}
    assert reasons(read(tmp_path, data, caption_key="none")[1]) == [Reason.NO_TEXT] * 2


ROTATED = '{"Image Orientation": "Rotated 90 CW"}'


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("words", "number"),
    [("Rotated 90 CW", 6), ("Rotated 180", 3), ("Rotated 90 CCW", 8), ("Mirrored horizontal", 2)],
)
def test_orientation_that_img2dataset_kept_as_text_is_applied(tmp_path, file_format, words, number):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :16] = 255
    picture = PIL.Image.fromarray(pixels)
    plain, tagged = io.BytesIO(), io.BytesIO()
    options = {"lossless": True} if file_format == "WEBP" else {}
    picture.save(plain, file_format, **options)
    exif = PIL.Image.Exif()
    exif[0x0112] = number
    picture.save(tagged, file_format, exif=exif, **options)
    metadata = json.dumps({"exif": json.dumps({"Image Orientation": words})}).encode()
    records, _ = read(tmp_path, tar([("0.jpg", plain.getvalue()), ("0.txt", b"c"), ("0.json", metadata)]))
    ours = np.asarray(decode_image(records[0].images[0], "x", training=True))
    expected = np.asarray(decode_image(tagged.getvalue(), "x", training=True))
    np.testing.assert_array_equal(ours, expected)
    # An image that still has its own tag was not re-encoded: it is not turned twice.
    records, _ = read(tmp_path, tar([("0.jpg", tagged.getvalue()), ("0.txt", b"c"), ("0.json", metadata)]))
    assert records[0].images == (tagged.getvalue(),)


@pytest.mark.parametrize("exif", [None, "null", "3", "not json", "{}", '{"Image Orientation": 6}', 7, ["x"]])
def test_other_exif_leaves_the_image_alone(tmp_path, exif):
    metadata = json.dumps({"exif": exif}).encode()
    records, bad = read(tmp_path, tar([*PAIR, ("0.json", metadata)]))
    assert bad == [] and records[0].images == (PNG,)


def test_unreadable_image_with_an_orientation_is_left_to_the_decoder(tmp_path):
    metadata = json.dumps({"exif": ROTATED}).encode()
    records, _ = read(tmp_path, tar([("0.jpg", b"garbage"), ("0.txt", b"c"), ("0.json", metadata)]))
    assert records[0].images == (b"garbage",)


# Members between two good samples, and why their own sample is dropped; the good ones must be read.
BAD_MEMBERS = {
    "no image": ([("x.txt", b"c")], [Reason.NO_IMAGE]),
    "no caption": ([("x.png", PNG)], [Reason.NO_TEXT]),
    "two images": ([("x.png", PNG), ("x.jpg", PNG), ("x.txt", b"c")], [Reason.IMAGE_COUNT]),
    "a field twice": ([("x.png", PNG), ("x.PNG", PNG), ("x.txt", b"c")], [Reason.BAD_FIELD]),
    "metadata is a list": ([("x.png", PNG), ("x.json", b"[]")], [Reason.BAD_FIELD]),
    "metadata is not JSON": ([("x.png", PNG), ("x.json", b"{")], [Reason.BAD_JSON]),
    "metadata is deep": ([("x.png", PNG), ("x.json", b"[" * 100_000)], [Reason.BAD_JSON]),
    "caption is a number": ([("x.png", PNG), ("x.json", b'{"caption": 3}')], [Reason.BAD_FIELD]),
    "not adjacent": ([("x.png", PNG), ("y.png", PNG), ("x.txt", b"c")], [Reason.NO_TEXT] * 2 + [Reason.NO_IMAGE]),
    "parent folder": ([("../../etc/x.png", PNG), ("../../etc/x.txt", b"c")], [Reason.PATH_ESCAPE]),
    "absolute": ([("/etc/x.png", PNG), ("/etc/x.txt", b"c")], [Reason.PATH_ESCAPE]),
    "parent folder inside": ([("a/../../x.png", PNG)], [Reason.PATH_ESCAPE]),
    "Windows": ([("..\\x.png", PNG)], [Reason.PATH_ESCAPE]),
    "symbolic link": ([link("x.png", "/etc/passwd"), ("x.txt", b"c")], [Reason.PATH_ESCAPE]),
    "hard link": ([("x.txt", b"c"), link("x.png", "0.png", tarfile.LNKTYPE)], [Reason.PATH_ESCAPE]),
    "device": ([link("x.png", "", tarfile.CHRTYPE)], [Reason.PATH_ESCAPE]),
    "pipe": ([link("x.png", "", tarfile.FIFOTYPE)], [Reason.PATH_ESCAPE]),
    "huge text": ([("x.png", PNG), ("x.txt", b"c" * ((4 << 20) + 1))], [Reason.TOO_LARGE]),
    "many fields": ([(f"x.{i}", b"") for i in range(100)], [Reason.TOO_LARGE]),
}


@pytest.mark.parametrize(("members", "expected"), BAD_MEMBERS.values(), ids=BAD_MEMBERS.keys())
@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_bad_sample_is_counted_and_its_neighbours_are_read(tmp_path, members, expected, tar_format):
    data = tar([*PAIR, *members, ("1.png", PNG), ("1.txt", b"last")], format=tar_format)
    records, bad = read(tmp_path, data)
    assert captions(records) == {"0": "a square", "1": "last"} and reasons(bad) == expected


def test_members_that_are_no_fields_belong_to_no_sample(tmp_path):
    folder = tarfile.TarInfo("folder")
    folder.type = tarfile.DIRTYPE
    data = tar([folder, ("README", b"x"), PAIR[0], ("._0.png", b"macOS"), (".hidden", b"x"), PAIR[1]])
    records, bad = read(tmp_path, data)
    assert captions(records) == {"0": "a square"} and bad == []


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_foreign_names(tmp_path, tar_format):
    key = "folder/" * 40 + "图" * 30
    records, bad = read(tmp_path, tar([(f"{key}.png", PNG), (f"{key}.txt", b"c")], format=tar_format))
    assert captions(records) == {key: "c"} and bad == []


@pytest.mark.parametrize(("kind", "content"), [(tarfile.DIRTYPE, b""), (b"D", b"x" * 700)], ids=["folder", "dump"])
def test_only_what_has_content_is_skipped(tmp_path, kind, content):
    """As in `tarfile`: a folder has none, whatever size it claims; an unknown kind of member has."""
    data = header_of(kind, 700) + content + b"\0" * (-len(content) % 512) + WHOLE
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.getnames()[1:] == ["0.png", "0.txt", "1.png", "1.txt"]
    records, _ = read(tmp_path, data)
    assert captions(records) == {"0": "a square", "1": "last"}


@pytest.mark.parametrize("name", ["0.tar.gz", "0.tgz"])
def test_compressed_shard(tmp_path, name):
    records, bad = read(tmp_path, gzip.compress(tar(PAIR)), name=name)
    assert captions(records) == {"0": "a square"} and bad == []


def test_image_over_the_limit_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_members, "MAX_IMAGE_BYTES", 1000)
    data = tar([("x.png", b"x" * 1001), ("x.txt", b"c"), *PAIR])
    records, bad = read(tmp_path, data)
    assert captions(records) == {"0": "a square"} and reasons(bad) == [Reason.TOO_LARGE]


WHOLE = tar([*PAIR, ("1.png", PNG), ("1.txt", b"last")])
THIRD = 1024 + -(-len(PNG) // 512) * 512 + 512  # where sample 1 begins
HEADER = WHOLE[:512]


def without(data, start, stop, replacement=b""):
    return data[:start] + replacement + data[stop:]


def huge_extended_header(kind):
    """An extended header that claims 8 GB: reading it whole would fill the memory."""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, 8 << 30
    return info.tobuf(tarfile.GNU_FORMAT)


def header_of(kind, size=-1):
    """A header of any size in the binary form, with a checksum that fits."""
    block = bytearray(HEADER)
    block[:5] = b"x" + bytes(4)
    block[156:157] = kind
    block[124:136] = b"\xff" * 8 + size.to_bytes(4, "big", signed=True) if size < 0 else b"%011o\0" % size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(content):
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + b"\0" * (-len(content) % 512)


DAMAGED = {
    "ends inside an image": (WHOLE[: THIRD + 512 + 20], {"0": "a square"}),
    "ends inside a header": (WHOLE[: THIRD + 100], {"0": "a square"}),
    "ends inside the padding": (WHOLE[: THIRD - 100], {"0": "a square"}),
    "zeros inside": (without(WHOLE, THIRD, THIRD + 512, b"\0" * 512), {"0": "a square"}),
    "wrong checksum": (without(WHOLE, THIRD, THIRD + 10, b"x" * 10), {"0": "a square"}),
    "garbage": (bytes(range(256)) * 8, {}),
    "HTML": (b"<html>404</html>", {}),
    "negative size": (header_of(tarfile.REGTYPE), {}),
    "8 GB of long name": (huge_extended_header(tarfile.GNUTYPE_LONGNAME), {}),
    "8 GB of pax header": (huge_extended_header(tarfile.XHDTYPE), {}),
    "8 GB of global pax header": (huge_extended_header(tarfile.XGLTYPE), {}),
    "pax without numbers": (pax(b"path=x\n"), {}),
    "pax of length 0": (pax(b"0 path=x\n"), {}),
    "pax of a huge length": (pax(b"9" * 5000 + b" path=x\n"), {}),
    "pax without a value": (pax(b"7 path\n"), {}),
}


@pytest.mark.parametrize(("data", "expected"), DAMAGED.values(), ids=DAMAGED.keys())
@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_shard_gives_its_complete_samples(tmp_path, data, expected, compressed):
    if compressed:
        records, bad = read(tmp_path, gzip.compress(data), name="00000.tar.gz")
    else:
        records, bad = read(tmp_path, data)
    assert captions(records) == expected
    assert Reason.CORRUPT in reasons(bad) and set(reasons(bad)) <= {Reason.CORRUPT, Reason.NO_TEXT}


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_extended_header_of_a_negative_size_is_not_read(kind):
    class Stream(io.BytesIO):
        def read(self, size=-1):
            assert size >= 0, "the whole stream is read"
            return super().read(size)

    with pytest.raises(SampleError, match="a member of -1 bytes"):
        list(tar_members.members(Stream(header_of(kind) + WHOLE)))


def test_name_of_a_pax_header_is_checked_too(tmp_path):
    name = b"path=../../x.png\n"
    data = pax(b"%d %s" % (len(name) + 3, name)) + tar([("ok.png", PNG), *PAIR])
    nul = b"path=y\0.png\n"
    data_nul = pax(b"%d %s" % (len(nul) + 3, nul)) + tar([("ok.png", PNG), *PAIR])
    for content in (data, data_nul):
        records, bad = read(tmp_path, content)
        assert captions(records) == {"0": "a square"} and reasons(bad) == [Reason.PATH_ESCAPE]


@pytest.mark.parametrize("cut", [5, 30, -9, -1])
def test_truncated_gzip(tmp_path, cut):
    records, bad = read(tmp_path, gzip.compress(WHOLE)[:cut], name="0.tar.gz")
    assert reasons(bad)[-1] is Reason.CORRUPT
    assert captions(records) in ({}, {"0": "a square"}, {"0": "a square", "1": "last"})


def test_archive_without_closing_blocks_is_complete(tmp_path):
    records, bad = read(tmp_path, WHOLE.rstrip(b"\0") + b"\0" * (-len(WHOLE.rstrip(b"\0")) % 512))
    assert captions(records) == {"0": "a square", "1": "last"} and bad == []


def test_bomb_is_read_in_small_pieces(tmp_path, monkeypatch):
    largest = 0

    class Recorder(gzip.GzipFile):
        def read(self, size=-1):
            nonlocal largest
            largest = max(largest, size if size >= 0 else 1 << 40)
            return super().read(size)

    monkeypatch.setattr(streams.gzip, "GzipFile", Recorder)
    bomb = tarfile.TarInfo("x.png")
    bomb.size = 200 << 20
    data = gzip.compress(bomb.tobuf() + bytes(bomb.size) + tar(PAIR), compresslevel=1)
    assert len(data) < 2 << 20
    records, bad = read(tmp_path, data, name="0.tar.gz")
    assert captions(records) == {"0": "a square"} and reasons(bad) == [Reason.TOO_LARGE]
    assert largest <= 1 << 20


def test_no_file_and_wrong_tasks_are_errors(tmp_path):
    with pytest.raises(UserError, match=r"^--input: .* matches no file named \*\.tar, \*\.tar\.gz, \*\.tgz"):
        open_dataset("webdataset", str(tmp_path), {}).units()
    with pytest.raises(UserError, match=r"^--task=text: "):
        open_dataset("webdataset", str(tmp_path), {"tasks": ("text",)})


@pytest.mark.parametrize("hidden", ["._0.png", "a/._0.png", "__MACOSX/a/._0.png", "__MACOSX/a/0.png", "a/.DS_Store"])
@pytest.mark.parametrize("more", ["a/.git/0.png", "a/@eaDir/0.png", "a/Thumbs.db", "./a/.ipynb_checkpoints/0.png"])
@pytest.mark.parametrize("folder", ["a/", "./a/", ""])
def test_hidden_members_at_any_depth_belong_to_no_sample(tmp_path, hidden, more, folder):
    members = [(hidden, b"x"), (f"{folder}0.png", PNG), (more, b"x" * 600), (f"{folder}0.txt", b"a square")]
    records, bad = read(tmp_path, tar([*members, link(hidden, "/etc/passwd")]))
    assert list(captions(records).values()) == ["a square"] and bad == []


@pytest.mark.parametrize("litter", ["#recycle/0.png", "$RECYCLE.BIN/S-1/0.png", "a/ehthumbs.db", "a/Icon\r", "Icon\r"])
def test_what_other_systems_leave_behind_belongs_to_no_sample(tmp_path, litter):
    records, bad = read(tmp_path, tar([("a/0.png", PNG), (litter, b"x"), ("a/0.txt", b"a square")]))
    assert list(captions(records).values()) == ["a square"] and bad == []


def test_members_that_nobody_reads_are_noted(tmp_path):
    members = [("README", b"x"), ("0.png", PNG), ("0.mask.png", PNG), ("0.mp4", b"x"), ("0.cls", b"3"), ("0.txt", b"a")]
    (tmp_path / "a.tar").write_bytes(tar([*members, ("picture", PNG)]))
    notes = read_notes(open_dataset("webdataset", str(tmp_path), {}))
    without = "member not read: a name without a suffix"
    assert notes == {"member not read: .mask.png": 1, "member not read: .mp4": 1, without: 2}


def test_files_and_folders_beside_the_archives_are_noted(tmp_path):
    for name in ("0.tar", "1.tar.bz2", "2.tar.bz2", "stats.json", "LICENSE", ".hidden"):
        (tmp_path / name).write_bytes(tar(PAIR))
    for folder, name in (("more", "3.tar"), ("images", "0.png")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(tar(PAIR))
    source = open_dataset("webdataset", str(tmp_path), {})
    texts = ["file not read: *.bz2"] * 2 + ["file not read: *.json", "file not read: *LICENSE", "folder not read: more"]
    assert [unit.path for unit in source.units()] == [str(tmp_path / "0.tar")]
    assert sorted(note.text for note in source.unread()) == texts
    assert open_dataset("webdataset", str(tmp_path / "0.tar"), {}).unread() == []
    (tmp_path / "0.tar").unlink()
    with pytest.raises(UserError, match="folders in it such as 'more' are not searched"):
        source.units()


def test_hidden_archives_in_a_folder_are_left_out(tmp_path):
    (tmp_path / "._00000.tar").write_bytes(b"AppleDouble")
    assert captions(read(tmp_path, tar(PAIR))[0]) == {"0": "a square"}


def test_an_archive_of_no_bytes_is_damage_and_one_without_members_is_not(tmp_path):
    assert reasons(read(tmp_path, b"")[1]) == [Reason.CORRUPT]
    assert reasons(read(tmp_path, gzip.compress(b""), name="0.tar.gz")[1]) == [Reason.CORRUPT] * 2
    (tmp_path / "0.tar.gz").unlink()
    assert read(tmp_path, tar([])) == ([], [])


def test_names_that_are_not_utf8_stay_different(tmp_path):
    data = tar(
        [("caf\udce9.png", PNG), ("caf\udce9.txt", b"one"), ("caf\udcea.png", PNG), ("caf\udcea.txt", b"two")],
        format=tarfile.GNU_FORMAT,
        errors="surrogateescape",
    )
    assert captions(read(tmp_path, data)[0]) == {r"caf\xe9": "one", r"caf\xea": "two"}
