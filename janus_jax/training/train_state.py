"""The training state: parameters, optimizer moments, the number of steps done, and what belongs to other networks."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from janus_jax.models.config import ModelConfig
from janus_jax.models.lora import Lora
from janus_jax.models.params import Params
from janus_jax.models.patch_discriminator import NormStatistics
from janus_jax.sharding import param_shardings
from janus_jax.training.freezing import split


class Adversary(NamedTuple):
    """State of the discriminator that is trained against an image tokenizer."""

    params: Params
    statistics: NormStatistics  # running statistics, which training only writes
    opt_state: Any


class TrainState(NamedTuple):
    """What a run trains and what it needs for that; also a tree of shapes or of shardings."""

    step: Any  # int32 scalar: number of steps done
    trainable: Params  # parameters that this stage trains, float32
    frozen: Params  # all other parameters; with adapters in the dtypes of `models.lora.Lora.frozen`
    opt_state: Any  # moments of `trainable` only
    ema: Params | None = None  # exponential moving average of `trainable`; None: not kept
    adversary: Adversary | None = None  # the discriminator; None: there is none
    # Parameters by name of the networks that only the loss uses. They never change, and each start of a run reads them
    # from their own files, so that no checkpoint holds them.
    loss_networks: dict[str, Params] | None = None

    @property
    def fixed(self) -> Params:
        """All parameters that the step reads and does not change."""
        return {**self.frozen, **(self.loss_networks or {})}


def create_state(
    params: Params,
    mask: dict[str, bool],
    optimizer: optax.GradientTransformation,
    ema: bool = False,
    discriminator: tuple[Params, NormStatistics] | None = None,
    loss_networks: dict[str, Params] | None = None,
) -> TrainState:
    """The state before the first step, with fresh moments. With `ema`, the average starts at the parameters."""
    trainable, frozen = split(params, mask)
    average = jax.tree.map(jnp.copy, trainable) if ema else None  # a copy, since the training step donates the state
    adversary = None
    if discriminator is not None:
        adversary = Adversary(*discriminator, optimizer.init(discriminator[0]))
    step = jnp.zeros((), jnp.int32)
    return TrainState(step, trainable, frozen, optimizer.init(trainable), average, adversary, loss_networks)


def state_shardings(
    config: ModelConfig,
    mask: dict[str, bool],
    optimizer: optax.GradientTransformation,
    state: TrainState,
    mesh: Mesh,
    lora: Lora | None = None,
) -> TrainState:
    """A sharding for every leaf of a state, which may be abstract.

    Parameters follow the table of logical axes, moments follow their parameters, scalars are replicated. So are the
    other networks, which are small.
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    trainable, frozen = split(param_shardings(config, mesh, lora), mask)
    opt_state = optax.tree_utils.tree_map_params(
        optimizer, lambda _, sharding: sharding, state.opt_state, trainable, transform_non_params=lambda _: replicated
    )
    average = None if state.ema is None else trainable
    adversary, loss_networks = jax.tree.map(lambda _: replicated, (state.adversary, state.loss_networks))
    return TrainState(replicated, trainable, frozen, opt_state, average, adversary, loss_networks)
