"""The loss of the image tokenizer (VQ-16).

Letters: B images.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from janus_jax.batches import ImageBatch
from janus_jax.errors import UserError
from janus_jax.models.config import VQConfig
from janus_jax.models.execution import Execution
from janus_jax.models.params import Params, bind, build
from janus_jax.models.vq import VQOutput
from janus_jax.ops.losses import vq_loss
from janus_jax.ops.pixels import normalize
from janus_jax.training.objectives.base import Denominators, Metrics, Objective


def vq_objective(config: VQConfig, execution: Execution, loss: ConfigDict) -> Objective:
    """LlamaGen's VQ loss: pixel L2 + codebook + commitment. Its perceptual and adversarial terms do not exist yet."""
    for term in ("perceptual_weight", "adversarial_weight"):
        if loss[term]:
            raise UserError(f"loss.{term}={loss[term]}: this term does not exist yet, expected 0")
    model = build(config, execution)

    def denominators(batch: ImageBatch) -> Denominators:
        if batch.weights is None:
            return {"images": jnp.asarray(batch.pixels.shape[0], jnp.float32)}
        return {"images": jnp.sum(batch.weights)}

    def terms(output: VQOutput, pixels: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The pixel, codebook and commitment term, each the mean over all images given."""
        pixel_term = jnp.mean(jnp.square(output.reconstruction.astype(jnp.float32) - pixels))
        return pixel_term, *vq_loss(output.latents, output.quantized, config.commitment)

    def share(params: Params, batch: ImageBatch, denominators: Denominators) -> tuple[jax.Array, Metrics]:
        images = batch.pixels.shape[0] if batch.weights is None else jnp.sum(batch.weights)
        part = images / denominators["images"]
        pixels = normalize(batch.pixels, execution.dtype)
        output = bind(model, params)(pixels)
        if batch.weights is None:
            pixel_term, codebook_term, commitment_term = terms(output, pixels)
        else:
            weights = batch.weights / jnp.maximum(images, 1)  # [B]
            pixel_term, codebook_term, commitment_term = (weights @ term for term in jax.vmap(terms)(output, pixels))
        total = part * (loss.pixel_weight * pixel_term + codebook_term + commitment_term)
        used = jnp.zeros(config.num_codes, bool).at[output.codes.reshape(-1)].set(True)
        metrics = {
            "loss": (total, part),
            "loss/pixel": (part * pixel_term, part),
            "loss/codebook": (part * codebook_term, part),
            "loss/commitment": (part * commitment_term, part),
            "codes_used": (part * jnp.sum(used).astype(jnp.float32), part),  # by the images of one device
            "images": (jnp.asarray(pixels.shape[0], jnp.float32), part),
        }
        return total, metrics

    return Objective(denominators, share)
