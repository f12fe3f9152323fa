"""The interface of a training objective, and the parts that objectives over packed rows share.

A metric is a pair (sum, weight). Both are summed over the global batch, so that means over several steps are exact. The
sum is a scalar, except for `CODE_COUNTS`: one count per code.
Letters: B rows, L tokens per row, T = B * L, D width.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from janus_jax.batches import Modality, PackedBatch
from janus_jax.errors import UserError
from janus_jax.models.config import CodeModelConfig, FamilyConfig, JanusFlowConfig
from janus_jax.models.janus import Head
from janus_jax.models.params import Params
from janus_jax.ops.losses import TokenLoss, chunked_cross_entropy
from janus_jax.ops.scatter_tokens import segments_with

CODE_COUNTS = "code_counts"  # metric of image tokenizers: how often each code was chosen
Metrics = dict[str, tuple[jax.Array, jax.Array]]
Denominators = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss that is a sum over rows, so that each device and each micro-batch can compute some of the rows.

    The loss of a step is the sum of `share(params, rows, denominators)` over all sets of rows, where `denominators`
    is the sum of `denominators(rows)` over them. The same holds for both halves of every metric.
    """

    denominators: Callable[[Any], Denominators]  # rows -> counts that the sums are divided by
    share: Callable[[Params, Any, Denominators], tuple[jax.Array, Metrics]]

    def __call__(self, params: Params, batch: Any) -> tuple[jax.Array, Metrics]:
        """Loss and metrics of a whole batch."""
        return self.share(params, batch, self.denominators(batch))


def code_usage(counts: np.ndarray) -> dict[str, float]:
    """Share of the codes that were chosen at all, and the perplexity exp(-sum p log p) of their frequencies p.

    The perplexity is the number of codes that, if used equally often, would have the same entropy.
    """
    frequencies = counts[counts > 0] / max(counts.sum(), 1)
    perplexity = np.exp(-np.sum(frequencies * np.log(frequencies)))
    return {"codes/usage": float(np.mean(counts > 0)), "codes/perplexity": float(perplexity)}


def mean_metrics(sums: Mapping[str, tuple[Any, Any]]) -> dict[str, float]:
    """Name -> mean from sums and weights over any number of steps; not a number where the weight is 0."""
    means: dict[str, float] = {}
    for name, (total, weight) in sums.items():
        if name == CODE_COUNTS:
            means |= code_usage(np.asarray(total))
        else:
            means[name] = float(total) / float(weight) if weight else float("nan")
    return means


def check_normalization(loss: ConfigDict) -> None:
    """Raises UserError for an unknown `loss.normalization`."""
    if loss.normalization not in ("tokens", "tasks"):
        raise UserError(f"loss.normalization={loss.normalization!r} is neither 'tokens' nor 'tasks'")


def head_loss(
    head: Head,
    params: Params,
    hidden: jax.Array,
    batch: PackedBatch,
    weights: jax.Array,
    groups: list[jax.Array],
    loss: ConfigDict,
) -> tuple[jax.Array, TokenLoss]:
    """Cross-entropy of a head on `batch.targets`: the sum with `weights`, and one sum with each of `groups`.

    Args:
        hidden: [T, D].
        weights: [B, L]; the loss that gets a gradient.
        groups: [B, L] each; for metrics, without a gradient.
    """
    return chunked_cross_entropy(
        head.logits,
        head.params(params),
        hidden,
        jnp.where(weights > 0, batch.targets, 0).reshape(-1),
        weights.reshape(-1),
        jnp.stack(groups).reshape(len(groups), -1),
        loss.chunk_size,
        loss.z_loss,
        loss.skip_unsupervised,
    )


def text_loss(
    head: Head, params: Params, hidden: jax.Array, batch: PackedBatch, weights: jax.Array, loss: ConfigDict
) -> tuple[jax.Array, Metrics]:
    """`head_loss` on text, with separate metrics for samples with an understanding image and for pure text."""
    has_image = segments_with(batch.segment_ids, batch.modality == Modality.UNDERSTANDING_IMAGE)
    groups = [batch.text_weights * has_image, batch.text_weights * ~has_image]
    total, text = head_loss(head, params, hidden, batch, weights, groups, loss)
    return total, {
        "loss/understand": (text.loss[0], text.weight[0]),
        "loss/text": (text.loss[1], text.weight[1]),
        "accuracy/understand": (text.correct[0], text.weight[0]),
        "accuracy/text": (text.correct[1], text.weight[1]),
    }


def row_metrics(config: FamilyConfig, batch: PackedBatch, total: jax.Array, num_rows: jax.Array) -> Metrics:
    """Counts of a batch that holds some of the step's `num_rows` rows, and its share of the loss.

    `tokens` counts all tokens. `tokens/TASK` counts those that carry the loss of the task: targets of a head, or the
    latents of JanusFlow.
    """
    part = batch.tokens.shape[0] / num_rows
    generated_at = batch.modality == Modality.GENERATION_IMAGE
    supervised = batch.text_weights > 0
    has_image = segments_with(batch.segment_ids, batch.modality == Modality.UNDERSTANDING_IMAGE)
    if isinstance(config, CodeModelConfig):
        generated = jnp.sum(batch.image_weights > 0)
    else:
        generated = jnp.sum(generated_at) // config.image_tokens * config.uvit.num_tokens
    # JanusFlow's learned begin-of-image vector belongs to the image.
    understanding = config.understanding.num_tokens + isinstance(config, JanusFlowConfig)
    images = jnp.sum(batch.modality == Modality.UNDERSTANDING_IMAGE) / understanding
    if config.image_tokens:
        images += jnp.sum(generated_at) / config.image_tokens
    filled = batch.modality != Modality.PADDING
    return {
        "loss": (total, part),
        "images": (images, part),
        "tokens": (jnp.sum(filled), part),
        "tokens/understand": (jnp.sum(supervised & has_image), part),
        "tokens/text": (jnp.sum(supervised & ~has_image), part),
        "tokens/generate": (generated, part),
        "fill": (part * jnp.mean(filled), part),
    }
