"""The loss of Janus and Janus-Pro: next-token cross-entropy on text and on image codes.

Letters: B rows, L tokens per row, G generation image slots per row, N codes per image, D width, T = B * L.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from janus_jax.batches import Modality, PackedBatch
from janus_jax.data.records import TASKS
from janus_jax.models.config import CodeModelConfig
from janus_jax.models.execution import Execution
from janus_jax.models.janus import janus_heads
from janus_jax.models.params import Params, bind, build
from janus_jax.ops.pixels import normalize
from janus_jax.ops.scatter_tokens import place_in_order
from janus_jax.training.objectives.base import (
    Denominators,
    Metrics,
    Objective,
    check_normalization,
    head_loss,
    row_metrics,
    text_loss,
)


def janus_objective(
    config: CodeModelConfig, execution: Execution, loss: ConfigDict, tasks: Sequence[str] = TASKS
) -> Objective:
    """Cross-entropy of the text head on text and of the image head on image codes, weighted equally (Janus, 3.3).

    `loss.normalization="tokens"` divides the sum over both heads by the number of supervised tokens; "tasks" adds the
    means of the two heads. The papers do not say which they use.

    Args:
        tasks: tasks of the run. Parts of the model that only other tasks need are not computed.
    """
    check_normalization(loss)
    model, heads = build(config, execution), janus_heads(config, execution)
    generates, understands = "generate" in tasks, "understand" in tasks
    # In bfloat16, rounding would change the codes.
    tokenizer = build(config.vq, Execution(dtype=jnp.float32)) if config.vq else None

    def denominators(batch: PackedBatch) -> Denominators:
        text, image = jnp.sum(batch.text_weights), jnp.sum(batch.image_weights)
        rows = jnp.asarray(batch.tokens.shape[0], jnp.float32)
        if loss.normalization == "tokens":
            text = image = text + image
        return {"text": text, "image": image, "rows": rows}

    def share(params: Params, batch: PackedBatch, denominators: Denominators) -> tuple[jax.Array, Metrics]:
        apply = bind(model, params)
        if generates and tokenizer:
            batch = with_codes(batch, lambda pixels: bind(tokenizer, params["vq"])(pixels, method="encode"))
        pixels = normalize(batch.und_pixels, execution.dtype) if understands else None
        if understands or generates:
            x = apply(batch.tokens, batch.modality, pixels, method="embed")
        else:
            x = apply(batch.tokens, method="embed_text")
        hidden, _ = apply(x, batch.positions, batch.segment_ids)
        flat = hidden.reshape(-1, hidden.shape[-1])  # [T, D]

        text_weights = batch.text_weights / jnp.maximum(denominators["text"], 1)
        total, metrics = text_loss(heads["text"], params, flat, batch, text_weights, loss)
        if generates:
            image_weights = batch.image_weights / jnp.maximum(denominators["image"], 1)
            groups = [batch.image_weights]
            image_total, image = head_loss(heads["image"], params, flat, batch, image_weights, groups, loss)
            total += image_total
            metrics["loss/generate"] = (image.loss[0], image.weight[0])
            metrics["accuracy/generate"] = (image.correct[0], image.weight[0])
        return total, metrics | row_metrics(config, batch, total, denominators["rows"])

    return Objective(denominators, share)


def with_codes(batch: PackedBatch, encode: Callable[[jax.Array], jax.Array]) -> PackedBatch:
    """Puts the VQ codes of `gen_pixels` into `tokens` and `targets`. A batch with stored codes stays unchanged."""
    if batch.gen_pixels is None:
        return batch
    rows, images = batch.gen_pixels.shape[:2]
    pixels = normalize(batch.gen_pixels.reshape(rows * images, *batch.gen_pixels.shape[2:]), jnp.float32)
    codes = jax.lax.stop_gradient(encode(pixels)).reshape(rows, -1)  # [B, G * N]
    tokens = place_in_order(batch.tokens, batch.modality == Modality.GENERATION_IMAGE, codes)
    targets = jnp.where(batch.image_weights > 0, jnp.roll(tokens, -1, axis=1), batch.targets)
    return batch._replace(tokens=tokens, targets=targets, gen_pixels=None)
