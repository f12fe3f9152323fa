"""Losses between a generator and a discriminator (LlamaGen, section 2.1; `VQLoss` of its code), in float32.

The logits of the discriminator are high where it takes a patch for real.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Logits = Float[Array, "*S"]


def hinge_loss(real: Logits, fake: Logits) -> Float[Array, ""]:
    """Mean of both halves, max(0, 1 - real) and max(0, 1 + fake): what the discriminator minimises."""
    real, fake = real.astype(jnp.float32), fake.astype(jnp.float32)
    return 0.5 * (jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake)))


def logistic_loss(real: Logits, fake: Logits) -> Float[Array, ""]:
    """Mean of both halves of the binary cross-entropy (Goodfellow et al., 2014): LlamaGen calls it "vanilla".

    LlamaGen's third choice, "non-saturating", swaps the arguments of the cross-entropy and is left out.
    """
    real, fake = real.astype(jnp.float32), fake.astype(jnp.float32)
    return 0.5 * (jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(fake)))


DISCRIMINATOR_LOSSES: dict[str, Callable[[Array, Array], Array]] = {"hinge": hinge_loss, "vanilla": logistic_loss}


def generator_loss(fake: Logits) -> Float[Array, ""]:
    """Minus the mean logit of generated images: what the generator minimises."""
    return -jnp.mean(fake.astype(jnp.float32))


def adaptive_weight(reconstruction_norm: Float[Array, ""], adversarial_norm: Float[Array, ""]) -> Float[Array, ""]:
    """Factor that gives the adversarial term the gradient norm of the reconstruction terms (Esser et al., 2021).

    Args:
        reconstruction_norm: norm of the gradient of the pixel and perceptual terms in the last layer of the decoder.
        adversarial_norm: the same of the adversarial term.
    """
    return jax.lax.stop_gradient(jnp.clip(reconstruction_norm / (adversarial_norm + 1e-4), 0.0, 1e4))


def accuracy(real: Logits, fake: Logits) -> Float[Array, ""]:
    """Share of the patches that the discriminator judges right: positive logits if real, negative if generated."""
    return 0.5 * (jnp.mean(real > 0, dtype=jnp.float32) + jnp.mean(fake < 0, dtype=jnp.float32))
