"""Image tokenizers from LlamaGen's file to a folder of ours and back, bit for bit and with the original's names."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch

from janus_jax.errors import UserError
from janus_jax.inference.image_tokenizer import load_image_tokenizer
from janus_jax.models.params import abstract_params, count, flatten
from janus_jax.models.presets import VQ_16
from janus_jax.weights.llamagen import read_tokenizer, to_original, write_folder, write_llamagen
from tests.helpers import REPOSITORY
from tests.helpers.tokenizer_reference import VQ_SMALL, below, load, rule_value, shapes_of

SMALL = dataclasses.replace(VQ_SMALL, image_size=256)


@pytest.fixture(scope="module")
def tensors():
    """State dict of LlamaGen's VQModel, as its own class names the tensors."""
    shapes = {key: shape for key, shape in shapes_of(load("train_steps")).items() if not key.startswith("discrim")}
    state = {key: rule_value(f"steps/{key}", shape) for key, shape in shapes.items()}
    return state | {"quantize.codebook_used": np.zeros(65536, np.float32)}


@pytest.fixture(scope="module")
def file(tensors, tmp_path_factory):
    """A file as LlamaGen writes it while it trains."""
    path = tmp_path_factory.mktemp("llamagen") / "0001000.pt"
    parts = {"model": tensors, "discriminator": below(load("patchgan"), "weights/")}
    content = {part: {key: torch.tensor(value) for key, value in state.items()} for part, state in parts.items()}
    content |= {"steps": 1000, "optimizer": {"state": {}, "param_groups": []}}
    # A file of the older format is read once, and a newer one again for every tensor, which takes seconds.
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


def content(path):
    return torch.load(path, weights_only=True)


def test_its_sizes_are_read_from_the_tensors(file):
    found = read_tokenizer(file)
    assert found.config == SMALL and found.ema is None
    assert (found.discriminator[0].base_channels, found.discriminator[0].num_layers) == (5, 3)


def test_there_and_back_is_bit_equal(file, tmp_path):
    written = content(write_llamagen(tmp_path / "back", read_tokenizer(file)))
    expected = content(file)
    for part in ("model", "discriminator"):
        assert written[part].keys() == expected[part].keys()
        for name, value in expected[part].items():
            assert written[part][name].dtype == value.dtype and torch.equal(written[part][name], value), name


def test_a_folder_of_ours_is_a_tokenizer_and_goes_back(file, tensors, tmp_path):
    write_folder(tmp_path / "ours", read_tokenizer(file))
    ours = load_image_tokenizer(tmp_path / "ours")
    assert ours.config == SMALL and load_image_tokenizer(file).sha256 == ours.sha256
    written = content(write_llamagen(tmp_path / "back", read_tokenizer(tmp_path / "ours")))
    assert written.keys() == {"model", "steps"}  # an exported folder has no discriminator
    for name, value in tensors.items():
        np.testing.assert_array_equal(written["model"][name].numpy(), value, err_msg=name)


def test_released_sizes_have_the_tensors_and_parameters_of_the_original():
    vq_8 = dataclasses.replace(VQ_16, channel_multipliers=(1, 2, 2, 4))
    for config, tensors in ((VQ_16, 343), (vq_8, 299)):
        params = {path: np.broadcast_to(np.float32(0), x.shape) for path, x in flatten(abstract_params(config)).items()}
        assert len(to_original(params, config)) == tensors + 1
    assert count(abstract_params(vq_8)) == 70_109_835


def test_constants_that_llamagens_code_does_not_have_are_refused(file, tmp_path):
    found = read_tokenizer(file)
    other = found._replace(config=dataclasses.replace(found.config, norm_groups=16))
    with pytest.raises(UserError, match="norm_groups is 16, LlamaGen's code has 32"):
        write_llamagen(tmp_path / "out", other)
    with pytest.raises(UserError, match="--ema.*no average"):
        write_folder(tmp_path / "out", found, ema=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command_converts_both_ways_and_refuses_other_layouts(file, tensors, tmp_path):
    def convert(source, output, layout):
        flags = [f"--input={source}", f"--output={tmp_path / output}", f"--to={layout}"]
        command = [sys.executable, "-m", "launch.convert", *flags]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)

    done = convert(file, "ours", "orbax")
    assert done.returncode == 0 and "without a discriminator" in done.stdout, done.stderr
    done = convert(file, "back", "llamagen")
    assert done.returncode == 0 and "with a discriminator" in done.stdout, done.stderr
    assert content(tmp_path / "back" / "vq.pt")["model"].keys() == tensors.keys()
    done = convert(tmp_path / "ours", "hf", "hf")
    assert done.returncode == 2 and "--to=hf is not for" in done.stderr
