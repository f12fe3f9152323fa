"""The example files are in the formats that the page on fine-tuning names: every sample is read, none dropped."""

import subprocess
import sys
import tarfile

import numpy as np

from examples.digits.data import NAMES, load_digits
from janus_jax.data.formats.registry import open_dataset
from janus_jax.data.images import decode_image
from tests.helpers import REPOSITORY
from tests.helpers.source_files import read_all

NUM_IMAGES = 12


def test_conversations_and_captions_name_the_digit_of_their_image(tmp_path):
    command = [
        sys.executable,
        "-m",
        "examples.digits.example_data",
        f"--output={tmp_path}",
        f"--num_images={NUM_IMAGES}",
    ]
    subprocess.run(command, cwd=REPOSITORY, check=True, timeout=120)
    labels = [NAMES[label] for label in load_digits()[0].labels[:NUM_IMAGES]]
    options = {"image_root": (str(tmp_path / "images"),)}
    conversations, dropped = read_all(open_dataset("llava", (str(tmp_path / "mine.json"),), options))
    assert not dropped
    assert [record.messages[-1].text for record in conversations] == labels
    assert all(record.task == "understand" and len(record.images) == 1 for record in conversations)
    with tarfile.open(tmp_path / "captions.tar", "w") as archive:
        for file in sorted((tmp_path / "captions").iterdir()):
            archive.add(file, file.name)
    source = open_dataset("webdataset", (str(tmp_path / "captions.tar"),), {"tasks": ("generate",)})
    captions, dropped = read_all(source)
    assert not dropped
    assert [record.messages[0].text.split()[-1] for record in captions] == labels
    assert all(record.task == "generate" for record in captions)
    assert [record.images for record in captions] == [record.images for record in conversations]
    edits, dropped = read_all(
        open_dataset("sharegpt4o", (str(tmp_path / "edits.json"),), {"image_root": (str(tmp_path),)})
    )
    assert not dropped and len(edits) == NUM_IMAGES
    for edit in edits:
        given, made = (np.asarray(decode_image(image, "x")) for image in edit.images)
        np.testing.assert_array_equal(made, given[::-1, ::-1])
