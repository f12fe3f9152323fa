"""The file of Inception's weights: pytorch-fid's layout, and files that are something else."""

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from janus_jax.errors import UserError
from janus_jax.models.params import flatten
from janus_jax.weights.inception import load_inception
from tests.helpers.metric_networks import SMALL_INCEPTION, inception_tensors, write_small_inception

TENSORS = inception_tensors(SMALL_INCEPTION)
RIGHT = "pt_inception-2015-12-05-6726825d.pth"


def test_a_torch_file_and_safetensors_give_the_same_parameters(tmp_path):
    state = {name: torch.from_numpy(tensor) for name, tensor in TENSORS.items()}
    state["Mixed_7c.branch_pool.bn.num_batches_tracked"] = torch.tensor(0)
    torch.save(state, tmp_path / "inception.pth")
    config, params = load_inception(tmp_path / "inception.pth")
    assert config == SMALL_INCEPTION
    _, other = load_inception(write_small_inception(tmp_path / "inception.safetensors"))
    for path, value in flatten(params).items():
        np.testing.assert_array_equal(flatten(other)[path], value, err_msg=path)
    norm, block = params["mixed_7c"]["branch_pool"]["norm"], "Mixed_7c.branch_pool.bn"
    np.testing.assert_array_equal(norm["variance"], TENSORS[f"{block}.running_var"])
    np.testing.assert_array_equal(norm["mean"], TENSORS[f"{block}.running_mean"])
    np.testing.assert_array_equal(params["fc"]["kernel"], TENSORS["fc.weight"].T)


def wrong_files():
    torchvision = {**TENSORS, "fc.weight": np.zeros((1000, 128), np.float32), "fc.bias": np.zeros(1000, np.float32)}
    yield "torchvision's classes", torchvision, r"fc\.weight has 1000 rows"
    yield "auxiliary head", {**TENSORS, "AuxLogits.fc.bias": np.zeros(3, np.float32)}, r"AuxLogits\.fc\.bias"
    yield "missing", {k: v for k, v in TENSORS.items() if k != "Mixed_6a.branch3x3.bn.bias"}, r"Mixed_6a\.branch3x3\.bn"
    yield "shape", {**TENSORS, "Mixed_6a.branch3x3.bn.bias": np.zeros(5, np.float32)}, r"bn\.bias \[5\]"
    yield "another model", {"layers.0.weight": np.zeros((2, 2), np.float32)}, r"has no fc\.weight"


@pytest.mark.parametrize(("tensors", "message"), [pytest.param(*case[1:], id=case[0]) for case in wrong_files()])
def test_other_networks_are_refused_and_the_right_file_is_named(tmp_path, tensors, message):
    save_file(tensors, tmp_path / "wrong.safetensors")
    with pytest.raises(UserError, match=rf"(?s)wrong\.safetensors.*{message}.*{RIGHT}"):
        load_inception(tmp_path / "wrong.safetensors")


def test_torch_script_and_missing_files_are_refused_and_the_right_file_is_named(tmp_path):
    module = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))
    torch.jit.save(module, str(tmp_path / "inception-2015-12-05.pt"))
    with pytest.raises(UserError, match=f"TorchScript.*{RIGHT}"):
        load_inception(tmp_path / "inception-2015-12-05.pt")
    with pytest.raises(UserError, match=f"no such file.*{RIGHT}"):
        load_inception(tmp_path / "none.pth")
