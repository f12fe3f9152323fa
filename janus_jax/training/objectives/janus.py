"""What is minimised: a pure function (params, batch) -> (loss, metrics) per kind of model.

Letters: B rows, L tokens per row, I and G image slots per row, N codes per image, T = B * L.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from janus_jax.batches import ImageBatch, Modality, PackedBatch
from janus_jax.data.records import TASKS
from janus_jax.errors import UserError
from janus_jax.models.config import Execution, JanusConfig, JanusFlowConfig, ModelConfig, VQConfig
from janus_jax.models.janus import janus_heads
from janus_jax.models.params import Params, bind, build
from janus_jax.ops.losses import vq_loss
from janus_jax.ops.scatter_tokens import place_in_order
from janus_jax.training.objectives.base import (
    Denominators,
    Metrics,
    Objective,
    check_normalization,
    head_loss,
    normalize,
    row_metrics,
    text_loss,
)
from janus_jax.training.objectives.janusflow import janusflow_loss


def make_loss(
    model_config: ModelConfig, execution: Execution, loss: ConfigDict, tasks: Sequence[str] = TASKS
) -> Objective:
    """The objective of an architecture; without a task, the parts of the model that only it needs are left out."""
    if isinstance(model_config, JanusConfig):
        return janus_loss(model_config, execution, loss, tasks)
    if isinstance(model_config, JanusFlowConfig):
        return janusflow_loss(model_config, execution, loss, tasks)
    assert isinstance(model_config, VQConfig)
    return tokenizer_loss(model_config, execution, loss)


def janus_loss(config: JanusConfig, execution: Execution, loss: ConfigDict, tasks: Sequence[str] = TASKS) -> Objective:
    """Next-token cross-entropy: text head on text targets, image head on image codes, equal weights (Janus, 3.3).

    `loss.normalization`: "tokens" divides the sum over both heads by the number of supervised tokens; "tasks" adds
    the two heads' means. The papers do not say which.
    """
    check_normalization(loss)
    model, heads = build(config, execution), janus_heads(config, execution)
    tokenizer = build(config.vq, Execution(dtype=jnp.float32))  # rounding would choose other codes
    draws, sees = "generate" in tasks, "understand" in tasks

    def denominators(batch: PackedBatch) -> Denominators:
        text, image = jnp.sum(batch.text_weights), jnp.sum(batch.image_weights)
        rows = jnp.asarray(batch.tokens.shape[0], jnp.float32)
        if loss.normalization == "tokens":
            text = image = text + image
        return {"text": text, "image": image, "rows": rows}

    def share(params: Params, batch: PackedBatch, denominators: Denominators) -> tuple[jax.Array, Metrics]:
        apply = bind(model, params)
        if draws:
            batch = with_codes(batch, lambda pixels: bind(tokenizer, params["vq"])(pixels, method="encode"))
        pixels = normalize(batch.und_pixels, execution.dtype) if sees else None
        if sees or draws:
            x = apply(batch.tokens, batch.modality, pixels, method="embed")
        else:
            x = apply(batch.tokens, method="embed_text")
        hidden, _ = apply(x, batch.positions, batch.segment_ids)
        flat = hidden.reshape(-1, hidden.shape[-1])  # [T, D]

        text_weights = batch.text_weights / jnp.maximum(denominators["text"], 1)
        total, metrics = text_loss(heads["text"], params, flat, batch, text_weights, loss)
        if draws:
            image_weights = batch.image_weights / jnp.maximum(denominators["image"], 1)
            groups = [batch.image_weights]
            image_total, image = head_loss(heads["image"], params, flat, batch, image_weights, groups, loss)
            total += image_total
            metrics["loss/generate"] = (image.loss[0], image.weight[0])
            metrics["accuracy/generate"] = (image.correct[0], image.weight[0])
        return total, metrics | row_metrics(config, batch, total, denominators["rows"])

    return Objective(denominators, share)


def tokenizer_loss(config: VQConfig, execution: Execution, loss: ConfigDict) -> Objective:
    """LlamaGen's VQ loss: pixel L2 + codebook + commitment. The perceptual and adversarial terms are yet to come."""
    for term in ("perceptual_weight", "adversarial_weight"):
        if loss[term]:
            raise UserError(f"loss.{term}={loss[term]}: this term does not exist yet, expected 0")
    model = build(config, execution)

    def denominators(batch: ImageBatch) -> Denominators:
        return {"images": jnp.asarray(batch.pixels.shape[0], jnp.float32)}

    def share(params: Params, batch: ImageBatch, denominators: Denominators) -> tuple[jax.Array, Metrics]:
        part = batch.pixels.shape[0] / denominators["images"]
        pixels = normalize(batch.pixels, execution.dtype)
        output = bind(model, params)(pixels)
        pixel_term = jnp.mean(jnp.square(output.reconstruction.astype(jnp.float32) - pixels))
        codebook_term, commitment_term = vq_loss(output.latents, output.quantized, config.commitment)
        total = part * (loss.pixel_weight * pixel_term + codebook_term + commitment_term)
        used = jnp.zeros(config.num_codes, bool).at[output.codes.reshape(-1)].set(True)
        metrics = {
            "loss": (total, part),
            "loss/pixel": (part * pixel_term, part),
            "loss/codebook": (part * codebook_term, part),
            "loss/commitment": (part * commitment_term, part),
            "codes_used": (part * jnp.sum(used).astype(jnp.float32), part),  # by the rows of one device
            "images": (jnp.asarray(pixels.shape[0], jnp.float32), part),
        }
        return total, metrics

    return Objective(denominators, share)


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
