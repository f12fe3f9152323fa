import json

import pytest
from absl import logging

from janus_jax.errors import UserError
from janus_jax.inference.image_tokenizer import ImageTokenizer
from janus_jax.models.params import init_params
from janus_jax.training.stored_codes import check_stored_codes
from tests.helpers.tiny_runs import MICRO_VQ


@pytest.fixture(scope="module")
def params():
    return init_params(MICRO_VQ, seed=0)


@pytest.fixture
def warnings(monkeypatch):
    told = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: told.append(text % values))
    return told


def check(folder, params, content=None):
    if content is not None:
        (folder / "manifest.json").write_text(content)
    check_stored_codes({"generate/0": f"{folder}/g-*", "text/0": "/elsewhere/t-*"}, MICRO_VQ, params)


def manifest(sha256):
    return json.dumps({"identity": {"image_tokenizer_sha256": sha256}})


def test_the_tokenizer_that_prepare_data_names_is_the_runs_own(tmp_path, params, warnings):
    check(tmp_path, params, manifest(ImageTokenizer(MICRO_VQ, params).sha256))
    assert warnings == []
    with pytest.raises(UserError, match=rf"^data\.stored_codes: the codes in {tmp_path} are of the image tokenizer"):
        check(tmp_path, init_params(MICRO_VQ, seed=1))


@pytest.mark.parametrize("content", [None, manifest(""), "[1]", "{}"])
def test_shards_that_do_not_tell_their_tokenizer_give_a_warning(tmp_path, params, warnings, content):
    check(tmp_path, params, content)
    assert warnings == [f"data.stored_codes: no manifest in {tmp_path} tells which image tokenizer made the codes"]
