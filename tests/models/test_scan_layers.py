import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.models.execution import Execution
from janus_jax.models.llama import Llama, init_cache
from janus_jax.models.params import flatten, unflatten
from janus_jax.models.scan_layers import is_stacked, stack_layers, unstack_layers, unstacked_path
from janus_jax.models.siglip import Siglip
from janus_jax.weights.weight_layout import transposed_path
from tests.helpers.small_models import SMALL, random_array, random_params

LLAMA = dataclasses.replace(SMALL.llama, depth=2)
PARAMS = random_params(dataclasses.replace(SMALL, llama=LLAMA))
X = random_array(2, 5, LLAMA.width)
POSITIONS, SEGMENT_IDS = jnp.tile(jnp.arange(5), (2, 1)), jnp.ones((2, 5), jnp.int32)


def llama_loss(execution):
    model = Llama(LLAMA, execution)
    return lambda params: jnp.sum(jnp.square(model.apply({"params": params}, X, POSITIONS, SEGMENT_IDS)[0]) * X)


@functools.cache
def value_and_gradients(scan_layers, remat):
    """The loss, and its gradients as a flat dict in the unrolled layout."""
    loss = llama_loss(Execution(scan_layers=scan_layers, remat=remat))
    params = PARAMS["llm"] if scan_layers else unstack_layers(PARAMS["llm"])
    value, gradients = jax.jit(jax.value_and_grad(loss))(params)
    return float(value), flatten(unstack_layers(gradients))


@pytest.mark.parametrize(("scan_layers", "remat"), [(True, "full"), (True, "dots"), (False, "full")])
def test_unrolling_and_remat_change_neither_value_nor_gradients(scan_layers, remat):
    expected_value, expected = value_and_gradients(scan_layers=True, remat="none")
    value, got = value_and_gradients(scan_layers, remat)
    assert value == pytest.approx(expected_value, rel=1e-5)
    assert got.keys() == expected.keys()
    for path, gradient in expected.items():
        largest = np.abs(gradient).max()
        assert largest > 1e-3 or path in ("embed_tokens", "lm_head/kernel")
        np.testing.assert_allclose(got[path], gradient, rtol=0, atol=1e-5 * (1 + largest), err_msg=path)


def test_unrolled_siglip_equals_scanned_siglip():
    pixels = random_array(2, 16, 16, 3)

    def features(scan_layers, params):
        siglip = Siglip(SMALL.siglip, Execution(scan_layers=scan_layers))
        return jax.jit(siglip.apply)({"params": params}, pixels)

    scanned = features(True, PARAMS["siglip"])
    np.testing.assert_allclose(features(False, unstack_layers(PARAMS["siglip"])), scanned, rtol=0, atol=1e-5)


def transposed(params):
    """The same parameters with matrices in the layout of `weight_layout`."""
    flat = flatten(params)
    kernels = {path: leaf for path, leaf in flat.items() if path.endswith("/kernel")}
    matrices = {transposed_path(path): leaf.swapaxes(-1, -2) for path, leaf in kernels.items()}
    return unflatten({path: leaf for path, leaf in flat.items() if path not in kernels} | matrices)


def test_layers_in_place_equal_unrolled_ones_with_a_cache_and_a_prefix():
    """A prefix for both rows, five tokens at once, then one."""
    slots, before = 64, 3

    def run(execution, params):
        model = Llama(LLAMA, execution)
        prefix = init_cache(LLAMA, execution, 1, before)
        shape = (LLAMA.depth, 1, LLAMA.num_kv_heads, before, LLAMA.head_dim)
        k, v = (jnp.float32(np.random.default_rng(seed).normal(size=shape)) for seed in (1, 2))
        if not execution.scan_layers:
            k, v = tuple(k), tuple(v)
        prefix = prefix._replace(k=k, v=v, segment_ids=jnp.ones((1, before), jnp.int32))

        @jax.jit
        def both(params):
            cache = init_cache(LLAMA, execution, 2, slots)
            first, cache = model.apply({"params": params}, X, before + POSITIONS, SEGMENT_IDS, cache, prefix)
            places = jnp.full((2, 1), before + 5), jnp.ones((2, 1), jnp.int32)
            second, cache = model.apply({"params": params}, X[:, :1], *places, cache, prefix)
            return first, second, jnp.stack(cache.k), jnp.stack(cache.v)

        return both(params)

    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(leaf.dtype), PARAMS["llm"])
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16) if leaf.ndim > 2 else leaf, transposed(params))
    common = dict(matmul_backend="gemv", cache_dtype=jnp.float32)
    expected = run(Execution(scan_layers=False, **common), transposed(unstack_layers(params)))
    in_place = Execution(scan_layers=True, scan_in_place=True, **common)
    for stacks in (narrow, params):  # the latter are sliced
        for got, wanted in zip(run(in_place, stacks), expected, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * (1 + np.abs(wanted).max()))


def test_unstacking_slices_layers_and_keeps_the_rest():
    params = {"norm": jnp.ones(2), "layers": {"a": {"kernel": jnp.arange(6.0).reshape(3, 2)}, "b": jnp.arange(3.0)}}
    unstacked = unstack_layers({"decoder": params})["decoder"]
    assert sorted(unstacked) == ["layers_0", "layers_1", "layers_2", "norm"]
    assert unstacked["layers_1"]["a"]["kernel"].tolist() == [2.0, 3.0]
    assert float(unstacked["layers_2"]["b"]) == 2.0


def test_stacking_undoes_unstacking_whatever_the_order_of_the_layers():
    stacked = {"decoder": {"norm": jnp.ones(2), "layers": {"a": jnp.arange(24.0).reshape(12, 2)}}}
    unstacked = unstack_layers(stacked)
    shuffled = {"decoder": dict(sorted(unstacked["decoder"].items()))}
    assert list(shuffled["decoder"])[1] == "layers_1" and list(shuffled["decoder"])[2] == "layers_10"
    for params in (unstacked, shuffled, stacked):
        again = flatten(stack_layers(params))
        assert again.keys() == flatten(stacked).keys()
        np.testing.assert_array_equal(again["decoder/layers/a"], stacked["decoder"]["layers"]["a"])
    assert {unstacked_path("decoder/layers/a", layer) for layer in range(12)} < flatten(unstacked).keys()
    assert [path for path in flatten(stacked) if is_stacked(path)] == ["decoder/layers/a"]
    assert not any(map(is_stacked, flatten(unstacked)))


def test_remat_policies_differ_in_how_many_matrix_products_are_repeated():
    def matrix_products(policy):
        return str(jax.make_jaxpr(jax.grad(llama_loss(Execution(remat=policy))))(PARAMS["llm"])).count("dot_general")

    assert matrix_products("none") < matrix_products("dots") < matrix_products("full")


def test_unknown_remat_policy_is_an_error_with_the_known_names():
    with pytest.raises(ValueError, match=r"remat='sometimes'.*dots.*full.*none"):
        jax.eval_shape(llama_loss(Execution(remat="sometimes")), PARAMS["llm"])
