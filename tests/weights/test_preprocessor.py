"""preprocessor_config.json: what we write is read back, what our code does not compute is refused by field."""

import json
import logging

import numpy as np
import PIL.Image
import pytest

from examples.digits import data as digits
from janus_jax.data.images import JANUS_NORMALIZATION, Normalization, understanding_pixels
from janus_jax.errors import UserError
from janus_jax.models.presets import JANUS_PRO_TINY
from janus_jax.weights.preprocessor import read_preprocessor
from janus_jax.weights.tokenizer_files import write_deepseek_files, write_hf_files

CLIP = Normalization((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@pytest.fixture(scope="module")
def tokenizer():
    return digits.build_tokenizer(digits.text_records(), 384, "janus_pro_tiny")


@pytest.mark.parametrize("write", [write_hf_files, write_deepseek_files])
@pytest.mark.parametrize("normalization", [JANUS_NORMALIZATION, CLIP], ids=["janus", "clip"])
def test_written_preprocessor_is_read_back(tmp_path, caplog, tokenizer, write, normalization):
    write(tmp_path, JANUS_PRO_TINY, tokenizer, normalization)
    assert read_preprocessor(tmp_path, JANUS_PRO_TINY) == normalization
    assert not caplog.records


def test_pixels_are_normalised_and_padded_as_transformers_does(tmp_path):
    """Also with CLIP's numbers, which transformers' processor has unless told otherwise."""
    from transformers import JanusImageProcessorPil

    size = JANUS_PRO_TINY.siglip.image_size
    JanusImageProcessorPil(size={"height": size, "width": size}).save_pretrained(tmp_path)
    normalization = read_preprocessor(tmp_path, JANUS_PRO_TINY)
    assert normalization == CLIP
    rng = np.random.default_rng(0)
    image = PIL.Image.fromarray(rng.integers(0, 256, (40, 20, 3), np.uint8))
    ours = normalization(understanding_pixels(image, size, normalization.pad_colour))
    theirs = JanusImageProcessorPil.from_pretrained(tmp_path)(image, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(ours, theirs[0].transpose(1, 2, 0), atol=1e-6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"image_size": 384}, "image_size=384, expected 32"),
        ({"size": {"height": 32, "width": 24}}, r"size\.width=24, expected 32"),
        ({"size": 24}, "size=24, expected 32"),
        ({"image_mean": [0.5, 0.5]}, r"image_mean=\[0.5, 0.5\], expected a number"),
        ({"image_mean": [0.5, 0.5, "0.5"]}, "image_mean=.*expected a number"),
        ({"image_std": 0}, "image_std=0, expected a number from 0 to 1"),
        ({"do_normalize": False}, "do_normalize=False, expected True"),
        ({"do_resize": False}, "do_resize=False, expected True"),
        ({"do_rescale": False}, "do_rescale=False, expected True"),
        ({"do_pad": False}, "do_pad=False, expected True"),
        ({"resample": 2}, "resample=2, expected 3"),
        ({"min_size": 4}, "min_size=4, expected 14"),
        ({"rescale_factor": 1 / 256}, "rescale_factor=0.00390625, expected 0.0039"),
        ({"rescale_factor": "1/255"}, "rescale_factor='1/255', expected a positive number"),
        ({"background_color": [0, 0, 0]}, r"background_color=\[0, 0, 0\], expected \[127, 127, 127\]"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_other_preprocessing_is_an_error(tmp_path, content, message, nested):
    content = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, **content}
    name = "processor_config.json" if nested else "preprocessor_config.json"
    prefix = r"image_processor\." if nested else ""
    (tmp_path / name).write_text(json.dumps({"image_processor": content} if nested else content))
    with pytest.raises(UserError, match=f"{name}: {prefix}{message}"):
        read_preprocessor(tmp_path, JANUS_PRO_TINY)


def test_what_transformers_saves_passes_the_check(tmp_path, caplog, tokenizer):
    from transformers import JanusProcessor

    (tmp_path / "ours").mkdir()
    write_hf_files(tmp_path / "ours", JANUS_PRO_TINY, tokenizer)
    JanusProcessor.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path)
    assert not (tmp_path / "preprocessor_config.json").exists()  # 5.x nests it in processor_config.json
    read_preprocessor(tmp_path, JANUS_PRO_TINY)
    assert not caplog.records


@pytest.mark.parametrize("content", [None, {}, {"image_mean": 0.5}])
def test_missing_normalisation_is_warned_about(tmp_path, caplog, content):
    if content is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING, "absl"):
        read_preprocessor(tmp_path, JANUS_PRO_TINY)
    missing = {"image_mean", "image_std"} - set(content or {})
    assert {record.args[2] for record in caplog.records} == missing


def test_damaged_preprocessor_is_an_error(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(UserError, match=r"preprocessor_config\.json: not readable as JSON"):
        read_preprocessor(tmp_path, JANUS_PRO_TINY)
