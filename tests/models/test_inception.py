"""Inception against features that pytorch-fid's network computed with the same made-up weights."""

import jax
import numpy as np
import PIL.Image
import pytest

from janus_jax.evaluation.resize import inception_pixels
from janus_jax.models.params import abstract_params, bind, build, count
from tests.helpers.flow_weights import from_foreign
from tests.helpers.golden_evaluation import GOLDEN
from tests.helpers.metric_networks import INCEPTION, SMALL_INCEPTION, inception_tensors

EXPECTED = np.load(GOLDEN / "inception/expected.npz")


@pytest.fixture(scope="module")
def network():
    return jax.jit(bind(build(INCEPTION), from_foreign(inception_tensors(), INCEPTION, "inception")))


def run(network, mode, numbers):
    images = [PIL.Image.open(GOLDEN / f"inception/{i}.png").convert("RGB") for i in numbers]
    return network(np.stack([inception_pixels(image, mode) for image in images]))


def test_features_and_logits_equal_the_reference(network):
    output = run(network, "clean", [1, 2, 6])
    np.testing.assert_allclose(output.features, EXPECTED["clean_2048"][[1, 2, 6]], rtol=0, atol=1e-3)
    np.testing.assert_allclose(output.logits, EXPECTED["clean_logits_unbiased"][[1, 2, 6]], rtol=0, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["clean", "pytorch_fid"])
def test_features_of_all_images_equal_the_reference(network, mode):
    output = run(network, mode, range(7))
    np.testing.assert_allclose(output.features, EXPECTED[f"{mode}_2048"], rtol=0, atol=1e-3)


def test_the_published_network_has_its_number_of_parameters():
    assert count(abstract_params(INCEPTION)) == 23_885_392 - 1008  # without the bias of the classifier


@pytest.mark.parametrize("shape", [(1, 74, 80, 3), (1, 80, 80, 1), (80, 80, 3)])
def test_pixels_that_do_not_fit_are_an_error(shape):
    model = build(SMALL_INCEPTION)
    with pytest.raises(ValueError, match="Inception got pixels"):
        jax.eval_shape(lambda x: model.init(jax.random.key(0), x), np.zeros(shape, np.float32))
