"""The training state and the training step: pure functions of state and batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from janus_jax.compiler_options import compiler_options
from janus_jax.models.config import ModelConfig
from janus_jax.models.execution import WeightGatherer
from janus_jax.models.params import Params
from janus_jax.sharding import BATCH_SPEC, param_shardings
from janus_jax.training.freezing import split
from janus_jax.training.fsdp import sharded_gradient
from janus_jax.training.objectives.base import Metrics, Objective


class TrainState(NamedTuple):
    step: Any  # int32 scalar: steps done
    trainable: Params  # the parameters this stage trains, float32
    frozen: Params  # the others
    opt_state: Any  # moments of `trainable` only
    ema: Params | None = None  # exponential average of `trainable`; None: not kept


def create_state(
    params: Params, mask: dict[str, bool], optimizer: optax.GradientTransformation, ema: bool = False
) -> TrainState:
    """Step 0 with fresh moments; with `ema`, an average that begins at the parameters."""
    trainable, frozen = split(params, mask)
    average = jax.tree.map(jnp.copy, trainable) if ema else None  # a copy: the state is donated
    return TrainState(jnp.zeros((), jnp.int32), trainable, frozen, optimizer.init(trainable), average)


def state_shardings(
    config: ModelConfig, mask: dict[str, bool], optimizer: optax.GradientTransformation, state: TrainState, mesh: Mesh
) -> TrainState:
    """Parameters by the logical-axis table, moments like their parameters, scalars replicated.

    `state` may be abstract.
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    trainable, frozen = split(param_shardings(config, mesh), mask)
    opt_state = optax.tree_utils.tree_map_params(
        optimizer, lambda _, sharding: sharding, state.opt_state, trainable, transform_non_params=lambda _: replicated
    )
    return TrainState(replicated, trainable, frozen, opt_state, None if state.ema is None else trainable)


def make_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    shardings: TrainState,
    mesh: Mesh,
    weights: WeightGatherer | None = None,
    micro_batches: int = 1,
    ema: float = 0.0,
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """The compiled step: differentiate the trainable tree only, clip, update. Donates the state.

    Args:
        weights: see `sharded_gradient`, as `micro_batches`.
        ema: decay of the average of the parameters, where the state has one (JanusFlow, Table 1: 0.99).
    """
    gradient = sharded_gradient(objective, shardings, mesh, weights, micro_batches)

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        grads, metrics = gradient(state.trainable, state.frozen, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        average = state.ema
        if average is not None:
            average = jax.tree.map(lambda old, new: ema * old + (1 - ema) * new, average, trainable)
        new = TrainState(state.step + 1, trainable, state.frozen, opt_state, average)
        return new, metrics | gradient_norms(grads)

    return jax.jit(
        step,
        in_shardings=(shardings, NamedSharding(mesh, BATCH_SPEC)),
        out_shardings=(shardings, NamedSharding(mesh, PartitionSpec())),
        donate_argnames="state",
        compiler_options=compiler_options("train_step", device_kind=mesh.devices.flat[0].device_kind),
    )


def gradient_norms(grads: Params) -> Metrics:
    """Of the whole gradient before clipping, `grad_norm`, and of each module, `grad_norm/siglip`."""
    one = jnp.ones(())
    squares = {name: optax.tree_utils.tree_norm(module, squared=True) for name, module in grads.items()}
    norms = {f"grad_norm/{name}": (jnp.sqrt(square), one) for name, square in squares.items()}
    return {"grad_norm": (jnp.sqrt(sum(squares.values())), one), **norms}
