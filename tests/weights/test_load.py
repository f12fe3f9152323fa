"""The loop that loads parameters gives what NumPy makes of the stored values, and reads each slice once."""

import collections

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from janus_jax.errors import UserError
from janus_jax.models.params import flatten, unflatten
from janus_jax.models.scan_layers import unstack_layers
from janus_jax.weights.load import load_params, read_param
from janus_jax.weights.quantization import is_quantized, quantize, scale_path
from janus_jax.weights.reader import TensorsInMemory, TensorSlice, all_slices
from janus_jax.weights.weight_layout import is_row_major, transposed_path
from tests.helpers.small_models import SMALL, random_params

MATRIX = "llm/decoder/layers/mlp/up_proj/kernel"
MATRIX_OF_LAYER_1 = "llm/decoder/layers_1/mlp/up_proj/kernel"


class CountingReader(TensorsInMemory):
    def __init__(self, params):
        super().__init__(params)
        self.reads = collections.Counter()

    def read(self, part):
        self.reads[part] += 1
        return super().read(part)


@pytest.fixture(scope="module")
def params():
    """In float32 but for one weight matrix of the language model in bfloat16 and one in float64."""
    flat = {path: np.asarray(leaf) for path, leaf in flatten(random_params(SMALL)).items()}
    flat[MATRIX] = flat[MATRIX].astype(ml_dtypes.bfloat16)
    flat["llm/lm_head/kernel"] = flat["llm/lm_head/kernel"].astype(np.float64)
    return unflatten(flat)


def assert_equal(found, expected):
    found = flatten(found)
    assert found.keys() == expected.keys()
    for path, values in expected.items():
        assert found[path].dtype == values.dtype, path
        np.testing.assert_array_equal(found[path], values, err_msg=path)


def test_stored_dtypes_stay_except_float64(params):
    reader = CountingReader(params)
    expected = {path: leaf if leaf.dtype != np.float64 else np.float32(leaf) for path, leaf in flatten(params).items()}
    assert_equal(load_params(reader), expected)
    assert reader.reads == collections.Counter(all_slices(reader.parameters))


def test_unrolled_layers_are_those_of_the_stacked_parameters(params):
    expected = {path: leaf.astype(jnp.bfloat16) for path, leaf in flatten(unstack_layers(params)).items()}
    assert_equal(load_params(TensorsInMemory(params), jnp.bfloat16, unrolled=True), expected)


def test_transposed_matrices_keep_a_narrower_stored_dtype(params):
    expected = {}
    for path, leaf in flatten(unstack_layers(params)).items():
        narrow = leaf if leaf.dtype == jnp.bfloat16 else leaf.astype(np.float32)
        if is_row_major(path):
            expected[transposed_path(path)] = narrow.T
        else:
            expected[path] = np.float32(leaf)
    found = load_params(TensorsInMemory(params), jnp.float32, unrolled=True, transposed=True)
    assert_equal(found, expected)
    assert flatten(found)[transposed_path(MATRIX_OF_LAYER_1)].dtype == jnp.bfloat16


@pytest.mark.parametrize("transposed", [False, True])
def test_quantised_matrices_have_their_scales_beside_them(params, transposed):
    expected = {}
    for path, leaf in flatten(unstack_layers(params)).items():
        values, name = np.float32(leaf), path
        if is_quantized(path):
            values, expected[scale_path(path)] = quantize(values)
        if transposed and is_row_major(path):
            values, name = values.T, transposed_path(path)
        expected[name] = values
    reader = TensorsInMemory(params)
    assert_equal(load_params(reader, jnp.float32, unrolled=True, quantization="int8", transposed=transposed), expected)
    stacked = flatten(load_params(reader, jnp.float32, quantization="int8", transposed=transposed))
    for path in (transposed_path(MATRIX) if transposed else MATRIX, scale_path(MATRIX)):
        np.testing.assert_array_equal(stacked[path][1], expected[path.replace("/layers/", "/layers_1/")])


def test_only_selected_parameters_are_read_and_placed(params):
    reader = CountingReader(params)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0], memory_kind=jax.devices()[0].default_memory().kind)
    found = load_params(reader, select=lambda path: path == MATRIX, shardings={MATRIX: sharding})
    assert_equal(found, {MATRIX: flatten(params)[MATRIX]})
    assert flatten(found)[MATRIX].sharding == sharding
    assert set(reader.reads) == {TensorSlice(MATRIX, layer) for layer in range(SMALL.llama.depth)}


def test_a_tuple_of_layers_is_a_stacked_parameter(params):
    layers = unflatten({path: tuple(leaf) if path == MATRIX else leaf for path, leaf in flatten(params).items()})
    assert_equal(
        load_params(TensorsInMemory(layers), jnp.float32), {p: np.float32(x) for p, x in flatten(params).items()}
    )


def test_one_parameter_is_read_on_the_host(params):
    for path in (MATRIX, "llm/embed_tokens"):
        values = read_param(TensorsInMemory(params), path, np.float32)
        assert isinstance(values, np.ndarray) and values.dtype == np.float32
        np.testing.assert_array_equal(values, np.float32(flatten(params)[path]))
    large = {"llm": {"layers": {"kernel": np.array([[1.0], [1e39]])}}}
    with pytest.raises(UserError, match="llm/layers/kernel: holds values over 3.40282e"):
        read_param(TensorsInMemory(large), "llm/layers/kernel", np.float32)
