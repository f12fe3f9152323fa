import pytest

from janus_jax.data.dropped_samples import Reason
from janus_jax.data.formats.registry import open_dataset
from janus_jax.errors import UserError
from tests.helpers.source_files import image, read_all

PNG, BLUE = image(), image(colour=(0, 0, 255))


@pytest.fixture
def image_net(tmp_path):
    for synset, names in {"n02": ("n02_1.JPEG", "n02_2.JPEG"), "n01": ("n01_9.JPEG", "notes.txt")}.items():
        (tmp_path / "train" / synset).mkdir(parents=True)
        for name in names:
            (tmp_path / "train" / synset / name).write_bytes(PNG)  # a PNG named .JPEG, as n02105855_2933.JPEG is
    (tmp_path / "names.txt").write_text("n01 tench, Tinca tinca\nn02 crane\n\n")
    return tmp_path


def test_folders_of_classes(image_net):
    source = open_dataset("imagenet", str(image_net / "train"), {"class_names": str(image_net / "names.txt")})
    (image_net / "train" / "n02" / "nested").mkdir()
    (image_net / "train" / "beside.JPEG").write_bytes(PNG)
    records, bad = read_all(source)
    assert [(item.key, item.reason) for item in bad] == [
        ("train/beside.JPEG", Reason.UNREAD_FILE),
        ("n01/notes.txt", Reason.UNREAD_FILE),
        ("n02/nested", Reason.UNREAD_FILE),
    ]
    assert [(record.key, record.messages[0].text) for record in records] == [
        ("n01/n01_9.JPEG", "tench"),
        ("n02/n02_1.JPEG", "crane"),
        ("n02/n02_2.JPEG", "crane"),
    ]
    assert {record.task for record in records} == {"generate"} and records[0].images == (PNG,)


@pytest.mark.parametrize(
    "table", ["n01_9.JPEG n01\nx.JPEG n02\n", "ImageId,PredictionString\nn01_9,n01 85 1 499 272\n"]
)
def test_flat_folder_with_labels(image_net, table):
    (image_net / "labels.txt").write_text(table)
    (image_net / "train" / "n01" / "unknown.JPEG").write_bytes(PNG)
    options = {"class_names": str(image_net / "names.txt"), "labels": str(image_net / "labels.txt")}
    records, bad = read_all(open_dataset("imagenet", str(image_net / "train" / "n01"), options))
    assert [(record.key, record.messages[0].text) for record in records] == [("n01/n01_9.JPEG", "tench")]
    assert [item.reason for item in bad] == [Reason.UNREAD_FILE, Reason.NO_TEXT]


def test_links_and_missing_names(image_net):
    (image_net / "secret.png").write_bytes(PNG)
    (image_net / "train" / "n01" / "link.JPEG").symlink_to(image_net / "secret.png")
    options = {"class_names": str(image_net / "names.txt")}
    assert [item.reason for item in read_all(open_dataset("imagenet", str(image_net / "train"), options))[1]] == [
        Reason.PATH_ESCAPE,
        Reason.UNREAD_FILE,
    ]
    (image_net / "names.txt").write_text("n01 tench\n")
    with pytest.raises(UserError, match=r"^--class_names=.*names\.txt: has no line for the folder .*n02"):
        open_dataset("imagenet", str(image_net / "train"), options).units()
    (image_net / "names.txt").write_text("n01\n")
    with pytest.raises(UserError, match=r"names\.txt: line 1 is 'n01', expected two columns"):
        open_dataset("imagenet", str(image_net / "train"), options).units()
    with pytest.raises(UserError, match=r"^--class_names is required"):
        open_dataset("imagenet", str(image_net / "train"), {})
    (image_net / "names.txt").write_text("n01 tench\nn02 crane\n")
    with pytest.raises(UserError, match=r"^--input=/nope: not a folder"):
        open_dataset("imagenet", "/nope", options).units()


def test_hidden_files_and_folders_are_ignored(image_net):
    for path in ("n01/._n01_9.JPEG", "n01/Thumbs.db", ".DS_Store", ".ipynb_checkpoints/x.JPEG", "__MACOSX/n01_9.JPEG"):
        (image_net / "train" / path).parent.mkdir(exist_ok=True)
        (image_net / "train" / path).write_bytes(b"x")
    records, bad = read_all(
        open_dataset("imagenet", str(image_net / "train"), {"class_names": str(image_net / "names.txt")})
    )
    assert len(records) == 3 and [item.key for item in bad] == ["n01/notes.txt"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_class_names_may_have_a_byte_order_mark(image_net, encoding):
    (image_net / "names.txt").write_text("n01 Schleie, Tinca\r\nn02 Krähe\r\n", encoding=encoding)
    options = {"class_names": str(image_net / "names.txt")}
    records, _ = read_all(open_dataset("imagenet", str(image_net / "train"), options))
    assert [record.messages[0].text for record in records] == ["Schleie", "Krähe", "Krähe"]


def test_class_names_in_latin_1_are_refused_with_the_line(image_net):
    (image_net / "names.txt").write_bytes(b"n01 tench\nn02 Kr\xe4he\n")
    with pytest.raises(UserError, match=r"^--class_names=.*names\.txt: line 2 .*UTF-8"):
        open_dataset("imagenet", str(image_net / "train"), {"class_names": str(image_net / "names.txt")}).units()
