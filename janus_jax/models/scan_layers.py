"""The one place that scans and rematerialises layers.

A stack of equal blocks has its parameters stacked under `layers`, leading axis = layer, and is run by `nn.scan`:
compile time does not grow with depth. With `scan_layers=False` the same blocks are unrolled over `layers_0`,
`layers_1`, ...: faster decoding, since a scan copies the weights it slices. `unstack_layers` turns the first
layout into the second; checkpoints always hold the first.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from janus_jax.models.config import Execution

_keep = jax.checkpoint_policies.save_only_these_names
REMAT_POLICIES = {  # the most memory, and the least work, first
    "none": None,  # keep all activations
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # keep the results of weight matrix products
    # Names are those that the models give to their activations with `checkpoint_name`.
    "projections": _keep("query", "key", "value", "context", "attended", "gate_proj", "up_proj"),
    "attention": _keep("query", "key", "value", "context", "attended"),
    "context": _keep("context"),
    "full": jax.checkpoint_policies.nothing_saveable,  # keep only the inputs of each layer
}
STACKED = "layers"


def run_layers(
    parent: nn.Module,
    block: type[nn.Module],
    config: Any,
    depth: int,
    execution: Execution,
    x: jax.Array,
    per_layer: Any,
    shared: Any,
) -> tuple[jax.Array, Any]:
    """x -> block_0 -> block_1 ... ; must be called inside a compact method of `parent`.

    Args:
        block: module class built as `block(config, execution)` and called as `(x, its per_layer slice, shared)`,
            returning `(x, per-layer output)`.
        per_layer: pytree with a leading layer axis (scan) or a sequence with one pytree per layer (unrolled); may
            be None.
        shared: pytree given to every layer.

    Returns:
        The last x, and the per-layer outputs in the layout of `per_layer`.
    """
    if execution.remat not in REMAT_POLICIES:
        raise ValueError(f"remat={execution.remat!r} is not one of {sorted(REMAT_POLICIES)}")
    weights = execution.weights
    if weights is not None:
        # Inside remat, so that the whole weights of a layer exist only while it runs, forward and backward.
        def whole(variables: dict[str, Any]) -> dict[str, Any]:
            return {"params": weights((*parent.path, STACKED), variables["params"])}

        block = nn.map_variables(block, "params", trans_in_fn=whole)
    if execution.remat != "none":
        block = nn.remat(block, policy=REMAT_POLICIES[execution.remat], prevent_cse=not execution.scan_layers)
    if execution.scan_layers:
        scanned = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=depth,
            unroll=depth if execution.unroll_scan else 1,
            metadata_params={nn.PARTITION_NAME: STACKED},
        )
        return scanned(config, execution, name=STACKED)(x, per_layer, shared)
    outputs = []
    for i in range(depth):
        layer_input = None if per_layer is None else per_layer[i]
        x, output = block(config, execution, name=f"{STACKED}_{i}")(x, layer_input, shared)
        outputs.append(output)
    return x, None if per_layer is None else tuple(outputs)


def unstack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces every `layers` subtree (leading axis = layer) by `layers_0`, `layers_1`, ..."""
    result: dict[str, Any] = {}
    for name, value in params.items():
        if name == STACKED:
            depth = jax.tree.leaves(value)[0].shape[0]
            result |= {f"{STACKED}_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], value) for i in range(depth)}
        else:
            result[name] = unstack_layers(value) if isinstance(value, Mapping) else value
    return result


def stack_layers(params: Mapping[str, Any], join: Callable[[Sequence[Any]], Any] = jnp.stack) -> dict[str, Any]:
    """The inverse of `unstack_layers`; `join` makes one leaf of the leaves of all layers."""
    result: dict[str, Any] = {}
    layers: dict[int, Any] = {}
    for name, value in params.items():
        prefix, _, number = name.rpartition("_")
        if prefix == STACKED:
            layers[int(number)] = value
        else:
            result[name] = stack_layers(value, join) if isinstance(value, Mapping) else value
    if layers:
        result[STACKED] = jax.tree.map(lambda *leaves: join(leaves), *(layers[i] for i in range(len(layers))))
    return result


def is_stacked(path: str) -> bool:
    """Whether a parameter holds all layers, with the layer as its leading axis: "a/layers/b" does, "a/layers_2/b" not."""
    return STACKED in path.split("/")


def unstacked_path(path: str, layer: int) -> str:
    """Path of a layer of a stacked parameter: "a/layers/b", 2 -> "a/layers_2/b"."""
    return path.replace(f"/{STACKED}/", f"/{STACKED}_{layer}/")
