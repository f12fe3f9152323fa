"""Gradients and metrics of a batch over a mesh: whole weights from shards, rows per device, shards of gradients.

Everything in between is local to a device and its rows. The only collectives are these: a gather of each weight in the
forward and in the backward pass, a reduce-scatter of its gradient, sums over replicas, and sums of scalars.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from janus_jax.models.execution import WeightGatherer
from janus_jax.models.lora import with_dropout
from janus_jax.models.params import Params, flatten, unflatten
from janus_jax.sharding import BATCH_SPEC, ROW_AXES, row_shares
from janus_jax.training.freezing import merge
from janus_jax.training.objectives.base import Denominators, Metrics, Objective

# The objectives return more than a training step reports, since validation wants it.
_VALIDATION_ONLY = ("accuracy/text", "psnr", "ssim", "ssim/range_2")


def sharded_gradient(
    objective: Objective,
    shardings: Any,
    mesh: Mesh,
    weights: WeightGatherer | None,
    micro_batches: int,
    dropout: float = 0.0,
) -> Callable[..., tuple[Params, Metrics]]:
    """(trainable, frozen, batch) -> (gradients in the tree and sharding of `trainable`, metrics of the whole batch).

    Args:
        shardings: a `TrainState` of shardings.
        weights: gathers the weights; the layers of the model use the same object. None on a mesh without `fsdp`.
        micro_batches: number of parts in which the rows of a device are computed, one after the other.
        dropout: of adapters. Where it is above 0, `dropout_keys` are a fourth argument.
    """
    trainable_specs, frozen_specs = row_specs(shardings.trainable), row_specs(shardings.fixed)

    def device(trainable: Params, frozen: Params, rows: Any, *keys: jax.Array) -> tuple[Params, Metrics]:
        denominators = jax.lax.psum(objective.denominators(rows), ROW_AXES)

        def share(trainable: Params, part: Any, *key: jax.Array) -> tuple[jax.Array, Metrics]:
            params = whole_params(trainable, frozen, weights)
            if key:
                params = unflatten(with_dropout(flatten(params), key[0][0], dropout))
            total, metrics = objective.share(params, part, denominators)
            return total, reported_by_a_step(metrics)

        gradient = jax.grad(share, has_aux=True)
        parts = (rows, *(key[0] for key in keys))
        grads, metrics = sum_over_parts(lambda part: gradient(trainable, *part), parts, micro_batches)
        return sum_over_replicas(grads, trainable_specs), jax.lax.psum(metrics, ROW_AXES)

    in_specs: tuple[Any, ...] = (trainable_specs, frozen_specs, BATCH_SPEC) + ((BATCH_SPEC,) if dropout else ())
    return over_rows(device, mesh, in_specs, out_specs=(trainable_specs, PartitionSpec()))


def dropout_keys(seed: int, step: jax.Array, mesh: Mesh, micro_batches: int) -> jax.Array:
    """Data of the random keys of a step, uint32 [shares of the rows, micro-batches, K]."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.random.key_data(jax.random.split(key, (row_shares(mesh), micro_batches)))


def sharded_metrics(
    objective: Objective, shardings: Any, mesh: Mesh, weights: WeightGatherer | None, micro_batches: int
) -> Callable[[Params, Params, Any, Denominators], Metrics]:
    """(trainable, frozen, batch, denominators) -> metrics of the batch, without a gradient.

    The denominators are arguments, so that the sums of several batches can be divided by those of all batches.
    Arguments are those of `sharded_gradient`.
    """

    def device(trainable: Params, frozen: Params, rows: Any, denominators: Denominators) -> Metrics:
        params = whole_params(trainable, frozen, weights)
        metrics = sum_over_parts(lambda part: objective.share(params, part, denominators)[1], rows, micro_batches)
        return jax.lax.psum(metrics, ROW_AXES)

    in_specs = (row_specs(shardings.trainable), row_specs(shardings.fixed), BATCH_SPEC, PartitionSpec())
    return over_rows(device, mesh, in_specs, out_specs=PartitionSpec())


def reported_by_a_step(metrics: Metrics) -> Metrics:
    """The metrics of an objective without those that only validation reports, which are then not computed."""
    return {name: pair for name, pair in metrics.items() if name not in _VALIDATION_ONLY}


def sum_over_replicas(grads: Params, specs: Any) -> Params:
    """The sums of the gradients of all devices. Gathering weights has summed those of shards over `fsdp` already."""
    return jax.tree.map(
        lambda grad, spec: jax.lax.psum(grad, [axis for axis in ROW_AXES if axis not in spec]), grads, specs
    )


def whole_params(trainable: Params, frozen: Params, weights: WeightGatherer | None) -> Params:
    """All parameters; those outside the stacked layers gathered, since the layers gather their own."""
    params = merge(trainable, frozen)
    return params if weights is None else weights.outside_stacks(params)


def sum_over_parts(function: Callable[[Any], Any], rows: Any, micro_batches: int) -> Any:
    """The sum of `function(part)` over equal parts of the rows, computed one after the other."""
    if micro_batches == 1:
        return function(rows)
    parts = jax.tree.map(lambda x: x.reshape(micro_batches, len(x) // micro_batches, *x.shape[1:]), rows)
    first = jax.eval_shape(function, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), first)

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(part)), None

    return jax.lax.scan(add, zeros, parts)[0]


def over_rows(device: Callable[..., Any], mesh: Mesh, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`device` on every device of the mesh. A `tensor` axis is left to XLA's partitioner, except for Pallas kernels."""
    partitioned = mesh.shape["tensor"] > 1
    return jax.shard_map(
        device,
        mesh=mesh,
        in_specs=in_specs,
        out_specs=out_specs,
        axis_names=set(ROW_AXES) if partitioned else set(mesh.axis_names),
        check_vma=False,
    )


def row_specs(shardings: Any) -> Any:
    """A PartitionSpec for every sharding of a tree, with the axes that divide rows and without `tensor`."""
    return jax.tree.map(
        lambda sharding: PartitionSpec(*(axis if axis in ROW_AXES else None for axis in sharding.spec)), shardings
    )
