"""The stream of an image tokenizer's run: images cropped to squares."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from janus_jax.batches import ImageBatch
from janus_jax.data.images import Crop
from janus_jax.data.logical_shard import LogicalShard, ShardOptions, TaskSource
from janus_jax.data.packing import PackedSample
from janus_jax.data.record_reader import RecordSource
from janus_jax.data.sample_builder import square_image
from janus_jax.data.stream import Stream, StreamOptions


def square_images(sources: Sequence[RecordSource], size: int, crop: Crop, options: StreamOptions) -> Stream:
    """Batches of this process's square images of `size` pixels; a source weighs as much as it has records."""
    make_sample = functools.partial(square_image, size=size, crop=crop)
    task_sources = []
    for i, records in enumerate(sources):
        name = f"generate/{i}"
        samples = options.shuffled(records, name).random_map(make_sample)
        task_sources.append(TaskSource(name, records.pattern, len(records), "generate", len(records), samples))
    shard_options = ShardOptions(
        num_shards=options.num_shards,
        sources=task_sources,
        ratio={"generate": 1.0},
        ratio_unit="samples",
        capacity=(1,),
        open_rows=1,
        measure=_one_row,
        assemble=_stack,
        rows_per_step=options.rows_per_shard,
        max_drop_rate=options.max_drop_rate,
    )
    shards = [LogicalShard(index, shard_options) for index in options.local_shards]
    return Stream(shards, _batch, options.rows_per_shard * size * size * 3, options)


def _one_row(sample: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    return (1,)


def _stack(rows: Sequence[Sequence[PackedSample]]) -> dict[str, np.ndarray]:
    return {name: np.stack([packed.sample[name] for (packed,) in rows]) for name in rows[0][0].sample}


def _batch(blocks: Sequence[Mapping[str, np.ndarray]]) -> ImageBatch:
    return ImageBatch(np.concatenate([block["pixels"] for block in blocks]))
