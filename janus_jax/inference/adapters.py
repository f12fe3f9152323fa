"""Adapters that stay beside the weights of a loaded model, so that it can change between them."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from janus_jax.errors import UserError
from janus_jax.models.layers import LORA_A, LORA_B, LORA_SCALE
from janus_jax.models.lora import KERNEL, adapter_path
from janus_jax.models.params import Params, flatten, unflatten
from janus_jax.models.scan_layers import unstacked_path
from janus_jax.weights.adapter import Adapter
from janus_jax.weights.quantization import scale_path
from janus_jax.weights.reader import TensorSlice
from janus_jax.weights.weight_layout import transposed_path


class Adapters:
    """Named adapters of a model whose layers are unstacked."""

    def __init__(self, base: Params, adapters: Mapping[str, Adapter], dtype: DTypeLike, mesh: Mesh | None = None):
        """Places all adapters on the devices. Every device of a mesh has them whole, since they are small.

        Raises UserError for an adapter that can only be merged.
        """
        self._base, self._dtype = flatten(base), dtype
        self._place = None if mesh is None else NamedSharding(mesh, PartitionSpec())
        self._leaves = {name: self._leaves_of(name, adapter) for name, adapter in adapters.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the adapters."""
        return tuple(self._leaves)

    def params(self, name: str | None, scale: float = 1.0) -> Params:
        """The parameters of the model with an adapter, or without one, which share the arrays of the base.

        Args:
            scale: factor on what the matrices of the adapter add. Parameters that were trained in full have no factor.

        Raises:
            UserError: there is no adapter of this name, or the scale is no finite number.
        """
        if name is None:
            return unflatten(self._base)
        if name not in self._leaves:
            raise UserError(f"use_adapter({name!r}): expected None or one of {', '.join(self._leaves)}")
        if not np.isfinite(scale):
            raise UserError(f"use_adapter({name!r}, scale={scale}): expected a finite number")
        leaves = dict(self._leaves[name])
        for path in leaves:
            if path.endswith(f"/{LORA_SCALE}"):
                leaves[path] = leaves[path] * scale
        # A matrix that was trained in full also takes the place of its int8 or transposed form.
        whole = {path for path in leaves if path.endswith(f"/{KERNEL}")}
        replaced = {form(path) for path in whole for form in (scale_path, transposed_path)}
        return unflatten({path: leaf for path, leaf in self._base.items() if path not in replaced} | leaves)

    def _leaves_of(self, name: str, adapter: Adapter) -> dict[str, jax.Array]:
        leaves: dict[str, jax.Array] = {}
        for part, pair in adapter.pairs.items():
            if pair.magnitude is not None or not part.path.endswith(f"/{KERNEL}"):
                kind = "DoRA" if pair.magnitude is not None else "an adapter of embeddings"
                raise UserError(
                    f"adapter {name!r} has {kind} ({part}), which can only be merged: expected adapter=FOLDER alone"
                )
            path = _unstacked(part)
            arrays = {LORA_A: pair.a, LORA_B: pair.b, LORA_SCALE: np.array(pair.scale, np.float32)}
            leaves |= {adapter_path(path, leaf): self._put(values) for leaf, values in arrays.items()}
        for part, values in adapter.whole.items():
            leaves[_unstacked(part)] = self._put(values.astype(jnp.dtype(self._dtype)))
        return leaves

    def _put(self, values: np.ndarray) -> jax.Array:
        return jax.device_put(np.array(values), self._place)


def _unstacked(part: TensorSlice) -> str:
    return part.path if part.layer is None else unstacked_path(part.path, part.layer)
