"""The networks that a run needs besides its model: the discriminator and those that only the loss uses."""

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from janus_jax.errors import UserError
from janus_jax.models.config import (
    ModelConfig,
    PatchDiscriminatorConfig,
    SemanticTokenizerConfig,
    SiglipConfig,
)
from janus_jax.models.params import Params, abstract_params, init_params
from janus_jax.models.patch_discriminator import NormStatistics, fresh_norm_statistics
from janus_jax.models.presets import LOSS_NETWORKS, LPIPS, TEACHER
from janus_jax.sharding import to_devices
from janus_jax.weights.discriminator import find_discriminator
from janus_jax.weights.load import load_params
from janus_jax.weights.lpips import load_lpips
from janus_jax.weights.pretrained_parts import open_siglip


def abstract_loss_networks(config: ConfigDict, architecture: ModelConfig, dtype: DTypeLike) -> dict[str, Params] | None:
    """Shapes and dtypes of `open_loss_networks`. It needs no files."""
    networks = {}
    if config.loss.get("perceptual_weight"):
        networks[LPIPS] = abstract_params(LOSS_NETWORKS[LPIPS])
    if isinstance(architecture, SemanticTokenizerConfig):
        shapes = abstract_params(architecture.teacher)
        networks[TEACHER] = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes)
    return networks or None


def open_loss_networks(
    config: ConfigDict, architecture: ModelConfig, dtype: DTypeLike, mesh: Mesh
) -> dict[str, Params] | None:
    """Parameters by name of the networks that only the loss uses, whole on every device; None if there are none.

    Args:
        dtype: that of computation, in which a teacher is kept.

    Raises:
        UserError: a file is missing or is not what its field says.
    """
    networks, loss = {}, config.loss
    if loss.get("perceptual_weight"):
        lpips = LOSS_NETWORKS[LPIPS]
        networks[LPIPS] = load_lpips(loss.lpips_trunk, loss.lpips_heads, lpips, prefix="config.loss.lpips_")
    if isinstance(architecture, SemanticTokenizerConfig):
        networks[TEACHER] = _load_teacher(loss.teacher, architecture.teacher, dtype)
    replicated = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: to_devices(leaf, replicated), networks) or None


def abstract_discriminator(config: PatchDiscriminatorConfig) -> tuple[Params, NormStatistics]:
    """Shapes and dtypes of the parameters and running statistics of a discriminator."""
    return abstract_params(config), jax.eval_shape(lambda: fresh_norm_statistics(config))


def initial_discriminator(
    config: PatchDiscriminatorConfig, checkpoint: str, seed: int, mesh: Mesh
) -> tuple[tuple[Params, NormStatistics], str]:
    """Parameters and running statistics of step 0, whole on every device, and where they come from.

    Args:
        checkpoint: `config.init.checkpoint`. Its discriminator is taken, if it has one; the released files have none.
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    found, origin = None, "fresh"
    if checkpoint:
        try:
            found = find_discriminator(checkpoint, config)
        except UserError as error:
            raise UserError(f"init.checkpoint={checkpoint!r}: {error}") from error
        origin = f"init.checkpoint={checkpoint}" if found else "fresh, since init.checkpoint has none"
    discriminator = found[1:] if found else (init_params(config, seed), fresh_norm_statistics(config))
    return jax.tree.map(lambda leaf: to_devices(leaf, replicated), discriminator), origin


def _load_teacher(location: str, config: SiglipConfig, dtype: DTypeLike) -> Params:
    if not location:
        raise UserError(
            "config.loss.teacher is empty, expected a folder of transformers' SiglipModel, such as "
            "google/siglip-large-patch16-384, or of a Janus model, whose SigLIP is then the teacher"
        )
    try:
        return load_params(open_siglip(location, config), dtype)
    except UserError as error:
        raise UserError(f"config.loss.teacher={location!r}: {error}") from error
