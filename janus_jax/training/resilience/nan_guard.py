"""Stops a run at the first step whose loss or gradient is not finite, and keeps the batch of that step."""

import math
from typing import Any

import jax
import numpy as np
from etils import epath

from janus_jax.training.objectives.base import Metrics

# The other losses are parts of the first one. A discriminator has a loss and a gradient of its own.
_CHECKED = ("loss", "grad_norm", "loss/discriminator", "grad_norm/discriminator")


class NanGuard:
    """Checks the metrics of each step after the next step was started, so that the devices never wait for the check.

    Args:
        folder: Folder for the batch of a step that was not finite. Each process writes its own rows.
    """

    def __init__(self, folder: epath.Path):
        self._folder = folder
        self._unchecked: tuple[int, Metrics, Any] | None = None

    def add(self, step: int, metrics: Metrics, batch: Any) -> None:
        """Remembers this step and checks the step before it."""
        self.check()
        self._unchecked = step, metrics, batch

    def check(self) -> None:
        """Waits for the last step that was added, and checks it.

        Raises:
            FloatingPointError: The loss or gradient is not finite, and would not be in any later step. The message
                names the step, the task and the file of the batch. If only the gradient is not finite, it names all
                tasks of the step.
        """
        if self._unchecked is None:
            return
        step, metrics, batch = self._unchecked
        self._unchecked = None
        if all(_is_finite(metrics[name]) for name in _CHECKED if name in metrics):
            return
        values = {
            name: float(pair[0])
            for name, pair in metrics.items()
            if name.startswith(("loss", "grad_norm")) and not _is_finite(pair)
        }
        listed = ", ".join(f"{name} is {value}" for name, value in sorted(values.items()))
        if not any(name.startswith("loss") for name in values):
            listed += f"; losses are finite: {_losses(metrics)}"
        try:
            kept = f"is in {self._save(step, batch)}"
        except OSError as error:  # a full disk must not hide that the loss is not finite
            kept = f"could not be written ({error})"
        raise FloatingPointError(f"step {step}: {listed}. Its batch {kept}; the last checkpoint is kept")

    def _save(self, step: int, batch: Any) -> epath.Path:
        """Writes the fields of the batch as arrays of shape [rows of this process, ...]."""
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / f"step-{step:06}-process-{jax.process_index()}.npz"
        fields = {
            jax.tree_util.keystr(path, simple=True, separator="."): value
            for path, value in jax.tree_util.tree_leaves_with_path(batch)
        }
        with file.open("wb") as output:
            np.savez_compressed(
                output, allow_pickle=False, **{name: _local_rows(value) for name, value in fields.items()}
            )
        return file


def _is_finite(pair: tuple[jax.Array, jax.Array]) -> bool:
    return math.isfinite(float(pair[0]))


def _losses(metrics: Metrics) -> str:
    """The mean loss of each task in the step, e.g. "loss/generate 8.3, loss/text 2.1"."""
    losses = {name: pair for name, pair in metrics.items() if name.startswith("loss/")}
    sums = {name: (float(total), float(weight)) for name, (total, weight) in losses.items()}
    means = {name: total / weight for name, (total, weight) in sums.items() if weight}
    return ", ".join(f"{name} {mean:.4g}" for name, mean in sorted(means.items()))


def _local_rows(array: jax.Array) -> np.ndarray:
    """The rows that this process holds, in order. Several devices may hold the same rows."""
    parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])
