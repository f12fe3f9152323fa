"""The networks that a run needs besides its model: the discriminator and those that only the loss uses."""

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from janus_jax.errors import UserError
from janus_jax.models.config import LossNetworkConfig, PatchDiscriminatorConfig
from janus_jax.models.params import Params, abstract_params, init_params
from janus_jax.models.patch_discriminator import NormStatistics, fresh_norm_statistics
from janus_jax.models.presets import LOSS_NETWORKS, LPIPS
from janus_jax.sharding import to_devices
from janus_jax.weights.discriminator import find_discriminator
from janus_jax.weights.lpips import load_lpips


def loss_network_configs(config: ConfigDict) -> dict[str, LossNetworkConfig]:
    """The architectures of the networks that only the loss uses, by name."""
    return {LPIPS: LOSS_NETWORKS[LPIPS]} if config.loss.get("perceptual_weight") else {}


def open_loss_networks(config: ConfigDict, mesh: Mesh) -> dict[str, Params] | None:
    """Their parameters, whole on every device; None if the loss uses no network.

    Raises UserError when a file is missing or is not what its field says.
    """
    networks = {}
    for name, network in loss_network_configs(config).items():
        networks[name] = load_lpips(
            config.loss.lpips_trunk, config.loss.lpips_heads, network, prefix="config.loss.lpips_"
        )
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
    discriminator = found or (init_params(config, seed), fresh_norm_statistics(config))
    return jax.tree.map(lambda leaf: to_devices(leaf, replicated), discriminator), origin
