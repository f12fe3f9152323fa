"""The loss of JanusFlow: answers, rectified flow and representation alignment (JanusFlow, section 3.4).

Letters: B rows, L tokens per row, G generation image slots per row, N latent tokens per image, D width, T = B * L,
M = B * G.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from janus_jax.batches import FlowBatch, Modality
from janus_jax.data.records import TASKS
from janus_jax.models.config import JanusFlowConfig
from janus_jax.models.execution import Execution
from janus_jax.models.janus import language_head
from janus_jax.models.params import Params, bind, build
from janus_jax.ops.flow import TIME_SCALE, flow_loss, interpolate
from janus_jax.ops.pixels import normalize
from janus_jax.ops.representation_alignment import alignment_loss, on_coarser_grid
from janus_jax.ops.scatter_tokens import place_in_order, take_in_order
from janus_jax.training.objectives.base import (
    Denominators,
    Metrics,
    Objective,
    check_normalization,
    row_metrics,
    text_loss,
)


def janusflow_objective(
    config: JanusFlowConfig, execution: Execution, loss: ConfigDict, tasks: Sequence[str] = TASKS
) -> Objective:
    """L_AR on text, L_RF + `loss.alignment_weight` * L_REPA on images.

    `loss.normalization="tasks"` adds the mean over text tokens and the mean over images; "tokens" counts each latent
    token as one token and divides the sum by the number of all tokens. The paper gives no coefficients and does not
    say which it uses. SigLIP has as many tokens as an image has latent tokens in all released models. Where it has
    fewer, the predictions for the latents of each of its patches are averaged.

    Args:
        tasks: tasks of the run. Parts of the model that only other tasks need are not computed.
    """
    check_normalization(loss)
    model = build(config, execution)
    head = language_head(config.llama, execution)
    generates, understands = "generate" in tasks, "understand" in tasks
    num_latents = config.uvit.num_tokens

    def denominators(batch: FlowBatch) -> Denominators:
        text, images = jnp.sum(batch.rows.text_weights), jnp.sum(_used(config, batch))
        if loss.normalization == "tokens":
            text = text + num_latents * images
            images = text / num_latents
        return {"text": text, "images": images, "rows": jnp.asarray(batch.time.shape[0], jnp.float32)}

    def share(params: Params, batch: FlowBatch, denominators: Denominators) -> tuple[jax.Array, Metrics]:
        rows, apply = batch.rows, bind(model, params)
        is_generated = rows.modality == Modality.GENERATION_IMAGE
        pixels = normalize(rows.und_pixels, execution.dtype) if understands else None
        x = apply(rows.tokens, rows.modality, pixels, method="embed")
        if generates:
            time = batch.time.reshape(-1)  # [M]
            latents, noise = (values.reshape(-1, *values.shape[2:]) for values in (batch.latents, batch.noise))
            encoded = apply(interpolate(latents, noise, time), TIME_SCALE * time, method="encode_latents")
            places = apply(encoded, method="embed_latents")  # [M, 1 + N, D]
            x = place_in_order(x, is_generated, places.reshape(len(x), -1, x.shape[-1]).astype(x.dtype))
        features, hidden = _run_llm(config, execution, params, x, rows.positions, rows.segment_ids)
        text_weights = rows.text_weights / jnp.maximum(denominators["text"], 1)
        total, metrics = text_loss(head, params, hidden.reshape(-1, hidden.shape[-1]), rows, text_weights, loss)
        if generates:

            def take_latents(values: jax.Array) -> jax.Array:
                """[B, L, D] -> [M, N, D] at the latents, without the time token. Unused slots hold arbitrary values."""
                taken = take_in_order(values, is_generated, batch.time.shape[1] * config.image_tokens)
                return taken.reshape(-1, config.image_tokens, values.shape[-1])[:, 1:]

            used = _used(config, batch).reshape(-1)
            flow = flow_loss(apply(take_latents(hidden), encoded, method="velocity"), latents, noise)
            terms = {"flow": (flow, 1.0)}
            if config.alignment:
                images = normalize(rows.gen_pixels.reshape(-1, *rows.gen_pixels.shape[2:]), execution.dtype)
                target = jax.lax.stop_gradient(apply(images, method="understand"))
                predicted = on_coarser_grid(apply(take_latents(features), method="align"), target.shape[1])
                terms["alignment"] = (alignment_loss(predicted, target), loss.alignment_weight)
            for name, (values, weight) in terms.items():
                part = jnp.sum(jnp.where(used > 0, values, 0.0))
                total += weight * part / jnp.maximum(denominators["images"], 1)
                metrics[f"loss/{name}"] = (part, jnp.sum(used))
        return total, metrics | row_metrics(config, rows, total, denominators["rows"])

    return Objective(denominators, share)


def _used(config: JanusFlowConfig, batch: FlowBatch) -> jax.Array:
    """[B, G], 1.0 where a slot holds an image."""
    count = jnp.sum(batch.rows.modality == Modality.GENERATION_IMAGE, axis=1) // config.image_tokens
    return (jnp.arange(batch.time.shape[1]) < count[:, None]).astype(jnp.float32)


def _run_llm(
    config: JanusFlowConfig,
    execution: Execution,
    params: Params,
    x: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """[B, L, D] -> features after block `alignment.layer`, and after the final norm.

    Without alignment, both results are those after the final norm. With it, the stack of layers is cut in two, so that
    the features in between need not be carried through the scan over all layers.
    """
    if config.alignment is None:
        hidden, _ = bind(build(config, execution), params)(x, positions, segment_ids)
        return hidden, hidden
    cut = config.alignment.layer

    def part(depth: int, layers: slice) -> Any:
        shortened = dataclasses.replace(config, alignment=None, llama=dataclasses.replace(config.llama, depth=depth))
        decoder = params["llm"]["decoder"]
        decoder = decoder | {"layers": jax.tree.map(lambda leaf: leaf[layers], decoder["layers"])}
        return bind(build(shortened, execution), params | {"llm": params["llm"] | {"decoder": decoder}})

    features = part(cut, slice(cut))(x, positions, segment_ids, method="blocks")
    hidden, _ = part(config.llama.depth - cut, slice(cut, None))(features, positions, segment_ids)
    return features, hidden
