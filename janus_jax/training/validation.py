"""Validation while training: losses, accuracies and perplexities of held-out rows, the same rows at every evaluation.

Rows depend neither on the step nor on the number of processes or devices.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from janus_jax.batches import ImageBatch, PackedBatch
from janus_jax.data.images import CENTRE
from janus_jax.data.records import TASKS
from janus_jax.data.stream import Stream, drop_metrics
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.errors import UserError
from janus_jax.models.config import ModelConfig
from janus_jax.training.latents import Preparation
from janus_jax.training.objectives.base import CODE_COUNTS, Denominators, mean_metrics
from janus_jax.training.plan import Plan, validation_tasks
from janus_jax.training.setup import num_shards, open_stream
from janus_jax.training.train_state import TrainState


def open_held_out(
    config: ConfigDict, architecture: ModelConfig, tokenizer: Tokenizer | None, process_index: int, process_count: int
) -> Stream | None:
    """The stream of held-out rows of this process; None when the run is not validated.

    All tasks that are validated have equal shares of the samples, and nothing is random: captions are whole, crops are
    central.
    """
    if not config.validate.every_steps or not config.data.held_out:
        return None
    shards = num_shards(config)
    if config.data.held_out < shards:
        raise UserError(
            f"data.held_out={config.data.held_out}: validation expects at least data.num_shards={shards} held-out "
            "records of each source"
        )
    fields = config.to_dict()
    fields["data"] |= {
        "ratio": {task: float(task in validation_tasks(config)) for task in config.data.ratio},
        "drop_condition": 0.0,
        "drop_condition_codes": 0.0,
        "first_sentence": 0.0,
        "crop": CENTRE._replace(halving=config.data.crop.get("halving", False))._asdict(),
        "workers": 0,
    }
    return open_stream(
        ConfigDict(fields),
        architecture,
        tokenizer,
        validation=True,
        process_index=process_index,
        process_count=process_count,
    )


class Validation:
    """Evaluates a state on the first `num_rows` rows of a stream of held-out records.

    They are read again for each evaluation, in batches of the size of training, so that they take no memory in between.
    Rows that fill the last batch are padding and have no weight.

    Args:
        stream: Held-out rows of this process.
        prepare: What is done to each batch, see `make_preparation`. The number of the batch takes the place of the
            step, so noise and times of JanusFlow are those of the same training steps, and always the same.
        batch_size: Number of rows of a batch, in all processes.
        process_index, process_count: Which part of the rows of a batch this process has.
    """

    def __init__(
        self,
        plan: Plan,
        stream: Stream,
        prepare: Preparation,
        num_rows: int,
        batch_size: int,
        process_index: int,
        process_count: int,
    ):
        self._plan, self._stream, self._prepare = plan, stream, prepare
        self._num_rows, self._batch_size = num_rows, batch_size
        self._first, self._count = process_index * batch_size // process_count, batch_size // process_count
        self._start = stream.get_state()
        self._step = plan.make_validation_step()
        replicated = NamedSharding(plan.mesh, PartitionSpec())
        objective = plan.validation_objective or plan.objective
        self._count_denominators = jax.jit(objective.denominators, out_shardings=replicated)
        self._denominators: Denominators | None = None

    def evaluate(
        self,
        state: TrainState,
        keep_alive: Callable[[], None] = lambda: None,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> dict[str, float] | None:
        """Metrics of all rows together: the same as if they were one batch. Drops of held-out samples are among them.

        Args:
            keep_alive: Called after each batch.
            stop_requested: Asked after each batch whether to end without a result, which is then None.
        """
        if self._denominators is None:  # these do not depend on the state; the rows are read once more for them
            counts = []
            for batch in self._batches():
                counts.append(jax.block_until_ready(self._count_denominators(batch)))
                keep_alive()
                if stop_requested():
                    return None
            self._denominators = jax.tree.map(lambda *values: sum(values), *counts)
        sums: dict[str, tuple[Any, Any]] = {}
        for batch in self._batches():
            metrics = jax.device_get(self._step(state, batch, self._denominators))
            for name, pair in metrics.items():
                total, weight = (np.asarray(half, np.float64) for half in pair)
                before = sums.get(name, (0.0, 0.0))
                sums[name] = before[0] + total, before[1] + weight
            keep_alive()
            if stop_requested():
                return None
        dropped = {name: share for name, share in drop_metrics(self._stream.get_state()).items() if share}
        return _means(sums) | dropped

    def close(self) -> None:
        self._stream.close()

    def _batches(self) -> Iterator[Any]:
        """The batches of an evaluation on the devices, from the first row on."""
        self._stream.set_state(self._start)
        put = functools.partial(jax.make_array_from_process_local_data, self._plan.rows)
        try:
            for number in range(math.ceil(self._num_rows / self._batch_size)):
                first = number * self._batch_size + self._first
                rows = without_rows(next(self._stream), np.arange(first, first + self._count) < self._num_rows)
                yield self._prepare(jax.tree.map(put, rows), number)
        finally:
            self._stream.close()  # it starts again when it is read again


def without_rows(batch: PackedBatch | ImageBatch, kept: np.ndarray) -> PackedBatch | ImageBatch:
    """The batch with padding, which has no weight, in place of some rows.

    Args:
        kept: [B] bool, false for rows to be replaced.
    """
    if isinstance(batch, ImageBatch):
        return batch._replace(weights=kept.astype(np.float32))
    if kept.all():
        return batch
    return jax.tree.map(lambda x: np.where(kept.reshape(-1, *[1] * (x.ndim - 1)), x, np.zeros((), x.dtype)), batch)


def _means(sums: dict[str, tuple[Any, Any]]) -> dict[str, float]:
    """Losses, accuracies, quality of images, use of codes, and the perplexity of each task with a cross-entropy."""
    reported = {
        name: (total, weight)
        for name, (total, weight) in sums.items()
        if name.startswith(("loss", "accuracy", "psnr", "ssim", CODE_COUNTS)) and weight
    }
    means = mean_metrics(reported)
    for task in TASKS:
        if f"accuracy/{task}" in means:
            with np.errstate(over="ignore"):
                means[f"perplexity/{task}"] = float(np.exp(means[f"loss/{task}"]))
    return means
