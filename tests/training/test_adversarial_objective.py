"""The terms of both networks and their gradients against LlamaGen's `VQLoss`, before and after the start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.models.execution import Execution
from janus_jax.models.params import bind, build
from janus_jax.ops.adversarial import adaptive_weight
from janus_jax.training.objectives.adversarial import AdversarialConfig, adversarial_terms
from janus_jax.weights.discriminator import to_llamagen
from tests.helpers.tokenizer_reference import LPIPS_NARROW, below, discriminator, load, narrow_lpips, nhwc

ARRAYS = load("losses")
CONFIG, PARAMS, RUNNING = discriminator(below(ARRAYS, "weights/discriminator."), 4, 3)
ADVERSARIAL = AdversarialConfig(
    discriminator=CONFIG,
    weight=0.5,
    start=int(ARRAYS["disc_start"]),
    loss="hinge",
    adaptive=False,
    axes=(),
    execution=Execution(),
)
KERNEL = jnp.asarray(ARRAYS["last/weight"].transpose(2, 3, 1, 0))


@jax.jit
def decode(kernel, bias):
    """The last layer of a decoder."""
    h = nhwc(ARRAYS["h"])
    return jax.lax.conv_general_dilated(h, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + bias


@pytest.fixture(scope="module")
def terms():
    pixels, reconstruction = nhwc(ARRAYS["x"]), decode(KERNEL, jnp.asarray(ARRAYS["last/bias"]))
    return jax.jit(lambda params, x, y: adversarial_terms(ADVERSARIAL, params, x, y))(PARAMS, pixels, reconstruction)


def close(actual, expected, name):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=3e-5 * np.abs(expected).max(), err_msg=name)


@pytest.mark.parametrize("case", ["hinge_l2", "adaptive_l2", "hinge_l1"])
def test_generator_gradient_equals_the_original(terms, case):
    pixels = nhwc(ARRAYS["x"])
    lpips = narrow_lpips()

    def reconstruction_terms(reconstruction):
        error = reconstruction - pixels
        pixel = jnp.mean(jnp.abs(error) if case == "hinge_l1" else jnp.square(error))
        return pixel + jnp.mean(bind(build(LPIPS_NARROW), lpips)(pixels, reconstruction).sum(0))

    @jax.jit
    def gradients(kernel, bias, slope):
        reconstruction, pull_back = jax.vjp(decode, kernel, bias)
        plain = jax.grad(reconstruction_terms)(reconstruction)
        norms = (jnp.linalg.norm(pull_back(x)[0].ravel()) for x in (plain, slope))
        factor = adaptive_weight(*norms) if case == "adaptive_l2" else jnp.ones(())
        return [(x, *pull_back(x)) for x in (plain, plain + 0.5 * factor * slope)], factor

    (before, after), factor = gradients(KERNEL, jnp.asarray(ARRAYS["last/bias"]), terms.reconstruction_slope)
    for step, (image, kernel, bias) in ((99, before), (100, after), (101, after)):
        if f"{case}/step{step}/generator" not in ARRAYS:
            continue
        expected = below(ARRAYS, f"{case}/step{step}/")
        close(kernel.transpose(3, 2, 0, 1), expected["grad_last_weight"], f"step {step}: last weight")
        close(bias, expected["grad_last_bias"], f"step {step}: last bias")
        if "grad_x_hat" in expected:
            close(image.transpose(0, 3, 1, 2), expected["grad_x_hat"], f"step {step}: reconstruction")
        if "adaptive_weight" in expected:
            assert float(factor) == pytest.approx(float(expected["adaptive_weight"]), rel=1e-5)
        assert float(terms.generator) == pytest.approx(float(expected["adv"]), rel=1e-5)


def test_discriminator_loss_and_gradient_equal_the_original(terms):
    expected = below(ARRAYS, "hinge_l2/step100/")
    loss = terms.metrics["loss/discriminator"][0]
    assert 0.5 * float(loss) == pytest.approx(float(expected["discriminator"]), rel=1e-5)
    gradients = to_llamagen(terms.discriminator_grads, {}, CONFIG)
    scale = max(np.abs(value).max() for value in gradients.values())
    for name, value in below(expected, "discriminator_grad/").items():
        np.testing.assert_allclose(0.5 * gradients[name], value, rtol=0, atol=3e-5 * scale, err_msg=name)
