import io
import shutil
import sys

import pytest
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from janus_jax.data.dropped_samples import Reason
from janus_jax.data.formats import tfds_folder
from janus_jax.data.formats.registry import open_dataset
from janus_jax.errors import UserError
from tests.helpers.source_files import image, read_all, read_notes

PNG, BLUE = image(), image(colour=(0, 0, 255))


@pytest.fixture(scope="module")
def tfds_dataset(tmp_path_factory):
    """A prepared data set with encoded images and labels, and one of text."""
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        features: dict
        examples: list

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(self.features))

        def _split_generators(self, dl_manager):
            return {"train": iter(enumerate(self.examples))}

        def _generate_examples(self):
            raise NotImplementedError

    class Pictures(Tiny):
        features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["n01", "n02"])}
        examples = [{"image": io.BytesIO(PNG), "label": i % 2} for i in range(5)]

    class Texts(Tiny):
        features = {"text": tfds.features.Text()}
        examples = [{"text": f"text {i} é" if i else ""} for i in range(3)]

    class Masks(Tiny):
        features = {"image": tfds.features.Image(), "mask": tfds.features.Image(), "text": tfds.features.Text()}
        examples = [{"image": io.BytesIO(PNG), "mask": io.BytesIO(BLUE), "text": "a"}]

    for builder in (Pictures, Texts, Masks):
        builder(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_tfds_pictures_and_texts_without_tensorflow(tfds_dataset, monkeypatch):
    monkeypatch.setattr(tfds_folder, "UNIT_ROWS", 2)
    path = str(tfds_dataset / "pictures" / "1.0.0")
    source = open_dataset("tfds", path, {"split": "train[1:]"})
    assert len(source.units()) == 2
    records, bad = read_all(source)
    assert bad == [] and all(record.images == (PNG,) for record in records)
    assert len(records) == 4 and {record.messages[0].text for record in records} == {"n01", "n02"}
    names = tfds_dataset / "names.txt"
    names.write_text("n01 tench, Tinca\nn02 crane\n")
    records, _ = read_all(open_dataset("tfds", path, {"class_names": str(names)}))
    assert sorted(record.messages[0].text for record in records) == ["crane"] * 2 + ["tench"] * 3
    records, bad = read_all(open_dataset("tfds", str(tfds_dataset / "texts" / "1.0.0"), {}))
    assert sorted(record.messages[0].text for record in records) == ["text 1 é", "text 2 é"]
    assert [item.reason for item in bad] == [Reason.NO_TEXT] and records[0].task == "text"
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    ("damage", "detail"),
    [
        ([b"\xff\xffgarbage"] * 3, "DecodeError"),
        ([b""] * 3, "an empty example, of 5"),
        ([], "out of bound 2; dataset_info.json promises 5 examples"),
    ],
    ids=["garbage", "empty", "too short"],
)
def test_damaged_tfds_examples_are_counted(tfds_dataset, tmp_path, damage, detail):
    folder = tmp_path / "pictures" / "1.0.0"
    shutil.copytree(tfds_dataset / "pictures" / "1.0.0", folder)
    (shard,) = folder.glob("*.array_record*")
    stored = ArrayRecordDataSource([str(shard)])
    whole = [stored[i] for i in range(2)]
    writer = ArrayRecordWriter(str(shard), "group_size:1")
    for payload in (*whole, *damage):
        writer.write(payload)
    writer.close()
    records, bad = read_all(open_dataset("tfds", str(folder), {}))
    assert len(records) == 2 and [item.reason for item in bad] == [Reason.CORRUPT] * 3
    assert all(detail in item.detail for item in bad)


def test_tfds_errors(tfds_dataset):
    with pytest.raises(UserError, match=r"^--input=/nope: not a prepared TFDS folder"):
        open_dataset("tfds", "/nope", {}).units()
    with pytest.raises(UserError, match=r"^--input=.*: cannot be read as TFDS"):
        open_dataset("tfds", str(tfds_dataset / "texts" / "1.0.0"), {"split": "nope"}).units()


def test_a_second_column_of_images_must_be_settled(tfds_dataset):
    path = str(tfds_dataset / "masks" / "1.0.0")
    with pytest.raises(UserError, match=r"'mask'.*--image_column=image.*--image_column=mask"):
        open_dataset("tfds", path, {}).units()
    source = open_dataset("tfds", path, {"image_column": "image"})
    assert [record.images for record in read_all(source)[0]] == [(PNG,)]
    assert read_notes(source) == {"column not read: mask": 1}
