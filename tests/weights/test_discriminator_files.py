"""The discriminator beside an image tokenizer: in LlamaGen's file and in a workdir of ours."""

import argparse

import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch

from janus_jax.errors import UserError
from janus_jax.models.config import PatchDiscriminatorConfig
from janus_jax.models.params import flatten, init_params
from janus_jax.models.patch_discriminator import fresh_norm_statistics
from janus_jax.ops.batch_norm import Statistics
from janus_jax.training.train_state import Adversary
from janus_jax.weights.discriminator import find_discriminator, from_llamagen, to_llamagen
from tests.helpers.tokenizer_reference import below, load

CONFIG = PatchDiscriminatorConfig(base_channels=5, num_layers=3, norm_eps=1e-5)


@pytest.fixture(scope="module")
def tensors():
    return below(load("patchgan"), "weights/")


def llamagen_file(path, **parts):
    """A file as LlamaGen's trainer writes it."""
    content = {"args": argparse.Namespace(lr=1e-4), "steps": 3, "model": {"a": torch.zeros(2)}}
    for name, tensors in parts.items():
        content[name] = {key: torch.tensor(value) for key, value in tensors.items()}
    torch.save(content, path)
    return path


def test_llamagens_file_is_read_and_written_bit_for_bit(tensors, tmp_path):
    file = llamagen_file(tmp_path / "vq.pt", discriminator=tensors)
    config, params, statistics = find_discriminator(file)
    assert config == CONFIG
    written = to_llamagen(params, statistics, CONFIG)
    assert written.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(written[name], value, err_msg=name)
        assert written[name].dtype == value.dtype


def test_a_file_without_one_has_none(tmp_path):
    assert find_discriminator(llamagen_file(tmp_path / "vq.pt"), CONFIG) is None


def test_another_size_is_refused_by_name(tensors, tmp_path):
    file = llamagen_file(tmp_path / "vq.pt", discriminator=tensors)
    wider = PatchDiscriminatorConfig(base_channels=6, num_layers=3, norm_eps=1e-5)
    with pytest.raises(UserError, match=r"vq\.pt: main\.0\.bias .* \(5,\), expected \(6,\), with 6 channels"):
        find_discriminator(file, wider)
    with pytest.raises(UserError, match=r"main\.9\.running_var .* None, expected \(40,\)"):
        from_llamagen({k: v for k, v in tensors.items() if k != "main.9.running_var"}, CONFIG, "x")


def test_that_of_a_workdir_is_read_from_its_newest_checkpoint(tmp_path):
    adversary = Adversary(init_params(CONFIG, 1), fresh_norm_statistics(CONFIG), {"count": np.int32(4)})
    statistics = adversary.statistics | {"norm_2": Statistics(np.ones(20, np.float32), np.full(20, 3, np.float32))}
    adversary = adversary._replace(statistics=statistics)
    folder = tmp_path / "checkpoints" / "4"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "params", {"a": np.zeros(1)})
        checkpointer.save(folder / "adversary", adversary)
    config, params, statistics = find_discriminator(tmp_path)
    assert config == CONFIG
    for path, value in flatten(adversary.params).items():
        np.testing.assert_array_equal(flatten(params)[path], value, err_msg=path)
    assert statistics["norm_2"].variance.tolist() == [3.0] * 20
    with pytest.raises(UserError, match="with 5 channels and 2 layers"):
        find_discriminator(tmp_path, PatchDiscriminatorConfig(base_channels=5, num_layers=2, norm_eps=1e-5))
