import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.ops.adversarial import DISCRIMINATOR_LOSSES, accuracy, adaptive_weight, generator_loss
from tests.helpers.tokenizer_reference import load

ARRAYS = load("losses")
REAL, FAKE = ARRAYS["logits_real"][:, 0], ARRAYS["logits_fake"][:, 0]


@pytest.mark.parametrize("name", ["hinge", "vanilla"])
def test_discriminator_losses_and_gradients_equal_the_original(name):
    loss, gradients = jax.jit(jax.value_and_grad(DISCRIMINATOR_LOSSES[name], argnums=(0, 1)))(REAL, FAKE)
    assert float(loss) == pytest.approx(float(ARRAYS[f"d_loss/{name}"]), rel=1e-6)
    for gradient, half in zip(gradients, ("real", "fake"), strict=True):
        expected = ARRAYS[f"d_loss/{name}/grad_{half}"][:, 0]
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=3e-8)


def test_generator_loss_and_gradient_equal_the_original():
    loss, gradient = jax.jit(jax.value_and_grad(generator_loss))(FAKE)
    assert float(loss) == pytest.approx(float(ARRAYS["g_loss/hinge"]), rel=1e-6)
    np.testing.assert_allclose(gradient, ARRAYS["g_loss/hinge/grad_fake"][:, 0], rtol=0, atol=3e-8)


@pytest.mark.parametrize(("norms", "expected"), [((3.0, 2.0), 3 / 2.0001), ((1.0, 0.0), 1e4), ((0.0, 1.0), 0.0)])
def test_adaptive_weight_is_a_bounded_ratio_without_gradient(norms, expected):
    value, gradient = jax.value_and_grad(lambda a, b: adaptive_weight(a, b), argnums=(0, 1))(*norms)
    assert float(value) == pytest.approx(expected, rel=1e-6)
    assert gradient == (0.0, 0.0)


def test_accuracy_counts_right_signs_of_both_halves():
    real, fake = jnp.array([1.0, 2, -1, 0]), jnp.array([-1.0, 3, -2, -4])
    assert float(accuracy(real, fake)) == (0.5 + 0.75) / 2
