"""The one place that scans over layers and recomputes them in the backward pass (rematerialisation, "remat").

The parameters of equal blocks are stacked under the name `layers`, with the layer as the leading axis, and `nn.scan`
runs them, so that compile time does not grow with depth. With `Execution.scan_layers=False` the same blocks are
unrolled over `layers_0`, `layers_1`, and so on. That is faster for decoding, where a scan would copy the weights of
each layer that it slices. `unstack_layers` turns the first layout into the second; checkpoints always have the first.
On a CPU a loop does the same over stacked parameters, of which it copies nothing (`Execution.scan_in_place`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from janus_jax.models.execution import Execution
from janus_jax.models.layers import TRANSPOSED
from janus_jax.ops.layer_view import LayerView, values_of

_keep = jax.checkpoint_policies.save_only_these_names
# Which activations are kept for the backward pass; the others are computed again. The policy that needs the most memory
# and the least work comes first. The names are those that the models give to activations with `checkpoint_name`.
REMAT_POLICIES = {
    "none": None,  # keeps all activations
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # keeps the results of weight matrix products
    "projections": _keep("query", "key", "value", "context", "attended", "gate_proj", "up_proj"),
    "attention": _keep("query", "key", "value", "context", "attended"),
    "context": _keep("context"),
    "full": jax.checkpoint_policies.nothing_saveable,  # keeps only the inputs of each layer
}
STACKED = "layers"  # name of the subtree of stacked parameters


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
    """Runs x through all blocks. Must be called inside a compact method of `parent`.

    Args:
        block: class of the module of a layer. It is constructed as `block(config, execution)` and called with x, its
            slice of `per_layer` and `shared`, and returns x and its output for this layer. In place its slices are
            views (`ops.layer_view`), and its output is the changed views of the first ones.
        per_layer: inputs of the single layers: a pytree with a leading layer axis (scan), a sequence with one pytree
            per layer (unrolled), or None.
        shared: pytree of inputs that all layers get.

    Returns:
        The last x, and the outputs of the single layers in the layout of `per_layer`; in place, `per_layer` itself with
        what has changed.
    """
    if execution.remat not in REMAT_POLICIES:
        raise ValueError(f"remat={execution.remat!r} is not one of {sorted(REMAT_POLICIES)}")
    weights = execution.weights
    if weights is not None:
        # Weights are gathered inside remat, so that a layer's whole weights exist only while it runs, forward or
        # backward.
        def gather(variables: dict[str, Any]) -> dict[str, Any]:
            return {"params": weights((*parent.path, STACKED), variables["params"])}

        block = nn.map_variables(block, "params", trans_in_fn=gather)
    if execution.remat != "none":
        block = nn.remat(block, policy=REMAT_POLICIES[execution.remat], prevent_cse=not execution.scan_layers)
    if execution.scan_layers and execution.scan_in_place:
        return _run_in_place(parent, block(config, execution, parent=None), depth, x, per_layer, shared)
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


def _run_in_place(
    parent: nn.Module, block: nn.Module, depth: int, x: jax.Array, per_layer: tuple | None, shared: Any
) -> tuple[jax.Array, tuple | None]:
    """`run_layers` in a loop that reads parameters and changes `per_layer` where they lie in their stacks."""
    parameters = traverse_util.flatten_dict(parent.variables["params"][STACKED])

    def body(layer: jax.Array, carry: tuple[jax.Array, tuple | None]) -> tuple[jax.Array, tuple | None]:
        x, stacks = carry
        views = {path: LayerView(stack, layer) for path, stack in parameters.items()}
        # All but the matrices that decoding reads are small, or are copied once for many rows.
        slices = {path: view if path[-1] == TRANSPOSED else values_of(view) for path, view in views.items()}
        inputs = jax.tree.map(lambda stack: LayerView(stack, layer), stacks)
        result: Any = block.apply({"params": traverse_util.unflatten_dict(slices)}, x, inputs, shared)
        x, outputs = result
        if stacks is None:
            return x, None
        return x, (*(view.stack for view in outputs), *stacks[len(outputs) :])

    return jax.lax.fori_loop(0, depth, body, (x, per_layer))


def unstack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces every `layers` subtree, whose leading axis is the layer, by `layers_0`, `layers_1`, and so on."""
    result: dict[str, Any] = {}
    for name, value in params.items():
        if name == STACKED:
            depth = jax.tree.leaves(value)[0].shape[0]
            result |= {f"{STACKED}_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], value) for i in range(depth)}
        else:
            result[name] = unstack_layers(value) if isinstance(value, Mapping) else value
    return result


def stack_layers(params: Mapping[str, Any], join: Callable[[Sequence[Any]], Any] = jnp.stack) -> dict[str, Any]:
    """The inverse of `unstack_layers`. `join` makes one array of those of all layers."""
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
    """Whether a parameter holds all layers along its leading axis: True for "a/layers/b", False for "a/layers_2/b"."""
    return STACKED in path.split("/")


def unstacked_path(path: str, layer: int) -> str:
    """Path that one layer of a stacked parameter has when it is unstacked: "a/layers/b", 2 -> "a/layers_2/b"."""
    return path.replace(f"/{STACKED}/", f"/{STACKED}_{layer}/")
