"""The training state: parameters, optimizer moments and the number of steps done."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from janus_jax.models.config import ModelConfig
from janus_jax.models.params import Params
from janus_jax.sharding import param_shardings
from janus_jax.training.freezing import split


class TrainState(NamedTuple):
    """State of one network; also a tree of shapes or of shardings."""

    step: Any  # int32 scalar: number of steps done
    trainable: Params  # parameters that this stage trains, float32
    frozen: Params  # all other parameters
    opt_state: Any  # moments of `trainable` only
    ema: Params | None = None  # exponential moving average of `trainable`; None: not kept


def create_state(
    params: Params, mask: dict[str, bool], optimizer: optax.GradientTransformation, ema: bool = False
) -> TrainState:
    """The state before the first step, with fresh moments. With `ema`, the average starts at the parameters."""
    trainable, frozen = split(params, mask)
    average = jax.tree.map(jnp.copy, trainable) if ema else None  # a copy, since the training step donates the state
    return TrainState(jnp.zeros((), jnp.int32), trainable, frozen, optimizer.init(trainable), average)


def state_shardings(
    config: ModelConfig, mask: dict[str, bool], optimizer: optax.GradientTransformation, state: TrainState, mesh: Mesh
) -> TrainState:
    """A sharding for every leaf of a state, which may be abstract.

    Parameters follow the table of logical axes, moments follow their parameters, scalars are replicated.
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    trainable, frozen = split(param_shardings(config, mesh), mask)
    opt_state = optax.tree_utils.tree_map_params(
        optimizer, lambda _, sharding: sharding, state.opt_state, trainable, transform_non_params=lambda _: replicated
    )
    return TrainState(replicated, trainable, frozen, opt_state, None if state.ema is None else trainable)
