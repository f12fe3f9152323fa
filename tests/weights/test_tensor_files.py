import contextlib
import errno
import io
import json
import os
import resource
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from janus_jax.errors import UserError
from janus_jax.weights import safetensors_io
from janus_jax.weights.reader import TensorInfo
from janus_jax.weights.safetensors_io import SafetensorsWriter
from janus_jax.weights.tensor_files import open_tensors

TORCH_DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def random_tensors():
    """Every dtype with random bits, so infinities and NaNs with payloads too; a scalar and an empty tensor."""
    rng = np.random.default_rng(0)
    tensors = {
        f"of.{dtype}": torch.tensor(rng.integers(0, 256, (5, 3 * dtype.itemsize), dtype=np.uint8)).view(dtype)
        for dtype in TORCH_DTYPES
        if dtype != torch.bool
    }
    some = {"mask": torch.tensor([True, False, True]), "scalar": torch.tensor(1.5), "empty": torch.ones(0, 2)}
    return tensors | some | {"nan": torch.tensor([0x7FA1, -0x5E], dtype=torch.int16).view(torch.bfloat16)}


def as_numpy(tensor):
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(jnp.bfloat16)
    return tensor.contiguous().numpy()


def write(folder, arrays, **kwargs):
    infos = {name: TensorInfo(array.shape, array.dtype) for name, array in arrays.items()}
    with SafetensorsWriter(folder, infos, **kwargs) as writer:
        for name in reversed(arrays):
            writer.write(name, arrays[name])


def assert_same_bits(files, tensors):
    assert files.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        expected, read = as_numpy(tensor), files.read(name)
        assert files.tensors[name] == (read.shape, read.dtype) == (expected.shape, expected.dtype), name
        assert files.tensors[name].nbytes == read.nbytes
        assert read.tobytes() == expected.tobytes(), name


@contextlib.contextmanager
def file_size_limit(limit):
    """The operating system refuses to write more than `limit` bytes to a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def sharded(tmp_path):
    """Three tensors in three shards, and their values."""
    arrays = {name: np.arange(6, dtype=np.float32) + i for i, name in enumerate("abc")}
    write(tmp_path, arrays, max_file_bytes=30)
    return tmp_path, arrays


def test_reads_what_safetensors_writes(tmp_path):
    tensors = random_tensors()
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    with open_tensors(tmp_path) as files:
        assert_same_bits(files, tensors)


def test_writes_the_bytes_that_safetensors_writes(tmp_path):
    tensors = random_tensors()
    safetensors.torch.save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    write(tmp_path, {name: as_numpy(tensor) for name, tensor in tensors.items()})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert not (tmp_path / "model.safetensors.index.json").exists()


def test_views_are_written_block_by_block(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_io, "BLOCK_BYTES", 100)
    values = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    arrays = {
        "transposed": values.transpose(3, 2, 0, 1),
        "reversed": values[::-1],
        "one": np.broadcast_to(values[0, 0, 0], (1, 200, 5)),
    }
    write(tmp_path, arrays)
    loaded = safetensors.torch.load_file(tmp_path / "model.safetensors")
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name].numpy(), array)


def test_shards_are_those_of_transformers(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=60, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "theirs", max_shard_size=4000)
    with open_tensors(tmp_path / "theirs") as files:
        assert_same_bits(files, model.state_dict())

    config.save_pretrained(tmp_path)
    write(tmp_path, {name: as_numpy(tensor) for name, tensor in model.state_dict().items()}, max_file_bytes=4000)
    ours = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    theirs = json.loads((tmp_path / "theirs/model.safetensors.index.json").read_text())
    assert ours["metadata"]["total_size"] == theirs["metadata"]["total_size"]
    assert ours["weight_map"] == theirs["weight_map"]
    loaded, info = LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_writer_accepts_only_what_was_announced(tmp_path):
    shapes = {"a": (2, 3), "b": (1,)}
    writer = SafetensorsWriter(
        tmp_path, {name: TensorInfo(shape, np.dtype(np.float32)) for name, shape in shapes.items()}
    )
    for wrong in (np.ones((3, 2), np.float32), np.ones((2, 3), np.float64)):
        with pytest.raises(ValueError, match="not as announced"):
            writer.write("a", wrong)
    writer.write("a", np.ones((2, 3), np.float32))
    with pytest.raises(ValueError, match="written before"):
        writer.write("a", np.ones((2, 3), np.float32))
    with pytest.raises(ValueError, match="1 tensors were not written, one is b"):
        writer.close()


def test_disk_full(tmp_path, monkeypatch):
    array = np.ones((10, 1000), np.float32)
    with file_size_limit(2000), pytest.raises(UserError, match=f"{tmp_path}: cannot be written"):
        write(tmp_path, {"a": array})

    class FullDisk(io.BytesIO):
        def write(self, values):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(type(safetensors_io.epath.Path(tmp_path)), "open", lambda *_: FullDisk())
    with pytest.raises(UserError, match=f"{tmp_path}: cannot be written .No space left on device"):
        write(tmp_path, {"a": array})


def test_reads_torch_files(tmp_path):
    tensors = random_tensors()
    tensors |= {"transposed": torch.arange(6.0).reshape(2, 3).T, "parameter": torch.nn.Parameter(torch.ones(2))}
    tensors["tied"] = tensors["transposed"]
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    tensors["parameter"] = tensors["parameter"].detach()
    with open_tensors(tmp_path) as files:
        assert_same_bits(files, tensors)


def test_reads_torch_shards(tmp_path):
    tensors = {"a": torch.ones(3, dtype=torch.bfloat16), "b": torch.arange(4.0)}
    weight_map = {}
    for number, name in enumerate(tensors, 1):
        weight_map[name] = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: tensors[name]}, tmp_path / weight_map[name])
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with open_tensors(tmp_path) as files:
        assert_same_bits(files, tensors)


def test_folder_without_weights(tmp_path):
    with pytest.raises(UserError, match=r"no weights found .*model.safetensors"):
        open_tensors(tmp_path)
    with pytest.raises(UserError, match="no weights found"):
        open_tensors(tmp_path / "nothing_here")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}', "not a whole safetensors file"),
        (b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}', "not a whole safetensors file"),
        (b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', "not a whole safetensors file"),
        (b'{"a":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}', "not a whole safetensors file .*F99"),
        (b'{"a":{"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]}}', "a has dtype F8_E4M3, expected one of I64"),
        (
            b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
            "a occurs twice",
        ),
    ],
)
def test_damaged_safetensors(header, message, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(UserError, match=f"model.safetensors: {message}"):
        open_tensors(tmp_path)


def test_header_too_large(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 7 + b"\x00{}")
    with pytest.raises(UserError, match="model.safetensors: not a whole safetensors file"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_cut_safetensors(keep, sharded):
    folder, _ = sharded
    shard = folder / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(UserError, match=f"{shard.name}: not a whole safetensors file"):
        open_tensors(folder)


def test_safetensors_cut_after_opening(tmp_path):
    write(tmp_path, {"a": np.ones(10**5), "b": np.ones(10**5)})
    with open_tensors(tmp_path) as files:
        os.truncate(tmp_path / "model.safetensors", 12 * 10**5)
        assert files.read("a").sum() == 10**5
        with pytest.raises(UserError, match="model.safetensors: ends inside b"):
            files.read("b")


def test_missing_shard(sharded):
    folder, _ = sharded
    (folder / "model-00003-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match="index.json: puts c into model-00003-of-00003.safetensors, which is missing"):
        open_tensors(folder)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"d": "model-00001-of-00003.safetensors"}, "puts d into model-00001-of-00003.safetensors, which does not"),
        ({"a": "model-00002-of-00003.safetensors"}, "puts a into model-00002-of-00003.safetensors, which does not"),
        ({"a": "../other/model.safetensors"}, "expected the name of a file in the same folder"),
        ({"a": "..\\model.safetensors"}, "expected the name of a file in the same folder"),
        ({"a": ".."}, "expected the name of a file in the same folder"),
        ({"a": 3}, "puts a into 3, expected the name"),
    ],
)
def test_index_that_does_not_fit(weight_map, message, sharded):
    folder, _ = sharded
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] |= weight_map
    path.write_text(json.dumps(index))
    with pytest.raises(UserError, match=f"model.safetensors.index.json: .*{message}"):
        open_tensors(folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"a": 1, "a": 2}'])
def test_damaged_index(text, sharded):
    folder, _ = sharded
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UserError, match="model.safetensors.index.json: "):
        open_tensors(folder)


def test_tensor_in_two_shards(sharded):
    folder, arrays = sharded
    tensors = {"a": torch.tensor(arrays["a"]), "b": torch.tensor(arrays["b"])}
    safetensors.torch.save_file(tensors, folder / "model-00002-of-00003.safetensors")
    with pytest.raises(UserError, match="model-00002-of-00003.safetensors: holds a, as model-00001-of-00003"):
        open_tensors(folder)


def test_memory_of_a_copy(tmp_path):
    """200 MB in 10 MB tensors, from safetensors and from a Torch file, take less than half of that."""
    code = """
        import os, sys
        import numpy as np
        from janus_jax.weights.reader import TensorInfo
        from janus_jax.weights.safetensors_io import SafetensorsWriter
        from janus_jax.weights.tensor_files import open_tensors

        def peak_of_copy(source, target):
            os.mkdir(target)
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # forgets the peak so far
            before = peak()
            with open_tensors(source) as files, SafetensorsWriter(target, files.tensors) as writer:
                for name in files.tensors:
                    writer.write(name, files.read(name))
            return peak() - before

        def peak():
            with open("/proc/self/status") as file:
                return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) // 1000

        source = sys.argv[1]
        infos = {f"layers.{i}": TensorInfo((1000, 2500), np.dtype(np.float32)) for i in range(20)}
        with SafetensorsWriter(source, infos, max_file_bytes=10**8) as writer:
            for name in infos:
                writer.write(name, np.zeros((2500, 1000), np.float32).T)
        print(peak_of_copy(source, f"{source}/copy"))

        import torch
        torch.save({name: torch.zeros(1000, 2500) for name in infos}, f"{source}/weights.bin")
        print(peak_of_copy(f"{source}/weights.bin", f"{source}/copy_of_bin"))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    peaks = [int(line) for line in output.split()]
    assert len(peaks) == 2 and max(peaks) < 100, peaks
