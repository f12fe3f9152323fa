"""Reading LPIPS from the files of torchvision, timm and the package lpips: whole ones, and ones that are wrong."""

import numpy as np
import pytest
import safetensors.numpy
import torch

from janus_jax.errors import UserError
from janus_jax.models.params import abstract_params, flatten
from janus_jax.models.presets import LPIPS_VGG
from janus_jax.weights.lpips import load_lpips, their_name
from tests.helpers.tokenizer_reference import LPIPS_NARROW, below, load, narrow_lpips


def write(path, tensors):
    if path.suffix == ".safetensors":
        path.parent.mkdir()
        safetensors.numpy.save_file(tensors, path)
        return path.parent
    # The heads of the package are in the format of PyTorch before 1.6.
    torch.save(
        {name: torch.tensor(value) for name, value in tensors.items()}, path, _use_new_zipfile_serialization=False
    )
    return path


@pytest.fixture
def files(tmp_path):
    """Writes the trunk and the heads of the narrow net; `change` is applied to all tensors first."""

    def make(trunk="vgg16.pth", change=lambda tensors: None):
        tensors = below(load("lpips_narrow"), "weights/")
        tensors["classifier.0.weight"] = np.zeros((4, 6), np.float32)
        change(tensors)
        heads = {name: value for name, value in tensors.items() if name.startswith("lin")}
        rest = {name: value for name, value in tensors.items() if not name.startswith("lin")}
        return write(tmp_path / trunk, rest), write(tmp_path / "heads.pth", heads)

    return make


@pytest.mark.parametrize("trunk", ["vgg16.pth", "timm/model.safetensors"])
def test_both_kinds_of_trunk_are_read(files, trunk):
    params, expected = flatten(load_lpips(*files(trunk), LPIPS_NARROW)), flatten(narrow_lpips())
    assert params.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(params[path], value, err_msg=path)


def test_names_are_those_of_the_original():
    names = {their_name(path) for path in flatten(abstract_params(LPIPS_VGG))}
    assert names == set(below(load("lpips_narrow"), "weights/"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.pop("features.28.bias"), r"^loss\.lpips_trunk='.*has no tensor features\.28\.bias"),
        (lambda t: t.pop("lin4.model.1.weight"), r"^loss\.lpips_heads='.*has no tensor lin4\.model\.1\.weight"),
        (
            lambda t: t.update({"features.5.weight": np.zeros((16, 8, 5, 5), np.float32)}),
            r"^loss\.lpips_trunk='.*features\.5\.weight has the shape \[16, 8, 5, 5\], expected \[16, 8, 3, 3\]",
        ),
        (
            lambda t: t.update({"lin0.model.1.weight": np.zeros((1, 64, 1, 1), np.float32)}),
            r"^loss\.lpips_heads='.*lin0\.model\.1\.weight has the shape \[1, 64, 1, 1\], expected \[1, 8, 1, 1\]",
        ),
    ],
)
def test_another_file_is_refused_by_name_and_shape(files, change, expected):
    with pytest.raises(UserError, match=expected):
        load_lpips(*files(change=change), LPIPS_NARROW, prefix="loss.lpips_")


def test_missing_files_are_refused_with_both_names(files):
    trunk, _ = files()
    with pytest.raises(UserError, match=r"^--lpips_heads=''.*vgg16-397923af\.pth.*lpips/weights/v0\.1/vgg\.pth"):
        load_lpips(trunk, "")
    with pytest.raises(UserError, match=r"^--lpips_trunk='nowhere\.pth', --lpips_heads=''"):
        load_lpips("nowhere.pth", "")


@pytest.mark.parametrize(("value", "field"), [(0.0, "trunk"), (-0.5537, "heads")])
def test_other_weights_of_the_right_shapes_are_refused(tmp_path, value, field):
    """Such as a VGG that reads BGR, and the heads of version 0.0."""
    tensors = {}
    for path, leaf in flatten(abstract_params(LPIPS_VGG)).items():
        shape = leaf.shape
        theirs = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape
        tensors[their_name(path)] = np.zeros((1, *shape, 1, 1) if path.startswith("head_") else theirs, np.float32)
    if value:
        tensors["features.0.weight"][0, 0] = [
            [-0.55373, 0.14270, 0.52896],
            [-0.58312, 0.35655, 0.76566],
            [-0.69022, -0.04802, 0.48409],
        ]
    safetensors.numpy.save_file(tensors, tmp_path / "both.safetensors")
    with pytest.raises(UserError, match=rf"--lpips_{field}="):
        load_lpips(tmp_path / "both.safetensors", tmp_path / "both.safetensors")
