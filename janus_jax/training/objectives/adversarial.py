"""The adversarial loss of an image tokenizer: what its fields in the config mean, and the terms of some images.

Every micro-batch counts as a batch of its own for two things that are no sums over images: the statistics with which
the discriminator normalises, and the adaptive weight. All other numbers do not depend on `train.micro_batches`.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from janus_jax.errors import UserError
from janus_jax.models.config import PatchDiscriminatorConfig
from janus_jax.models.execution import Execution
from janus_jax.models.params import Params, bind, build
from janus_jax.models.patch_discriminator import NormStatistics
from janus_jax.ops.adversarial import DISCRIMINATOR_LOSSES, accuracy, generator_loss
from janus_jax.training.objectives.base import Metrics
from janus_jax.weights.discriminator import NORM_EPS

STATISTICS = ("global", "device")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """The adversarial loss of a run."""

    discriminator: PatchDiscriminatorConfig
    weight: float
    start: int  # number of the first step with the loss, counted from 1; before it the weight of both networks is 0
    loss: str  # what the discriminator minimises: a key of `DISCRIMINATOR_LOSSES`
    adaptive: bool  # whether the gradient norm in the last layer of the decoder scales the generator's term
    axes: tuple[str, ...]  # mesh axes of the images with whose statistics the discriminator normalises
    execution: Execution


class AdversarialTerms(NamedTuple):
    """The adversarial terms of some images, and their gradients."""

    generator: jax.Array  # minus the mean logit of the reconstructions
    reconstruction_slope: jax.Array  # gradient of `generator` with respect to the reconstructions
    discriminator_grads: Params  # gradient of the discriminator's loss, both without any weight
    statistics: tuple[NormStatistics, NormStatistics]  # those of the reconstructions and of the images
    metrics: Metrics  # with weight 1


def adversarial_config(
    loss: ConfigDict, image_size: int, images: int, axes: tuple[str, ...], execution: Execution
) -> AdversarialConfig:
    """Reads the fields of `config.loss`.

    Args:
        image_size: side of the training images in pixels.
        images: number of images of a device in a micro-batch.
        axes: mesh axes over which the images of a batch are divided.
        execution: how the tokenizer runs.

    Raises:
        UserError: a field has a value that cannot work; the images are too small for the discriminator.
    """
    if loss.discriminator_loss not in DISCRIMINATOR_LOSSES:
        raise UserError(
            f"config.loss.discriminator_loss={loss.discriminator_loss!r} is not one of {sorted(DISCRIMINATOR_LOSSES)}"
        )
    if loss.batch_statistics not in STATISTICS:
        raise UserError(f"config.loss.batch_statistics={loss.batch_statistics!r} is not one of {STATISTICS}")
    discriminator = PatchDiscriminatorConfig(
        base_channels=loss.discriminator_channels, num_layers=loss.discriminator_layers, norm_eps=NORM_EPS
    )
    if discriminator.grid(image_size) < 1:
        raise UserError(
            f"config.loss.discriminator_layers={loss.discriminator_layers} needs images of at least "
            f"{3 * 2**loss.discriminator_layers} pixels, data.image_size is {image_size}"
        )
    # The last norm sees a map that is one larger than that of the logits.
    if images * (discriminator.grid(image_size) + 1) ** 2 < 2:
        raise UserError(f"train.batch_size: {images} image of {image_size} pixels has no variance to normalise with")
    return AdversarialConfig(
        discriminator=discriminator,
        weight=loss.adversarial_weight,
        start=loss.discriminator_start,
        loss=loss.discriminator_loss,
        adaptive=loss.adaptive_weight,
        axes=axes if loss.batch_statistics == "global" else (),
        execution=Execution(dtype=execution.dtype),
    )


def adversarial_terms(
    config: AdversarialConfig, params: Params, pixels: jax.Array, reconstruction: jax.Array
) -> AdversarialTerms:
    """The terms of both networks from one pass over the images and one over the reconstructions.

    The generator's term and the discriminator's have the same logits: LlamaGen's code computes them twice, with the
    same parameters of the discriminator and the same reconstructions, those from before the update of the tokenizer.

    Args:
        params: parameters of the discriminator.
        pixels: [B, H, W, 3] in [-1, 1].
        reconstruction: the same, float32.
    """
    model = build(config.discriminator, config.execution)

    def discriminate(params: Params, images: jax.Array) -> tuple[jax.Array, NormStatistics]:
        return bind(model, params)(images, None, config.axes)

    fake, pull_fake, fake_statistics = jax.vjp(discriminate, params, reconstruction, has_aux=True)
    real, pull_real, real_statistics = jax.vjp(lambda params: discriminate(params, pixels), params, has_aux=True)
    generator, generator_slope = jax.value_and_grad(generator_loss)(fake)
    loss = DISCRIMINATOR_LOSSES[config.loss]
    discriminator, (real_slope, fake_slope) = jax.value_and_grad(loss, argnums=(0, 1))(real, fake)
    one = jnp.ones(())
    metrics = {
        "loss/adversarial": generator,
        "loss/discriminator": discriminator,
        "logits/real": jnp.mean(real),
        "logits/fake": jnp.mean(fake),
        "accuracy/discriminator": accuracy(real, fake),
    }
    return AdversarialTerms(
        generator=generator,
        reconstruction_slope=pull_fake(generator_slope)[1],
        discriminator_grads=jax.tree.map(jnp.add, pull_real(real_slope)[0], pull_fake(fake_slope)[0]),
        statistics=(fake_statistics, real_statistics),
        metrics={name: (value, one) for name, value in metrics.items()},
    )
