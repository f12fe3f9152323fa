"""The gradient of a step, as each device computes it: whole weights from shards, its own rows, shards of gradients.

Everything between is local to a device and its rows. Collectives are only these: a gather of each weight in the
forward and in the backward pass, a reduce-scatter of its gradient, sums over replicas, and sums of scalars.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from janus_jax.models.execution import WeightGatherer
from janus_jax.models.params import Params
from janus_jax.sharding import BATCH_SPEC, ROW_AXES
from janus_jax.training.freezing import merge
from janus_jax.training.objectives.base import Metrics, Objective


def sharded_gradient(
    objective: Objective, shardings: Any, mesh: Mesh, weights: WeightGatherer | None, micro_batches: int
) -> Callable[[Params, Params, Any], tuple[Params, Metrics]]:
    """(trainable, frozen, batch) -> (gradients in the tree and sharding of `trainable`, metrics of the whole batch).

    Args:
        shardings: a `TrainState` of shardings.
        weights: what gathers the weights; the model's own layers use it too. None on a mesh without `fsdp`.
        micro_batches: the rows of a device are done in this many parts, one after the other.
    """
    automatic = mesh.shape["tensor"] > 1  # left to the partitioner, but for Pallas kernels (`ops.attention`)
    trainable_specs, frozen_specs = (
        jax.tree.map(lambda sharding: _rows_only(sharding.spec), tree)
        for tree in (shardings.trainable, shardings.frozen)
    )

    def device(trainable: Params, frozen: Params, rows: Any) -> tuple[Params, Metrics]:
        denominators = jax.lax.psum(objective.denominators(rows), ROW_AXES)

        def share(trainable: Params, part: Any) -> tuple[jax.Array, Metrics]:
            params = merge(trainable, frozen)
            if weights is not None:
                params = weights.outside_stacks(params)
            return objective.share(params, part, denominators)

        gradient = jax.grad(share, has_aux=True)
        if micro_batches == 1:
            grads, metrics = gradient(trainable, rows)
        else:
            parts = jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), rows)
            first = jax.eval_shape(gradient, trainable, jax.tree.map(lambda x: x[0], parts))
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), first)

            def add(total: Any, part: Any) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, total, gradient(trainable, part)), None

            grads, metrics = jax.lax.scan(add, zeros, parts)[0]
        grads = jax.tree.map(
            lambda grad, spec: jax.lax.psum(grad, [axis for axis in ROW_AXES if axis not in spec]),
            grads,
            trainable_specs,
        )
        return grads, jax.lax.psum(metrics, ROW_AXES)

    return jax.shard_map(
        device,
        mesh=mesh,
        in_specs=(trainable_specs, frozen_specs, BATCH_SPEC),
        out_specs=(trainable_specs, PartitionSpec()),
        axis_names=set(ROW_AXES) if automatic else set(mesh.axis_names),
        check_vma=False,
    )


def _rows_only(spec: PartitionSpec) -> PartitionSpec:
    return PartitionSpec(*(axis if axis in ROW_AXES else None for axis in spec))
