"""The prepared data of the quickstart: held-out images at the end of every task, and codes of the trained tokenizer."""

import dataclasses

import numpy as np
import pytest

from examples.digits import data as digits
from examples.digits import preparation
from janus_jax.data.images import decode_image
from janus_jax.data.record_reader import open_records
from janus_jax.data.records import Record
from janus_jax.inference.image_tokenizer import load_image_tokenizer
from janus_jax.models.params import init_params
from janus_jax.weights.native import save_params
from tests.helpers.tiny_runs import MICRO_VQ

FEW = 20  # Number of training and of held-out digits.
CONFIG = dataclasses.replace(MICRO_VQ, image_size=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from etils import epath

    folder = epath.Path(tmp_path_factory.mktemp("digits"))
    training, held_out = (digits.Digits(*(part[:FEW] for part in split)) for split in digits.load_digits())
    preparation.write_records(folder, training, held_out)
    save_params(folder / "vq", CONFIG, init_params(CONFIG, seed=0))
    preparation.write_codes(folder, folder / "vq")
    return folder


def records(folder, task, *, codes=False, held_out=False):
    (pattern,) = preparation.sources(folder, [task], stored_codes=codes)[task]
    source = open_records(pattern, "sources", preparation.VALIDATION_RECORDS, held_out)
    return [Record.deserialize(source[i].data) for i in range(len(source))]


@pytest.mark.parametrize("codes", [False, True])
def test_what_a_run_holds_out_is_what_no_training_image_shows(folder, codes):
    shown = {record.images[0] for record in records(folder, "generate", codes=codes)}
    held_out = records(folder, "generate", codes=codes, held_out=True)
    assert len(held_out) == preparation.VALIDATION_RECORDS and len(shown) == FEW
    assert not shown & {record.images[0] for record in held_out}


def test_stored_codes_are_those_of_the_image_tokenizer(folder):
    encode = load_image_tokenizer(folder / "vq")
    chosen = [*records(folder, "generate", codes=True)[:3], records(folder, "generate", codes=True, held_out=True)[-1]]
    pixels = np.stack([np.asarray(decode_image(record.images[0], record.key)) for record in chosen])
    for record, codes in zip(chosen, encode(pixels), strict=True):
        np.testing.assert_array_equal(record.code_array, codes)
