"""The losses of image tokenizers that are means over images: pixels, perception, codebook (LlamaGen, section 2.1).

A semantic tokenizer has one more, the cosine distance to a SigLIP (Janus, appendix A; BEiT v2). The adversarial loss
needs a second network and is in `objectives/adversarial.py`. Letters: B images.
"""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from janus_jax.batches import ImageBatch
from janus_jax.errors import UserError
from janus_jax.models.config import ImageTokenizerConfig, SemanticTokenizerConfig
from janus_jax.models.execution import Execution
from janus_jax.models.params import Params, bind, build
from janus_jax.models.presets import LOSS_NETWORKS, LPIPS, TEACHER
from janus_jax.models.vq import VQOutput
from janus_jax.ops.image_metrics import SSIM_WINDOW, psnr, ssim, to_levels
from janus_jax.ops.losses import code_entropy_loss, vq_loss
from janus_jax.ops.pixels import normalize
from janus_jax.ops.representation_alignment import alignment_loss
from janus_jax.training.objectives.base import CODE_COUNTS, Denominators, Metrics, Objective


class TokenizerShare(NamedTuple):
    """What some of the images of a step contribute to its loss."""

    total: jax.Array  # weighted sum of all terms, without the adversarial one
    pixels: jax.Array  # images [B, H, W, 3] in [-1, 1], float32
    reconstruction: jax.Array  # the same after the codes, float32, not clipped
    metrics: Metrics


class TokenizerLoss(Protocol):
    """(parameters, images of a device, denominators) -> their share of the loss."""

    def __call__(self, params: Params, batch: ImageBatch, denominators: Denominators, /) -> TokenizerShare: ...


def vq_objective(
    config: ImageTokenizerConfig, execution: Execution, loss: ConfigDict, axes: tuple[str, ...] = ()
) -> Objective:
    """All terms but the adversarial one, as an `Objective`. Arguments as for `tokenizer_loss`."""
    loss_of = tokenizer_loss(config, execution, loss, axes)

    def denominators(batch: ImageBatch) -> Denominators:
        if batch.weights is None:
            return {"images": jnp.asarray(batch.pixels.shape[0], jnp.float32)}
        return {"images": jnp.sum(batch.weights)}

    def share(params: Params, batch: ImageBatch, denominators: Denominators) -> tuple[jax.Array, Metrics]:
        result = loss_of(params, batch, denominators)
        return result.total, result.metrics

    return Objective(denominators, share)


def tokenizer_loss(
    config: ImageTokenizerConfig, execution: Execution, loss: ConfigDict, axes: tuple[str, ...] = ()
) -> TokenizerLoss:
    """Pixel, perceptual, codebook, commitment, entropy and semantic term.

    Args:
        loss: `config.loss` of the run. The networks that some terms need (`loss_networks.py`) have their parameters
            under their names beside those of the tokenizer.
        axes: mesh axes over which the images are divided, where the loss is computed inside `jax.shard_map`. Only the
            entropy term needs them: it contains the mean use of the codes by all images.
    """
    if loss.pixel_loss not in ("l2", "l1"):
        raise UserError(f"config.loss.pixel_loss={loss.pixel_loss!r}, expected 'l2' or 'l1'")
    model = build(config, execution)
    whole = Execution(dtype=execution.dtype, unroll_scan=execution.unroll_scan)  # other networks are not divided
    perceptual = build(LOSS_NETWORKS[LPIPS], whole) if loss.perceptual_weight else None
    vq = config.vq if isinstance(config, SemanticTokenizerConfig) else config
    teacher = build(config.teacher, whole) if isinstance(config, SemanticTokenizerConfig) else None

    def share(params: Params, batch: ImageBatch, denominators: Denominators) -> TokenizerShare:
        count = batch.pixels.shape[0]
        weights = jnp.ones(count) if batch.weights is None else batch.weights
        weights = weights / jnp.maximum(denominators["images"], 1)  # [B]; the sum over all images of the step is 1
        part = jnp.sum(weights)

        def mean(values: jax.Array) -> jax.Array:
            """The share of these images [B] in the mean. Not a product, which a TPU computes in bfloat16."""
            return jnp.sum(weights * values)

        pixels = normalize(batch.pixels, jnp.float32)
        whole_output = bind(model, params)(pixels)
        output: VQOutput = whole_output if teacher is None else whole_output.vq
        reconstruction = output.reconstruction.astype(jnp.float32)
        error = reconstruction - pixels
        error = jnp.abs(error) if loss.pixel_loss == "l1" else jnp.square(error)
        vq_terms = jax.vmap(lambda latents, codes: vq_loss(latents, codes, vq.commitment))
        codebook_term, commitment_term = vq_terms(output.latents, output.quantized)
        terms = {
            "pixel": mean(jnp.mean(error, axis=(1, 2, 3))),
            "codebook": mean(codebook_term),
            "commitment": mean(commitment_term),
        }
        total = loss.pixel_weight * terms["pixel"] + terms["codebook"] + terms["commitment"]
        if perceptual is not None:
            distances = bind(perceptual, params[LPIPS])(pixels, reconstruction)  # [stages, B]
            terms["perceptual"] = mean(jnp.sum(distances, axis=0))
            total += loss.perceptual_weight * terms["perceptual"]
        if loss.entropy_weight:
            codebook = tokenizer_params(params)["codebook"]
            latents = output.latents.reshape(-1, vq.code_dim)
            entropy = code_entropy_loss(latents, codebook, loss.entropy_temperature, axes)
            terms["entropy"] = part * entropy
            total += loss.entropy_weight * terms["entropy"]
        if teacher is not None:
            features = bind(teacher, params[TEACHER])(pixels)
            terms["semantic"] = part + mean(alignment_loss(whole_output.predicted, features))  # 1 - cosine similarity
            total += loss.semantic_weight * terms["semantic"]
        used = jnp.repeat((weights > 0).astype(jnp.float32), output.codes.shape[1])
        metrics = {
            "loss": (total, part),
            **{f"loss/{name}": (value, part) for name, value in terms.items()},
            CODE_COUNTS: (jnp.zeros(vq.num_codes).at[output.codes.reshape(-1)].add(used), part),
            "images": (jnp.asarray(count, jnp.float32), part),
            **{name: (mean(values), part) for name, values in _quality(batch.pixels, reconstruction).items()},
        }
        return TokenizerShare(total, pixels, reconstruction, metrics)

    return share


def _quality(pixels: jax.Array, reconstruction: jax.Array) -> dict[str, jax.Array]:
    """PSNR and SSIM of each image [B] and its clipped reconstruction in 256 levels, as an image file would have it.

    Args:
        pixels: [B, H, W, 3] uint8.
        reconstruction: the same in [-1, 1], not clipped.
    """
    a, b = (levels.astype(jnp.float32) / 255 for levels in (pixels, to_levels(reconstruction)))
    quality = {"psnr": psnr(a, b)}
    if min(pixels.shape[1:3]) >= SSIM_WINDOW:
        quality |= {"ssim": ssim(a, b, 1.0), "ssim/range_2": ssim(a, b, 2.0)}
    return quality


def tokenizer_params(params: Params) -> Params:
    """The parameters of the tokenizer itself, which in a semantic one is a part."""
    return params.get("vq", params)
