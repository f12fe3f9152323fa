"""The compiled programs over a training state: a training step, and the metrics of held-out rows.

The training loop only knows the protocol `TrainStep`: it passes the state on and reads its field `step`. The step of
this file trains one network, that of `adversarial_step.py` two.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from janus_jax.compiler_options import compiler_options
from janus_jax.models.execution import WeightGatherer
from janus_jax.models.lora import Lora
from janus_jax.models.params import Params
from janus_jax.sharding import BATCH_SPEC
from janus_jax.training.fsdp import dropout_keys, sharded_gradient, sharded_metrics
from janus_jax.training.objectives.base import Denominators, Metrics, Objective
from janus_jax.training.train_state import TrainState

State = TypeVar("State")


class TrainStep(Protocol[State]):
    """One step of training. The state that goes in is donated: its arrays cannot be used afterwards."""

    def __call__(self, state: State, batch: Any, /) -> tuple[State, Metrics]: ...


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    shardings: TrainState,
    mesh: Mesh,
    weights: WeightGatherer | None = None,
    micro_batches: int = 1,
    ema: float = 0.0,
    program: str = "train_step",
    lora: Lora | None = None,
) -> Any:
    """A `TrainStep` for one network: differentiate the trainable tree only, clip, update. It is a `jax.jit` function.

    Args:
        weights: see `sharded_gradient`, as for `micro_batches`.
        ema: decay of the moving average of the parameters, if the state has one (JanusFlow, Table 1: 0.99).
        program: name of its options of the compiler, see `compiler_options`.
        lora: the adapters of the run, which may have dropout.
    """
    dropout = lora.dropout if lora else 0.0
    gradient = sharded_gradient(objective, shardings, mesh, weights, micro_batches, dropout)

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        keys = (dropout_keys(lora.seed, state.step, mesh, micro_batches),) if lora and dropout else ()
        grads, metrics = gradient(state.trainable, state.fixed, batch, *keys)
        return updated(state, grads, optimizer, ema), metrics | gradient_norms(grads)

    return compiled_step(step, shardings, mesh, program)


def updated(state: TrainState, grads: Params, optimizer: optax.GradientTransformation, ema: float) -> TrainState:
    """The state after a step of the optimizer, with the average moved towards the new parameters."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)
    average = state.ema
    if average is not None:
        average = jax.tree.map(lambda old, new: ema * old + (1 - ema) * new, average, trainable)
    return state._replace(step=state.step + 1, trainable=trainable, opt_state=opt_state, ema=average)


def compiled_step(
    step: Callable[[TrainState, Any], tuple[TrainState, Metrics]], shardings: Any, mesh: Mesh, program: str
) -> Any:
    """The `jax.jit` function of a `TrainStep`. Its argument `state` is donated."""
    return jax.jit(
        step,
        in_shardings=(shardings, NamedSharding(mesh, BATCH_SPEC)),
        out_shardings=(shardings, NamedSharding(mesh, PartitionSpec())),
        donate_argnames="state",
        compiler_options=compiler_options(program, device_kind=mesh.devices.flat[0].device_kind),
    )


def make_validation_step(
    objective: Objective,
    shardings: TrainState,
    mesh: Mesh,
    weights: WeightGatherer | None = None,
    micro_batches: int = 1,
    program: str = "train_step",
) -> Callable[[TrainState, Any, Denominators], Metrics]:
    """(state, batch, denominators) -> metrics, without a change of the state."""
    metrics_of = sharded_metrics(objective, shardings, mesh, weights, micro_batches)

    def step(state: TrainState, batch: Any, denominators: Denominators) -> Metrics:
        return metrics_of(state.trainable, state.fixed, batch, denominators)

    replicated = NamedSharding(mesh, PartitionSpec())
    return jax.jit(
        step,
        in_shardings=(shardings, NamedSharding(mesh, BATCH_SPEC), replicated),
        out_shardings=replicated,
        compiler_options=compiler_options(program, device_kind=mesh.devices.flat[0].device_kind),
    )


def gradient_norms(grads: Params) -> Metrics:
    """Norms before clipping: `grad_norm` of the whole gradient, and of each module, such as `grad_norm/siglip`."""
    one = jnp.ones(())
    squares = {name: optax.tree_utils.tree_norm(module, squared=True) for name, module in grads.items()}
    norms = {f"grad_norm/{name}": (jnp.sqrt(square), one) for name, square in squares.items()}
    return {"grad_norm": (jnp.sqrt(sum(squares.values())), one), **norms}
