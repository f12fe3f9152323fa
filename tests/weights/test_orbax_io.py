import contextlib
import json
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from janus_jax.errors import UserError
from janus_jax.models.params import flatten, unflatten
from janus_jax.models.scan_layers import is_stacked
from janus_jax.weights import orbax_io
from janus_jax.weights.load import load_params
from janus_jax.weights.native import open_params, save_params, write_architecture
from janus_jax.weights.orbax_io import OrbaxReader, OrbaxWriter
from janus_jax.weights.reader import TensorInfo, TensorSlice, all_slices
from tests.helpers.small_models import SMALL, random_params

SHAPES = {
    "llm/layers/kernel": ((3, 4, 6), jnp.bfloat16),
    "llm/layers/scale": ((3, 6), np.float32),
    "llm/embed": ((10, 6), jnp.bfloat16),
    "bias": ((5,), np.float32),
}
INFOS = {path: TensorInfo(shape, np.dtype(dtype)) for path, (shape, dtype) in SHAPES.items()}


def random_values():
    """Random bits, so infinities and NaNs with payloads too, and a layer of zeros."""
    rng = np.random.default_rng(0)
    values = {}
    for path, (shape, dtype) in SHAPES.items():
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        values[path] = rng.integers(0, 256, size, dtype=np.uint8).view(dtype).reshape(shape)
    values["llm/layers/kernel"][1] = 0
    return values


def write(folder, values):
    infos = {path: TensorInfo(array.shape, array.dtype) for path, array in values.items()}
    with OrbaxWriter(folder, infos) as writer:
        for part in reversed(list(all_slices(infos))):
            array = values[part.path]
            writer.write(part, array if part.layer is None else array[part.layer])


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        assert found[path].dtype == array.dtype and found[path].shape == array.shape, path
        assert np.asarray(found[path]).tobytes() == np.asarray(array).tobytes(), path


def read_all(reader):
    """Everything, stacked parameters layer by layer; the announced shapes must be the real ones."""
    values = {}
    for path, (shape, dtype) in reader.parameters.items():
        values[path] = reader.read(TensorSlice(path))
        if is_stacked(path):
            layers = [reader.read(TensorSlice(path, layer)) for layer in range(shape[0])]
            assert np.stack(layers).tobytes() == values[path].tobytes(), path
        assert (values[path].shape, values[path].dtype) == (shape, dtype), path
    return values


def restore(folder):
    with ocp.StandardCheckpointer() as checkpointer:
        return flatten(checkpointer.restore(folder))


@pytest.fixture
def written(tmp_path):
    write(tmp_path / "params", random_values())
    return tmp_path / "params"


def test_orbax_restores_what_we_write(written):
    assert_same_bits(restore(written), random_values())


def test_we_read_what_we_write(written):
    assert_same_bits(read_all(OrbaxReader(written)), random_values())


def test_load_params_restores_what_we_write(tmp_path):
    params = random_params(SMALL)
    write(tmp_path / "params", {path: np.asarray(leaf) for path, leaf in flatten(params).items()})
    write_architecture(tmp_path, SMALL)
    assert_same_bits(flatten(load_params(open_params(tmp_path, SMALL))), flatten(params))


def test_we_read_what_orbax_saves(tmp_path):
    params = random_params(SMALL)
    save_params(tmp_path, SMALL, params)
    assert_same_bits(read_all(OrbaxReader(tmp_path / "params")), flatten(params))


def test_our_checkpoints_are_read_layer_by_layer(tmp_path, monkeypatch):
    """By default Orbax would save each array as one chunk. A large matrix is divided into several too."""
    monkeypatch.setattr(orbax_io, "CHUNK_BYTES", 2**11)
    params = random_params(SMALL)
    save_params(tmp_path, SMALL, params)
    reader = OrbaxReader(tmp_path / "params")
    for path, info in reader.parameters.items():
        chunk = reader.chunk_shape(path)
        assert np.prod(chunk) * info.dtype.itemsize <= 2**11, path
        assert not is_stacked(path) or chunk[0] == 1, path
    assert_same_bits(read_all(reader), flatten(params))
    assert_same_bits(flatten(load_params(open_params(tmp_path, SMALL))), flatten(params))


@pytest.mark.parametrize("options", [{"use_ocdbt": False}, {"use_ocdbt": True, "use_zarr3": True}])
def test_we_read_other_layouts_of_orbax(options, tmp_path):
    values = random_values()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save(tmp_path / "params", args=ocp.args.PyTreeSave(unflatten(values)))
    assert_same_bits(read_all(OrbaxReader(tmp_path / "params")), values)


@pytest.mark.parametrize(("by_orbax", "chunks"), [(True, 1), (False, 3)])
def test_layers_in_one_chunk_are_read_once(tmp_path, monkeypatch, by_orbax, chunks):
    """A chunk that is damaged after its first layer was read, was read once if its other layers are still there."""
    values, folder, path = random_values(), tmp_path / "params", "llm/layers/kernel"
    if by_orbax:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
            checkpointer.save(folder, args=ocp.args.PyTreeSave(unflatten(values)))
    else:
        write(folder, values)
    reader = OrbaxReader(folder)
    files = [file for file in (folder / "llm.layers.kernel").rglob("*") if file.is_file() and file.name[0].isdigit()]
    assert len(files) == chunks
    assert reader.read(TensorSlice(path, 0)).tobytes() == values[path][0].tobytes()
    for file in files:
        file.unlink()
    if by_orbax:
        for layer in (1, 2):
            assert reader.read(TensorSlice(path, layer)).tobytes() == values[path][layer].tobytes()
    else:
        with pytest.raises(UserError, match="cannot be read"):
            reader.read(TensorSlice(path, 1))


def test_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(orbax_io, "CHUNK_BYTES", 30)
    write(tmp_path / "params", random_values())
    chunks = {
        path.parent.name: json.loads(path.read_text())["chunks"] for path in (tmp_path / "params").glob("*/.zarray")
    }
    assert chunks == {"llm.layers.kernel": [1, 2, 6], "llm.layers.scale": [1, 6], "llm.embed": [2, 6], "bias": [5]}
    assert_same_bits(restore(tmp_path / "params"), random_values())
    assert_same_bits(read_all(OrbaxReader(tmp_path / "params")), random_values())


def test_writer_accepts_only_what_was_announced(tmp_path):
    values = random_values()
    writer = OrbaxWriter(tmp_path / "params", INFOS)
    kernel = values["llm/layers/kernel"]
    for layer, wrong in ((0, kernel), (None, kernel), (3, kernel[0]), (0, kernel[0].astype(np.float32))):
        with pytest.raises(ValueError, match="not as announced"):
            writer.write(TensorSlice("llm/layers/kernel", layer), wrong)
    writer.write(TensorSlice("llm/layers/kernel", 0), kernel[0])
    with pytest.raises(ValueError, match="written before"):
        writer.write(TensorSlice("llm/layers/kernel", 0), kernel[0])
    with pytest.raises(ValueError, match="7 slices were not written"):
        writer.close()
    with pytest.raises(UserError, match="unfinished"):
        OrbaxReader(tmp_path / "params")


@contextlib.contextmanager
def file_size_limit(limit):
    """The operating system refuses to write more than `limit` bytes to a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_storage_that_refuses(tmp_path):
    writer = OrbaxWriter(tmp_path / "params", {"a": TensorInfo((1000, 1000), np.dtype(np.float32))})
    with (
        file_size_limit(10**5),
        pytest.raises(UserError, match=f"{tmp_path}/params: cannot be written .*File too large"),
    ):
        writer.write(TensorSlice("a"), np.ones((1000, 1000), np.float32))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"{tmp_path}/file/params: cannot be written"):
        OrbaxWriter(tmp_path / "file/params", INFOS)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"tree_metadata": {"a": {}}, "use_zarr3": false, "use_ocdbt": false}']
)
def test_damaged_metadata(text, written):
    (written / "_METADATA").write_text(text)
    with pytest.raises(UserError, match=f"{written}: a damaged Orbax checkpoint"):
        OrbaxReader(written)


def test_missing_array(written):
    (written / "llm.embed/.zarray").unlink()
    with pytest.raises(UserError, match=f"{written}: a damaged Orbax checkpoint .*llm.embed"):
        OrbaxReader(written)


@pytest.mark.parametrize("damage", [Path.unlink, lambda chunk: chunk.write_bytes(chunk.read_bytes()[:-1])])
def test_damaged_chunk(damage, written):
    damage(written / "llm.layers.kernel/1.0.0")
    reader = OrbaxReader(written)
    reader.read(TensorSlice("llm/layers/kernel", 0))
    with pytest.raises(UserError, match=f"{written}: llm/layers/kernel cannot be read"):
        reader.read(TensorSlice("llm/layers/kernel", 1))


def test_not_a_checkpoint(tmp_path):
    with pytest.raises(UserError, match="not an Orbax checkpoint"):
        OrbaxReader(tmp_path)


def test_memory_and_shardings(tmp_path):
    """220 MB in layers of 10 MB, written and read with less than half of that; then restored onto four devices."""
    code = """
        import sys
        import numpy as np
        from janus_jax.weights.orbax_io import OrbaxReader, OrbaxWriter
        from janus_jax.weights.reader import TensorInfo, TensorSlice

        def peak():
            with open("/proc/self/status") as file:
                return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) // 1000

        folder, shape = sys.argv[1], (1000, 2500)
        before = peak()
        float32 = np.dtype(np.float32)
        infos = {"layers/a/layers/b": TensorInfo((20, *shape), float32), "c": TensorInfo((2000, 2500), float32)}
        with OrbaxWriter(folder, infos) as writer:
            for layer in range(20):
                writer.write(TensorSlice("layers/a/layers/b", layer), np.full(shape, layer, np.float32))
            writer.write(TensorSlice("c"), np.full((2000, 2500), 7, np.float32))
        reader = OrbaxReader(folder)
        for layer in range(20):
            assert (reader.read(TensorSlice("layers/a/layers/b", layer)) == layer).all()
        print(peak() - before)

        import jax
        import orbax.checkpoint as ocp
        mesh = jax.make_mesh((4,), ("x",))
        def target(shape, *spec):
            sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
            return jax.ShapeDtypeStruct(shape, np.float32, sharding=sharding)
        stacked = target((20, *shape), None, None, "x")
        tree = {"layers": {"a": {"layers": {"b": stacked}}}, "c": target((2000, 2500), "x")}
        with ocp.StandardCheckpointer() as checkpointer:
            restored = checkpointer.restore(folder, tree)
        array = restored["layers"]["a"]["layers"]["b"]
        assert array.sharding == tree["layers"]["a"]["layers"]["b"].sharding
        assert (np.asarray(array) == np.arange(20)[:, None, None]).all()
        assert (np.asarray(restored["c"]) == 7).all()
    """
    environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "params")]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 110
