import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from configs import janus_pro_1b
from janus_jax import sharding
from janus_jax.errors import UserError
from janus_jax.models.params import abstract_params, flatten, unflatten
from janus_jax.models.presets import JANUS_PRO_7B, JANUS_PRO_TINY
from janus_jax.sharding import MESH_AXES, GatheredWeights, auto_mesh, make_mesh, param_shardings, row_shares
from janus_jax.training.plan import make_plan
from tests.helpers import REPOSITORY
from tests.helpers.tiny_runs import MICRO_JANUS


class FakeDevice:
    """A device of which a mesh can be made, but no arrays."""

    process_index = 0
    platform = device_kind = "fake"

    def __init__(self, id, slice_index=0):
        self.id, self.slice_index = id, slice_index

    def __repr__(self):
        return f"FakeDevice({self.id})"


@pytest.fixture
def devices(monkeypatch):
    """Pretends that there are this many devices."""

    def pretend(count):
        fake = [FakeDevice(i) for i in range(count)]
        monkeypatch.setattr(jax, "devices", lambda *args: fake)

    return pretend


def sizes(data, fsdp, tensor):
    return dict(zip(MESH_AXES, (data, fsdp, tensor), strict=True))


@pytest.mark.parametrize("mesh_sizes", [(1, 4, 1), (1, 2, 2), (1, 8, 4), (2, 4, 8), (1, 256, 1), (8, 64, 1)])
def test_every_large_parameter_of_the_7b_model_is_sharded(devices, mesh_sizes):
    devices(int(np.prod(mesh_sizes)))
    mesh = make_mesh(sizes(*mesh_sizes))
    shapes = flatten(abstract_params(JANUS_PRO_7B))
    shardings = flatten(param_shardings(JANUS_PRO_7B, mesh))
    assert shardings.keys() == shapes.keys()
    whole = [
        path
        for path, leaf in shapes.items()
        if leaf.size > 1_000_000 and all(mesh.shape[axis] == 1 for axis in shardings[path].spec if axis)
    ]
    assert whole == []
    parts = {path: np.prod([mesh.shape[axis] for axis in shardings[path].spec if axis]) for path in shapes}
    assert sum(leaf.size for path, leaf in shapes.items() if parts[path] == 1) < 5_000_000  # biases, norms, the small
    per_device = sum(leaf.size / parts[path] for path, leaf in shapes.items() if parts[path] > 1)
    assert per_device < 1.1 * sum(leaf.size for leaf in shapes.values()) / (mesh.shape["fsdp"] * mesh.shape["tensor"])


def test_matrices_are_cut_along_heads_mlp_and_vocabulary(devices):
    """Matrices into a block are cut by columns and those out of it by rows, so that a block needs one reduction."""
    devices(4)
    shardings = flatten(param_shardings(JANUS_PRO_7B, make_mesh(sizes(1, 2, 2))))
    expected = {
        "llm/embed_tokens": ("fsdp", "tensor"),
        "llm/lm_head/kernel": ("fsdp", "tensor"),
        "llm/decoder/layers/attention/q_proj/kernel": (None, "fsdp", "tensor"),
        "llm/decoder/layers/attention/o_proj/kernel": (None, "tensor", "fsdp"),
        "llm/decoder/layers/mlp/up_proj/kernel": (None, "fsdp", "tensor"),
        "llm/decoder/layers/mlp/down_proj/kernel": (None, "tensor", "fsdp"),
        "gen_head/codes/kernel": ("fsdp", "tensor"),
        "vq/encoder/conv_in/kernel": (None, None, None, None),  # small: not worth a gather
        "vq/encoder/conv_out/kernel": (None, None, "fsdp", None),
        "llm/decoder/norm/scale": (None,),
    }
    assert {path: tuple(shardings[path].spec) for path in expected} == expected


@pytest.mark.parametrize(
    ("mesh_sizes", "message"),
    [
        ((1, 5, 1), r"\w+/.*: dimension \d+ of \(.*\) is not divisible by mesh\.fsdp=5"),
        ((1, 1, 7), r"\w+/.*: dimension \d+ of \(.*\) is not divisible by mesh\.tensor=7"),
    ],
)
def test_indivisible_dimension_is_an_error_that_names_the_parameter(devices, mesh_sizes, message):
    devices(int(np.prod(mesh_sizes)))
    with pytest.raises(UserError, match=message) as error:
        param_shardings(JANUS_PRO_TINY, make_mesh(sizes(*mesh_sizes)))
    path = str(error.value).split(":")[0]
    assert str(flatten(abstract_params(JANUS_PRO_TINY))[path].shape) in str(error.value)


def test_two_dimensions_on_one_mesh_axis_are_an_error_that_names_the_parameter(devices, monkeypatch):
    devices(4)
    monkeypatch.setattr(sharding, "LOGICAL_TO_MESH", dict(sharding.LOGICAL_TO_MESH) | {"embed": "tensor"})
    with pytest.raises(UserError, match=r"^\w+/.*: logical axes .* put the same mesh axis on two dimensions"):
        param_shardings(JANUS_PRO_TINY, make_mesh(sizes(1, 2, 2)))


@pytest.mark.parametrize(
    ("given", "shape"),
    [((1, 2, 4), (1, 2, 4)), ((-1, 2, 2), (2, 2, 2)), ((1, -1, 1), (1, 8, 1)), ((2, 2, -1), (2, 2, 2))],
)
def test_minus_one_takes_the_remaining_devices_in_order(devices, given, shape):
    devices(8)
    mesh = make_mesh(sizes(*given))
    assert (mesh.axis_names, mesh.devices.shape) == (MESH_AXES, shape)
    assert [device.id for device in mesh.devices.flat] == list(range(8))


@pytest.mark.parametrize("given", [(1, 2, 2), (1, 3, -1), (-1, -1, 1), (2, 8, 1), (1, 0, -1), (-1, 16, 1), (-2, -4, 1)])
def test_mesh_that_does_not_fit_the_devices_is_an_error_with_all_sizes(devices, given):
    devices(8)
    data, fsdp, tensor = given
    expected = rf"mesh\.data={data}, mesh\.fsdp={fsdp}, mesh\.tensor={tensor} does not fit 8 devices"
    with pytest.raises(UserError, match=expected):
        make_mesh(sizes(*given))


@pytest.mark.parametrize(
    ("slices", "rows", "given", "expected"),
    [
        (1, 16, ("auto", -1, "auto"), (1, -1, 1)),
        (2, 16, ("auto", -1, "auto"), (2, -1, 1)),
        (1, 4, ("auto", -1, "auto"), (1, -1, 4)),  # a row for each four of the sixteen devices
        (2, 4, ("auto", -1, "auto"), (2, -1, 4)),
        (1, 12, ("auto", -1, "auto"), (1, -1, 4)),  # three rows for each four devices
        (1, 3, ("auto", -1, "auto"), (1, -1, 16)),  # all rows on all devices
        (1, 17, ("auto", -1, "auto"), (1, -1, 1)),  # too many; an error follows
        (1, 4, ("auto", -1, 1), (1, -1, 1)),
        (1, 4, (4, -1, "auto"), (4, -1, 4)),
        (1, 16, (-1, 4, "auto"), (-1, 4, 1)),
        (2, 16, ("auto", 4, 2), (2, 4, 2)),
    ],
)
def test_auto_puts_data_over_slices_and_tensor_only_where_devices_would_have_no_row(slices, rows, given, expected):
    fake = [FakeDevice(i, slice_index=i * slices // 16) for i in range(16)]
    mesh = auto_mesh(sizes(*given), fake, rows, kv_heads=32)
    assert mesh == sizes(*expected)
    if rows != 17 and given != ("auto", -1, 1):
        assert rows % row_shares(make_mesh(mesh, fake)) == 0


def test_auto_tensor_divides_the_heads_and_other_words_are_refused():
    fake = [FakeDevice(i) for i in range(12)]
    assert auto_mesh(sizes("auto", -1, "auto"), fake, 3, kv_heads=4)["tensor"] == 4
    assert auto_mesh(sizes("auto", -1, "auto"), fake, 4, kv_heads=4)["tensor"] == 1  # 3 would be no divisor of 4
    assert auto_mesh(sizes("auto", -1, "auto"), fake, 4, kv_heads=None)["tensor"] == 1
    with pytest.raises(UserError, match=r"mesh\.fsdp='all', expected a whole number or 'auto'"):
        auto_mesh(sizes("auto", "all", 1), fake, 4, kv_heads=4)


def test_data_goes_over_slices_and_the_other_axes_stay_inside():
    """The devices of the slices may alternate."""
    fake = [FakeDevice(i, slice_index=i % 2) for i in range(16)]
    mesh = make_mesh(sizes(4, 2, -1), fake)
    places = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert places.tolist() == [[[0, 0], [0, 0]]] * 2 + [[[1, 1], [1, 1]]] * 2
    assert [device.id for device in mesh.devices[0].flat] == [0, 2, 4, 6]


@pytest.mark.parametrize("data", [1, 3])
def test_data_that_slices_cannot_share_is_refused(data):
    fake = [FakeDevice(i, slice_index=i // 6) for i in range(12)]
    with pytest.raises(UserError, match=rf"mesh\.data={data} is not a multiple of the 2 slices"):
        make_mesh(sizes(data, -1, 1), fake)
    gpus = [FakeDevice(i, slice_index=i // 6) for i in range(12)]
    for gpu in gpus:
        gpu.platform = "gpu"
    assert make_mesh(sizes(data, -1, 1), gpus).shape["data"] == data


def test_sharded_training_losses_metrics_and_gradients_equal_those_of_one_device():
    """Two micro-batches on eight CPU devices with data=2, fsdp=2 and tensor=2, in a separate process."""
    command = [sys.executable, "-m", "tests.helpers.sharded_training"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["devices"] == 8 and result["sharded_leaves"] > 20
    assert result["alone"][1]["loss"][0] < result["alone"][0]["loss"][0]  # the step in between does something
    for ours, expected in zip(result["sharded"], result["alone"], strict=True):
        assert ours.keys() == expected.keys()
        for name, pair in expected.items():
            assert ours[name] == pytest.approx(pair, abs=2e-5), name
    assert max(result["gradient_difference"].values()) < 1e-5, result["gradient_difference"]


def test_heads_of_caches_that_tensor_does_not_divide_are_refused():
    mesh = jax.sharding.AbstractMesh((1, 1, 4), MESH_AXES)
    with pytest.raises(UserError, match=r"mesh\.tensor=4 does not divide llama\.num_kv_heads=2"):
        sharding.decoding_shardings(MICRO_JANUS, mesh)


def test_weights_of_the_image_tokenizer_are_gathered_as_they_are():
    """Rounded ones would give other codes than `prepare_data` stores."""
    specs = {"vq/encoder/kernel": PartitionSpec("fsdp"), "llm/kernel": PartitionSpec("fsdp")}
    gather = GatheredWeights(jnp.bfloat16, specs, exact="vq").outside_stacks
    shards = {"vq": {"encoder": {"kernel": jnp.zeros(2)}}, "llm": {"kernel": jnp.zeros(2)}}
    whole = jax.make_jaxpr(gather, axis_env=[("fsdp", 2)], return_shape=True)(shards)[1]
    assert (whole["vq"]["encoder"]["kernel"].dtype, whole["llm"]["kernel"].dtype) == (jnp.float32, jnp.bfloat16)
    assert whole["vq"]["encoder"]["kernel"].shape == (4,)


def test_a_plan_keeps_the_weights_of_its_image_tokenizer_exact(devices):
    config = janus_pro_1b.get_config("stage2")
    config.train.batch_size = 4
    devices(4)
    plan = make_plan(config)
    frozen, specs = flatten(plan.state.frozen), flatten(plan.shardings.frozen)
    divided = next(path for path in frozen if path.startswith("vq/encoder/") and "fsdp" in specs[path].spec)
    shard = jax.ShapeDtypeStruct(specs[divided].shard_shape(frozen[divided].shape), frozen[divided].dtype)
    gather = plan.execution.weights.outside_stacks
    whole = jax.make_jaxpr(gather, axis_env=[("fsdp", 4)], return_shape=True)(unflatten({divided: shard}))[1]
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(whole)] == [(frozen[divided].shape, jnp.float32)]
