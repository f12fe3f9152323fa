"""LPIPS against the original on a narrow and on the whole VGG-16, with weights that follow from their names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.models.params import abstract_params, bind, build, count
from janus_jax.models.presets import LPIPS_VGG
from tests.helpers.tokenizer_reference import (
    LPIPS_NARROW,
    load,
    lpips_params,
    narrow_lpips,
    nhwc,
    rule_value,
    shapes_of,
)


def run(config, params, a, b):
    """Distances per layer, and the gradient of the mean distance with respect to b."""

    @jax.jit
    def run(params, a, b):
        distances, pull_back = jax.vjp(lambda b: bind(build(config), params)(a, b), b)
        return distances, pull_back(jnp.full_like(distances, 1 / len(a)))[0]

    return jax.tree.map(np.asarray, run(params, a, b))


def test_distance_and_gradient_equal_the_original():
    arrays = load("lpips_narrow")
    distances, gradient = run(LPIPS_NARROW, narrow_lpips(), nhwc(arrays["a"]), nhwc(arrays["b"]))
    np.testing.assert_allclose(distances, arrays["per_layer"], rtol=0, atol=3e-5 * arrays["per_layer"].max())
    np.testing.assert_allclose(distances.sum(0), arrays["value"], rtol=2e-6)
    scale = np.abs(arrays["grad_b"]).max()
    np.testing.assert_allclose(gradient.transpose(0, 3, 1, 2), arrays["grad_b"], rtol=0, atol=2e-5 * scale)


@pytest.mark.slow
def test_distance_on_the_whole_vgg_equals_the_original():
    arrays = load("lpips_full")
    tensors = {name: rule_value(f"lpips_full/{name}", shape) for name, shape in shapes_of(arrays).items()}
    for i, value in enumerate(tensors.values()):
        np.testing.assert_array_equal(np.resize(value.reshape(-1)[:4], 4), arrays["weights/first4"][i])
    params = lpips_params(tensors, LPIPS_VGG)
    assert count(params) == 14_714_688 + 64 + 128 + 256 + 512 + 512
    distances, gradient = run(LPIPS_VGG, params, nhwc(arrays["a"]), nhwc(arrays["b"]))
    np.testing.assert_allclose(distances.sum(0), arrays["value"], rtol=3e-5)
    np.testing.assert_allclose(distances, arrays["per_layer"], rtol=1e-4)
    scale = np.abs(arrays["grad_b"]).max()  # where a ReLU or a maximum flips by rounding, a gradient changes
    np.testing.assert_allclose(gradient.transpose(0, 3, 1, 2), arrays["grad_b"], rtol=0, atol=1e-3 * scale)


@pytest.mark.parametrize("kind", ["the same image", "features that are all zero"])
def test_the_gradient_is_finite(kind):
    """The original's gradient is not a number where all channels are zero."""
    params, images = narrow_lpips(), nhwc(load("lpips_narrow")["a"])
    other = images
    if kind != "the same image":
        # Each bias is so low that the ReLU of the second image leaves nothing.
        params = jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf - 2 if jax.tree_util.keystr(path).endswith("['bias']") else leaf, params
        )
        other = jnp.zeros_like(images)
    distances, gradient = run(LPIPS_NARROW, params, images, other)
    assert np.isfinite(gradient).all() and np.isfinite(distances).all()
    if kind == "the same image":
        assert not distances.any() and not gradient.any()
    else:
        assert (distances > 0).any()


def test_sizes_are_those_of_vgg_16():
    assert count(abstract_params(LPIPS_VGG)["trunk"]) == 14_714_688
