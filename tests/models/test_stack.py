import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import SMALL, random_array, random_params

from janus_jax.models.config import Execution
from janus_jax.models.llama import Llama
from janus_jax.models.parameters import flatten
from janus_jax.models.siglip import Siglip
from janus_jax.models.stack import REMAT_POLICIES, unstack_layers

PARAMS = random_params(SMALL)
X = random_array(2, 5, SMALL.llama.width)
POSITIONS, SEGMENT_IDS = jnp.tile(jnp.arange(5), (2, 1)), jnp.ones((2, 5), jnp.int32)


def llama_loss(execution):
    model = Llama(SMALL.llama, execution)
    return lambda params: jnp.sum(jnp.square(model.apply({"params": params}, X, POSITIONS, SEGMENT_IDS)[0]) * X)


def test_unrolled_llama_equals_scanned_llama_in_value_and_gradient():
    scanned = jax.jit(jax.value_and_grad(llama_loss(Execution())))(PARAMS["llm"])
    unrolled_loss = llama_loss(Execution(scan_layers=False))
    unrolled = jax.jit(jax.value_and_grad(unrolled_loss))(unstack_layers(PARAMS["llm"]))
    assert float(unrolled[0]) == pytest.approx(float(scanned[0]), rel=1e-5)
    expected, got = flatten(unstack_layers(scanned[1])), flatten(unrolled[1])
    assert got.keys() == expected.keys()
    for path, gradient in expected.items():
        np.testing.assert_allclose(got[path], gradient, rtol=0, atol=1e-5 * (1 + np.abs(gradient).max()), err_msg=path)


def test_unrolled_siglip_equals_scanned_siglip():
    pixels = random_array(2, 16, 16, 3)

    def features(scan_layers, params):
        return Siglip(SMALL.siglip, Execution(scan_layers=scan_layers)).apply({"params": params}, pixels)

    scanned = features(True, PARAMS["siglip"])
    np.testing.assert_allclose(features(False, unstack_layers(PARAMS["siglip"])), scanned, rtol=0, atol=1e-5)


def test_unstacking_slices_layers_and_keeps_the_rest():
    params = {"norm": jnp.ones(2), "layers": {"a": {"kernel": jnp.arange(6.0).reshape(3, 2)}, "b": jnp.arange(3.0)}}
    unstacked = unstack_layers({"decoder": params})["decoder"]
    assert sorted(unstacked) == ["layers_0", "layers_1", "layers_2", "norm"]
    assert unstacked["layers_1"]["a"]["kernel"].tolist() == [2.0, 3.0]
    assert float(unstacked["layers_2"]["b"]) == 2.0


@pytest.mark.parametrize("scan_layers", [True, False])
def test_remat_policies_change_no_gradient(scan_layers):
    params = PARAMS["llm"] if scan_layers else unstack_layers(PARAMS["llm"])
    gradients = {
        policy: flatten(jax.jit(jax.grad(llama_loss(Execution(remat=policy, scan_layers=scan_layers))))(params))
        for policy in REMAT_POLICIES
    }
    for policy in ("full", "dots"):
        for path, expected in gradients["none"].items():
            tolerance = 1e-5 * (1 + np.abs(expected).max())
            np.testing.assert_allclose(gradients[policy][path], expected, rtol=0, atol=tolerance, err_msg=path)


def test_remat_policies_differ_in_how_many_matrix_products_are_repeated():
    def matrix_products(policy):
        return str(jax.make_jaxpr(jax.grad(llama_loss(Execution(remat=policy))))(PARAMS["llm"])).count("dot_general")

    assert matrix_products("none") < matrix_products("dots") < matrix_products("full")


def test_unknown_remat_policy_is_an_error_with_the_known_names():
    with pytest.raises(ValueError, match=r"remat='sometimes'.*dots.*full.*none"):
        jax.eval_shape(llama_loss(Execution(remat="sometimes")), PARAMS["llm"])
