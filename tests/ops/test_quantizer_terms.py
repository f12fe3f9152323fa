"""The terms of the quantiser and their gradients against LlamaGen's `VectorQuantizer`, on two batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.ops.codebook import l2_normalize, lookup_codes, nearest_codes, straight_through
from janus_jax.ops.losses import code_entropy_loss, vq_loss
from tests.helpers.tokenizer_reference import load, nhwc

ARRAYS = load("quantizer")
RATIO, TEMPERATURE = float(ARRAYS["entropy_ratio"]), float(ARRAYS["temperature"])


def term(name, batch):
    """A term of the loss as a function of the encoder's output [B, h, w, Q] and the codebook."""

    def value(z, codebook):
        latents = l2_normalize(z)
        quantized = lookup_codes(nearest_codes(latents, codebook), codebook)
        if name == "decoder":
            return jnp.sum(straight_through(latents, quantized) * nhwc(ARRAYS[f"cotangent{batch}"]))
        if name == "entropy":
            return RATIO * code_entropy_loss(z.reshape(-1, z.shape[-1]), codebook, TEMPERATURE)
        return dict(zip(("codebook", "commitment"), vq_loss(latents, quantized, 0.25), strict=True))[name]

    return value


@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize("name", ["codebook", "commitment", "entropy", "decoder"])
def test_terms_and_gradients_equal_the_original(name, batch):
    z, codebook = nhwc(ARRAYS[f"z{batch}"]), jnp.asarray(ARRAYS["codebook"])
    np.testing.assert_array_equal(nearest_codes(z, codebook).ravel(), ARRAYS[f"{batch}/ids"])
    value, gradients = jax.jit(jax.value_and_grad(term(name, batch), argnums=(0, 1)))(z, codebook)
    assert float(value) == pytest.approx(float(ARRAYS[f"{batch}/{name}"]), rel=3e-6, abs=1e-6)
    for gradient, kind in zip((gradients[0].transpose(0, 3, 1, 2), gradients[1]), ("z", "codebook"), strict=True):
        expected = ARRAYS[f"{batch}/grad_{kind}/{name}"]
        tolerance = 3e-5 * max(np.abs(expected).max(), 1e-3)
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=tolerance, err_msg=kind)
