"""Adapters of a model, and a model that is read with its adapters merged into it."""

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from janus_jax.weights.reader import ModelReader, TensorInfo, TensorReader, TensorSlice


class LoraPair(NamedTuple):
    """The adapter of one weight matrix [in, out], in float32."""

    a: np.ndarray  # [in, rank]
    b: np.ndarray  # [rank, out]
    scale: float
    magnitude: np.ndarray | None = None  # [out], of DoRA; None: LoRA

    def merged(self, matrix: np.ndarray) -> np.ndarray:
        """The matrix with the adapter in it, [in, out] float32.

        With a magnitude, each column gets that length (DoRA, Liu et al. 2024, equation 5).
        """
        total = matrix.astype(np.float32) + np.float32(self.scale) * (self.a @ self.b)
        if self.magnitude is None:
            return total
        return total * (self.magnitude / np.linalg.norm(total, axis=0))


class Adapter(NamedTuple):
    """Everything that fine-tuning changed."""

    pairs: Mapping[TensorSlice, LoraPair]  # by the weight matrix
    whole: Mapping[TensorSlice, np.ndarray]  # parameters that were trained in full


class MergedTensors:
    """A reader of a base with an adapter merged into it, one slice at a time. Merged matrices are float32.

    Args:
        parameters: paths of the result, in order. `adapter` holds those that the base lacks.
    """

    def __init__(self, base: TensorReader, adapter: Adapter, parameters: Mapping[str, tuple[int, ...]]):
        self._base, self._adapter = base, adapter
        changed = {part.path for part in (*adapter.pairs, *adapter.whole)}
        self.parameters = {
            path: TensorInfo(shape, np.dtype(np.float32)) if path in changed else base.parameters[path]
            for path, shape in parameters.items()
        }

    def read(self, part: TensorSlice) -> np.ndarray:
        if part in self._adapter.whole:
            return self._adapter.whole[part]
        values = self._base.read(part)
        if part in self._adapter.pairs:
            return self._adapter.pairs[part].merged(values)
        return values

    def origin(self, part: TensorSlice) -> str:
        if part in self._adapter.whole:
            return f"{part} of the adapter"
        return self._base.origin(part) + (" with its adapter" if part in self._adapter.pairs else "")


def merged_model(model: ModelReader, adapter: Adapter) -> ModelReader:
    """A model with an adapter merged into it."""
    shapes = {path: info.shape for path, info in model.parameters.items()}
    return dataclasses.replace(model, tensors=MergedTensors(model.tensors, adapter, shapes))


def parameter_count(adapter: Adapter) -> int:
    """Number of scalars of an adapter."""
    arrays = [leaf for pair in adapter.pairs.values() for leaf in (pair.a, pair.b, pair.magnitude) if leaf is not None]
    return sum(math.prod(array.shape) for array in (*arrays, *adapter.whole.values()))
