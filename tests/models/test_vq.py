from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.models.params import build
from janus_jax.models.presets import VQ_16
from tests.helpers.small_models import SMALL_VQ, random_array, random_params
from tests.helpers.torch_weights import from_original_vq, noise, rule_weights

REFERENCE = Path(__file__).parents[1] / "data_files" / "vq_nonunit_codebook.npz"
PARAMS = random_params(SMALL_VQ)


def vq(config=SMALL_VQ, params=PARAMS):
    model = build(config)
    return lambda *args, method="__call__": model.apply({"params": params}, *args, method=method)


@pytest.fixture(scope="module")
def original():
    """Outputs of the original full-size VQ-16, and its weights as our parameters."""
    reference = dict(np.load(REFERENCE))
    shapes = [tuple(map(int, str(shape).split("x"))) for shape in reference["weights/shape"]]
    state = {}
    for i, (key, value) in enumerate(rule_weights(map(str, reference["weights/key"]), shapes)):
        np.testing.assert_array_equal(np.resize(value.reshape(-1)[:4], 4), reference["weights/first4"][i])
        state[key] = value
    return reference, from_original_vq(state, VQ_16)


def test_ids_with_a_nonunit_codebook_equal_the_original(original):
    reference, params = original
    pixels = np.clip(0.5 * np.float32(noise("vq.square", (2, 3, 64, 64))), -1, 1)
    np.testing.assert_array_equal(pixels.reshape(-1)[:4], reference["square/pixels_first4"])

    @jax.jit
    def run(params, x):  # with parameters as arguments, since 290 MB of constants would take long to compile
        model = vq(VQ_16, params)
        return model(x, method="latents"), model(x, method="encode")

    latents, ids = run(params, jnp.asarray(pixels.transpose(0, 2, 3, 1)))
    np.testing.assert_allclose(latents, reference["square/latent"].transpose(0, 2, 3, 1), rtol=0, atol=2e-5)
    np.testing.assert_array_equal(ids, reference["square/ids"])
    assert (np.asarray(ids) == reference["square/ids_wrong_unnormalised"]).mean() < 0.5


def test_pixels_of_a_grid_that_is_not_square_equal_the_original(original):
    reference, params = original
    ids = jnp.asarray(reference["wide/ids"])
    pixels = jax.jit(lambda params, ids: vq(VQ_16, params)(ids, (3, 6), method="decode"))(params, ids)
    np.testing.assert_allclose(pixels, reference["wide/decoded"].transpose(0, 2, 3, 1), rtol=0, atol=1e-4)


def test_codes_are_chosen_with_all_bits_of_float32_on_accelerators_too():
    """An accelerator computes products in fewer bits unless the program asks for more. A CPU shows only the program."""
    pixels = random_array(1, 8, 8, 3)
    products = [
        equation
        for equation in jax.make_jaxpr(lambda x: vq()(x, method="encode"))(pixels).eqns
        if equation.primitive.name in ("conv_general_dilated", "dot_general")
    ]
    assert len(products) > 10
    assert {equation.params["precision"] for equation in products} == {(jax.lax.Precision.HIGHEST,) * 2}


def test_training_output_is_consistent_with_encode_and_decode():
    pixels = random_array(2, 8, 8, 3).clip(-1, 1)

    @jax.jit
    def run(pixels):
        output, codes = vq()(pixels), vq()(pixels, method="encode")
        return output, vq()(pixels, method="latents"), codes, vq()(codes, method="decode")

    output, raw, codes, decoded = jax.tree.map(np.asarray, run(pixels))
    np.testing.assert_array_equal(output.codes, codes)
    np.testing.assert_allclose(output.reconstruction, decoded, rtol=0, atol=1e-5)
    np.testing.assert_allclose(output.latents, raw / np.linalg.norm(raw, axis=-1, keepdims=True), rtol=0, atol=1e-5)
    rows = np.asarray(PARAMS["codebook"])[codes].reshape(output.quantized.shape)
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    np.testing.assert_allclose(output.quantized, rows, rtol=0, atol=1e-6)


def test_pixel_loss_reaches_the_latents_straight_through_but_not_the_codebook():
    pixels, weights = random_array(1, 4, 4, 3), random_array(1, 4, 4, 3, seed=1)

    @jax.jit
    @jax.grad
    def gradient(part):
        return jnp.sum(vq(params=PARAMS | part)(pixels).reconstruction * weights)

    gradients = gradient({name: PARAMS[name] for name in ("codebook", "quant_conv")})
    assert (np.asarray(gradients["codebook"]) == 0).all()
    assert (np.abs(gradients["quant_conv"]["kernel"]) > 1e-5).all()


@pytest.mark.parametrize("shape", [(1, 9, 8, 3), (1, 8, 7, 3), (8, 8, 3)])
def test_wrong_pixel_shape_is_an_error_with_the_factor(shape):
    with pytest.raises(ValueError, match=r"VQ encoder got pixels .*divisible by 2"):
        jax.eval_shape(lambda x: vq()(x, method="encode"), random_array(*shape))


def test_any_size_divisible_by_the_factor_is_encoded():
    codes = jax.eval_shape(lambda x: vq()(x, method="encode"), random_array(2, 4, 10, 3))
    assert codes.shape == (2, 2 * 5) and codes.dtype == jnp.int32
