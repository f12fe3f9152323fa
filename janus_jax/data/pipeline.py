"""The endless, resumable streams that training reads: packed rows for Janus, square images for the VQ tokenizer.

The stream is a pure function of (files, seed, `num_shards`): it is cut into fixed *logical shards*, each an
independent Grain iterator, and rows [s * B / S, (s + 1) * B / S) of every step come from shard s. So the rows do not
depend on how many processes share the shards, and the state is one small dict per shard.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from janus_jax.batch import ImageBatch, PackedBatch
from janus_jax.data.images import decode_image, generation_pixels
from janus_jax.data.packing import pack
from janus_jax.data.records import TASKS, Record, open_records
from janus_jax.data.samples import DropCounter, SampleBuilder
from janus_jax.errors import UserError

PREFETCH = 2  # batches per shard prepared ahead, in a thread
# Decoding holds the GIL for small images: reading ahead in more threads than this only adds switching.
READ_OPTIONS = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)


class Stream:
    """Endless batches from logical shards; `get_state` belongs to the last batch returned."""

    def __init__(self, shards: Sequence[grain.IterDataset], batch_type: Callable[..., Any], drops: DropCounter):
        if not flags.FLAGS.is_parsed():  # Grain reads an absl flag when it starts its threads
            flags.FLAGS.mark_as_parsed()
        self.drops = drops
        self._batch_type = batch_type
        self._iterators = [
            iter(grain.experimental.ThreadPrefetchIterDataset(shard, prefetch_buffer_size=PREFETCH)) for shard in shards
        ]

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Any:
        parts = [next(iterator) for iterator in self._iterators]
        return self._batch_type(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})

    def get_state(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return {str(i): iterator.get_state() for i, iterator in enumerate(self._iterators)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Raises UserError when the state is of a stream with another number of shards."""
        if len(state) != len(self._iterators):
            raise UserError(f"data.num_shards={len(self._iterators)}, but the checkpoint's stream had {len(state)}")
        for i, iterator in enumerate(self._iterators):
            iterator.set_state(state[str(i)])

    def close(self) -> None:
        """Stops the prefetch threads."""
        for iterator in self._iterators:
            iterator.close()


def packed_rows(
    sources: Mapping[str, Sequence[bytes]],
    ratio: Mapping[str, float],
    builder: SampleBuilder,
    *,
    batch_size: int,
    num_shards: int,
    packing_bins: int,
    seed: int,
) -> Stream:
    """Batches of `batch_size` packed rows mixing tasks at `ratio` (counted in samples).

    Args:
        sources: serialized records per task name, random access.
        ratio: positive weight per task of `sources`.
        builder: turns a record into a sample.
    """

    def shard(index: int) -> grain.IterDataset:
        samples = {
            task: _shuffled(source, seed + TASKS.index(task), num_shards).random_map(builder)[index::num_shards]
            for task, source in sources.items()
        }
        mixed = grain.IterDataset.mix(
            {task: dataset.to_iter_dataset(READ_OPTIONS) for task, dataset in samples.items()},
            {task: float(ratio[task]) for task in samples},
        )
        return pack(
            mixed,
            row_length=builder.row_length,
            und_slots=builder.understanding_slots,
            gen_slots=builder.generation_slots,
            bins=packing_bins,
            seed=seed,
        )

    return _stream(shard, batch_size, num_shards, PackedBatch, builder.drops)


def square_images(
    source: Sequence[bytes], *, size: int, batch_size: int, num_shards: int, seed: int, drops: DropCounter
) -> Stream:
    """Batches of training images for the VQ tokenizer, cropped to squares."""

    def shard(index: int) -> grain.IterDataset:
        images = _shuffled(source, seed, num_shards).map(functools.partial(_square_image, size=size, drops=drops))
        return images[index::num_shards].to_iter_dataset(READ_OPTIONS)

    return _stream(shard, batch_size, num_shards, ImageBatch, drops)


def task_sources(patterns: Mapping[str, Sequence[str]], ratio: Mapping[str, float]) -> dict[str, Sequence[bytes]]:
    """Opens the ArrayRecord shards of every task with a positive ratio."""
    return {task: open_records(patterns[task], f"data.sources.{task}") for task in ratio if ratio[task] > 0}


def _shuffled(source: Sequence[bytes], seed: int, num_shards: int) -> grain.MapDataset:
    """All records, reshuffled each epoch, endless; shards are strided slices of it, so they never overlap."""
    if len(source) < num_shards:
        raise UserError(f"data.num_shards={num_shards} is more than the {len(source)} records of a source")
    return grain.MapDataset.source(source).seed(seed).shuffle().repeat()


def _stream(
    shard: Callable[[int], grain.IterDataset],
    batch_size: int,
    num_shards: int,
    batch_type: Callable[..., Any],
    drops: DropCounter,
) -> Stream:
    if num_shards < 1 or batch_size % num_shards:
        raise UserError(f"train.batch_size={batch_size} must be a multiple of data.num_shards={num_shards}")
    shards = [shard(i).batch(batch_size // num_shards, drop_remainder=True) for i in range(num_shards)]
    return Stream(shards, batch_type, drops)


def _square_image(data: bytes, size: int, drops: DropCounter) -> dict[str, np.ndarray] | None:
    try:
        record = Record.deserialize(data)
        if not record.images:
            raise UserError(f"{record.key}: no image for the image tokenizer")
        image = decode_image(record.images[0], record.key, training=True)
    except UserError as error:
        drops.drop(str(error))
        return None
    drops.keep()
    return {"pixels": generation_pixels(image, size)}
