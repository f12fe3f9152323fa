"""Files that `torch.save` wrote: training scripts' files, damaged files, and files that would run code."""

import argparse
import pathlib
import pickle
import sys

import numpy as np
import pytest
import torch

from janus_jax.errors import UserError
from janus_jax.weights.tensor_files import open_tensors

TENSORS = {"model": torch.ones(2, 3), "b": torch.arange(4, dtype=torch.bfloat16)}
OTHERS = {name: tensor + 1 for name, tensor in TENSORS.items()}
WRAPPED = {f"module._orig_mod.{name}": tensor for name, tensor in TENSORS.items()}


@pytest.mark.parametrize(
    ("content", "choice"),
    [
        ({"model": TENSORS, "steps": 3}, ()),
        ({"state_dict": TENSORS}, ()),
        ({"ema": TENSORS, "steps": 3}, ()),
        ({"model": OTHERS, "ema": TENSORS}, ("'ema' and 'model'", "ema")),
        ({"state_dict": OTHERS, "model": TENSORS}, ("'model' and 'state_dict'", "model")),
        ({"model": OTHERS, "model_ema": TENSORS}, ("'model_ema' and 'model'", "model_ema")),
        ({"params": OTHERS, "params_ema": TENSORS}, ("'params_ema' and 'params'", "params_ema")),
        ({"model": TENSORS, "loss": np.float64(1.5), "args": argparse.Namespace(data=pathlib.Path("/data"))}, ()),
        ({"model": TENSORS, "ema": None}, ()),
        ({"model": TENSORS, "ema": {}}, ()),
        ({"model": OTHERS, "ema": WRAPPED, "discriminator": OTHERS}, ("'ema' and 'model'", "ema")),
        (
            {"model": TENSORS, "args": argparse.Namespace(lr=1e-4, ema=True, more=argparse.Namespace(sizes=[1, 2]))},
            (),
        ),
        (WRAPPED, ()),
        ({f"module.{name}": tensor for name, tensor in TENSORS.items()}, ()),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_reads_torch_training_files_and_tells_a_choice(content, choice, zipped, tmp_path, caplog):
    torch.save(content, tmp_path / "vq.pt", _use_new_zipfile_serialization=zipped)
    with open_tensors(tmp_path / "vq.pt") as files:
        assert files.tensors.keys() == TENSORS.keys()
        for name, tensor in TENSORS.items():
            assert files.read(name).dtype.name == str(tensor.dtype).removeprefix("torch.")
            np.testing.assert_array_equal(files.read(name).astype(np.float32), tensor.float())
    told = [record.args[1:] for record in caplog.records]
    assert told == [choice] * bool(choice)


def test_a_prefix_of_some_names_only_is_kept(tmp_path):
    torch.save({"module.a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "a.pt")
    with open_tensors(tmp_path / "a.pt") as files:
        assert files.tensors.keys() == {"module.a", "b"}


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


class Namespace(argparse.Namespace):
    """Has a method that PyTorch would call."""

    def __setstate__(self, state):
        raise AssertionError("ran code of the file")


def test_options_of_another_class_than_a_plain_namespace_are_refused(tmp_path):
    torch.save({"model": TENSORS, "args": Namespace(lr=1)}, tmp_path / "vq.pt")
    with pytest.raises(UserError, match=r"vq.pt: refused, .* calls \S*test_torch_io.Namespace"):
        open_tensors(tmp_path / "vq.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_torch_file_that_would_run_code_is_refused(zipped, tmp_path):
    content = {"a": torch.ones(2), "b": RunsCode(tmp_path / "created")}
    torch.save(content, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"pytorch_model.bin: refused, .* calls _?io.open"):
        open_tensors(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(content["b"], protocol=2))
    with pytest.raises(UserError, match="pytorch_model.bin: refused"):
        open_tensors(tmp_path)
    assert not (tmp_path / "created").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": torch.ones(2), "steps": 3}, "'steps' is a int"),
        ({"model": {"a": [torch.ones(2)]}}, "'a' is a list"),
        ({3: torch.ones(2)}, "3 is a Tensor"),
        ({"a": torch.eye(2).to_sparse()}, "'a' is a Tensor, expected dense"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "a has dtype torch.complex64"),
        ([torch.ones(2)], "holds a list"),
    ],
)
def test_torch_files_of_something_else(content, message, tmp_path):
    torch.save(content, tmp_path / "a.bin")
    with pytest.raises(UserError, match=f"a.bin: {message}"):
        open_tensors(tmp_path / "a.bin")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("keep", [0, 3, -100, -3])
def test_cut_torch_file(zipped, keep, tmp_path):
    torch.save({"a": torch.ones(300)}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    (tmp_path / "a.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:keep])
    with pytest.raises(UserError, match="a.pt: "):
        open_tensors(tmp_path / "a.pt")


def test_torch_file_without_pytorch(tmp_path, monkeypatch):
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"a.pt: reading it needs PyTorch"):
        open_tensors(tmp_path / "a.pt")
