"""The stream of a Janus or JanusFlow run: rows of packed samples that mix all tasks."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from janus_jax.batches import Modality, PackedBatch
from janus_jax.data.logical_shard import LogicalShard, ShardOptions, TaskSource
from janus_jax.data.mixture import Mixture, ever_positive
from janus_jax.data.packing import IMAGE_FEATURES, assemble, block_bytes, join_blocks
from janus_jax.data.sample_builder import SampleBuilder
from janus_jax.data.stream import Stream, StreamOptions


def packed_rows(mixture: Mixture, builder: SampleBuilder, packing_bins: int, options: StreamOptions) -> Stream:
    """Batches of packed rows of this process.

    Args:
        builder: Turns a record into a sample.
        packing_bins: Number of rows of a logical shard that are filled at a time.
    """
    slots = dict(zip(IMAGE_FEATURES, (builder.understanding_slots, builder.generation_slots), strict=True))
    if builder.stored_codes:
        del slots["gen_pixels"]
    shard_options = ShardOptions(
        num_shards=options.num_shards,
        sources=_task_sources(mixture, builder, options),
        ratio=mixture.ratio,
        ratio_unit=mixture.ratio_unit,
        capacity=(builder.row_length, builder.understanding_slots, builder.generation_slots),
        open_rows=packing_bins,
        measure=functools.partial(_measure, generation_tokens=builder.generation_tokens),
        assemble=functools.partial(assemble, row_length=builder.row_length, images=tuple(slots)),
        rows_per_step=options.rows_per_shard,
        max_drop_rate=options.max_drop_rate,
    )
    sizes = dict(zip(IMAGE_FEATURES, (builder.understanding_size, builder.generation_size), strict=True))
    images = {name: (count, sizes[name]) for name, count in slots.items()}
    return Stream(
        [LogicalShard(index, shard_options) for index in options.local_shards],
        functools.partial(_batch, slots=slots),
        block_bytes(options.rows_per_shard, builder.row_length, images),
        options,
    )


def _task_sources(mixture: Mixture, builder: SampleBuilder, options: StreamOptions) -> list[TaskSource]:
    sources = []
    for task, entries in mixture.sources.items():
        for i, (records, weight) in enumerate(entries):
            weight = len(records) if weight is None else weight
            if ever_positive(weight):
                name = f"{task}/{i}"
                samples = options.shuffled(records, name).random_map(builder)
                sources.append(TaskSource(name, records.pattern, len(records), task, weight, samples))
    return sources


def _measure(sample: Mapping[str, np.ndarray], generation_tokens: int) -> tuple[int, ...]:
    """Number of tokens, understanding images and generation images of a sample."""
    und, gen = IMAGE_FEATURES
    codes = int(np.count_nonzero(sample["modality"] == Modality.GENERATION_IMAGE))
    images = len(sample[gen]) if gen in sample else codes // generation_tokens
    return len(sample["tokens"]), len(sample[und]), images


def _batch(blocks: Sequence[Mapping[str, np.ndarray]], slots: Mapping[str, int]) -> PackedBatch:
    return PackedBatch(**join_blocks(blocks, slots))
