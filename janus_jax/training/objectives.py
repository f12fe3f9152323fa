"""What is minimised: a pure function (params, batch) -> (loss, metrics) per kind of model.

A metric is a pair (sum, weight), both summed over the global batch, so that means over several steps are exact.
Letters: B rows, L tokens per row, I and G image slots per row, N codes per image, T = B * L.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from janus_jax.batch import ImageBatch, Modality, PackedBatch
from janus_jax.errors import UserError
from janus_jax.models.config import Execution, JanusConfig, ModelConfig, VQConfig
from janus_jax.models.parameters import Params, bind, build
from janus_jax.ops.losses import chunked_cross_entropy, vq_loss
from janus_jax.ops.placement import place_in_order, segments_with

Metrics = dict[str, tuple[jax.Array, jax.Array]]
LossFn = Callable[[Params, Any], tuple[jax.Array, Metrics]]


def make_loss(model_config: ModelConfig, execution: Execution, loss: ConfigDict) -> LossFn:
    """The objective of an architecture."""
    if isinstance(model_config, JanusConfig):
        return janus_loss(model_config, execution, loss)
    assert isinstance(model_config, VQConfig)
    return tokenizer_loss(model_config, execution, loss)


def janus_loss(config: JanusConfig, execution: Execution, loss: ConfigDict) -> LossFn:
    """Next-token cross-entropy: text head on text targets, image head on image codes, equal weights (Janus, 3.3).

    `loss.normalization`: "tokens" divides the sum over both heads by the number of supervised tokens; "tasks" adds
    the two heads' means. The papers do not say which.
    """
    if loss.normalization not in ("tokens", "tasks"):
        raise UserError(f"loss.normalization={loss.normalization!r} is neither 'tokens' nor 'tasks'")
    if loss.chunk_size < 1:
        raise UserError(f"loss.chunk_size={loss.chunk_size}, expected at least 1")
    model = build(config, execution)
    tokenizer = build(config.vq, Execution(dtype=jnp.float32))  # rounding would choose other codes

    def loss_fn(params: Params, batch: PackedBatch) -> tuple[jax.Array, Metrics]:
        apply = bind(model, params)
        batch = with_codes(batch, lambda pixels: bind(tokenizer, params["vq"])(pixels, method="encode"))
        x = apply(batch.tokens, batch.modality, normalize(batch.und_pixels, execution.dtype), method="embed")
        hidden, _ = apply(x, batch.positions, batch.segment_ids)
        flat = hidden.reshape(-1, hidden.shape[-1])  # [T, D]

        # Text of samples with an understanding image, text of the others.
        has_image = segments_with(batch.segment_ids, batch.modality == Modality.UNDERSTANDING_IMAGE)
        text_weights = jnp.stack([batch.text_weights * has_image, batch.text_weights * ~has_image])
        text = chunked_cross_entropy(
            lambda h: apply(h, method="text_logits"),
            flat,
            jnp.where(batch.text_weights > 0, batch.targets, 0).reshape(-1),
            text_weights.reshape(2, -1),
            loss.chunk_size,
        )
        image = chunked_cross_entropy(
            lambda h: apply(h, method="image_logits"),
            flat,
            jnp.where(batch.image_weights > 0, batch.targets, 0).reshape(-1),
            batch.image_weights.reshape(1, -1),
            loss.chunk_size,
        )
        text_sum, image_sum = text.loss.sum(), image.loss.sum()
        text_weight, image_weight = text.weight.sum(), image.weight.sum()
        if loss.normalization == "tokens":
            total = (text_sum + image_sum) / jnp.maximum(text_weight + image_weight, 1)
        else:
            total = text_sum / jnp.maximum(text_weight, 1) + image_sum / jnp.maximum(image_weight, 1)
        one = jnp.ones(())
        images = jnp.sum(batch.modality == Modality.UNDERSTANDING_IMAGE) / config.siglip.num_tokens
        images += jnp.sum(batch.modality == Modality.GENERATION_IMAGE) / config.image_tokens
        metrics = {
            "loss": (total, one),
            "loss/understand": (text.loss[0], text.weight[0]),
            "loss/text": (text.loss[1], text.weight[1]),
            "loss/generate": (image.loss[0], image.weight[0]),
            "accuracy/understand": (text.correct[0], text.weight[0]),
            "accuracy/generate": (image.correct[0], image.weight[0]),
            "images": (images, one),
            "tokens": (jnp.sum(batch.modality != Modality.PADDING), one),
            "fill": (jnp.mean(batch.modality != Modality.PADDING), one),
        }
        return total, metrics

    return loss_fn


def tokenizer_loss(config: VQConfig, execution: Execution, loss: ConfigDict) -> LossFn:
    """LlamaGen's VQ loss: pixel L2 + codebook + commitment. The perceptual and adversarial terms are yet to come."""
    for term in ("perceptual_weight", "adversarial_weight"):
        if loss[term]:
            raise UserError(f"loss.{term}={loss[term]}: this term does not exist yet, expected 0")
    model = build(config, execution)

    def loss_fn(params: Params, batch: ImageBatch) -> tuple[jax.Array, Metrics]:
        pixels = normalize(batch.pixels, execution.dtype)
        output = bind(model, params)(pixels)
        pixel_term = jnp.mean(jnp.square(output.reconstruction.astype(jnp.float32) - pixels))
        codebook_term, commitment_term = vq_loss(output.latents, output.quantized, config.commitment)
        total = loss.pixel_weight * pixel_term + codebook_term + commitment_term
        one = jnp.ones(())
        used = jnp.zeros(config.num_codes, bool).at[output.codes.reshape(-1)].set(True)
        metrics = {
            "loss": (total, one),
            "loss/pixel": (pixel_term, one),
            "loss/codebook": (codebook_term, one),
            "loss/commitment": (commitment_term, one),
            "codes_used": (jnp.sum(used).astype(jnp.float32), one),
            "images": (jnp.asarray(pixels.shape[0], jnp.float32), one),
        }
        return total, metrics

    return loss_fn


def normalize(pixels: jax.Array, dtype: Any) -> jax.Array:
    """uint8 -> [-1, 1]."""
    return (pixels.astype(jnp.float32) / 127.5 - 1).astype(dtype)


def with_codes(batch: PackedBatch, encode: Callable[[jax.Array], jax.Array]) -> PackedBatch:
    """Puts the VQ codes of `gen_pixels` into `tokens` and `targets`; a batch with precomputed codes stays as it is."""
    if batch.gen_pixels is None:
        return batch
    rows, images = batch.gen_pixels.shape[:2]
    pixels = normalize(batch.gen_pixels.reshape(rows * images, *batch.gen_pixels.shape[2:]), jnp.float32)
    codes = jax.lax.stop_gradient(encode(pixels)).reshape(rows, -1)  # [B, G * N]
    tokens = place_in_order(batch.tokens, batch.modality == Modality.GENERATION_IMAGE, codes)
    targets = jnp.where(batch.image_weights > 0, jnp.roll(tokens, -1, axis=1), batch.targets)
    return batch._replace(tokens=tokens, targets=targets, gen_pixels=None)
