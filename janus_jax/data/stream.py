"""The endless, resumable streams that training reads: packed rows for Janus, square images for the VQ tokenizer.

The stream is a pure function of (files, settings, seed): it is cut into fixed *logical shards* (`data/shard.py`), and
rows [s * B / S, (s + 1) * B / S) of every step come from shard s. Processes own shards, worker processes of theirs
share them, so the rows depend on the number of neither, and the state is one small dict per shard. (Contiguous blocks,
not row j from shard j mod S, so that the rows of a process are those of its devices.)
"""

import functools
import json
import multiprocessing
import os
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from janus_jax.batches import ImageBatch, PackedBatch
from janus_jax.data.dropped_samples import DropReport
from janus_jax.data.images import CENTRE, Crop
from janus_jax.data.logical_shard import UNITS, Component, Shard
from janus_jax.data.mixture import Schedule, ever_positive
from janus_jax.data.packing import IMAGE_FEATURES, Item, assemble, block_bytes, join_blocks
from janus_jax.data.record_reader import RecordSource
from janus_jax.data.sample_builder import SampleBuilder, square_image
from janus_jax.data.shared_memory_ring import Ring
from janus_jax.errors import UserError

PREFETCH = 2  # blocks per shard prepared ahead
# Blocks of a shard that may exist at a time: prepared by the worker, taken over by Grain, in the hands of both.
RING_SLOTS = 2 * PREFETCH + 2


class Stream:
    """Endless batches from the logical shards of one process; `get_state` belongs to the last batch returned.

    Args:
        shards: of this process, in order.
        join: makes a batch of the blocks of all shards.
        settings: everything the rows depend on, by the name of its field; a state of other settings is refused.
        block_bytes: how large the block of a shard may be.
        workers: processes that decode and pack; 0 does it in a thread of this one.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        join: Callable[[Sequence[Mapping[str, np.ndarray]]], Any],
        settings: Mapping[str, Any],
        block_bytes: int,
        workers: int = 0,
    ):
        if workers and len(shards) % workers:
            raise UserError(f"data.workers={workers} must divide the {len(shards)} logical shards of a process")
        if not flags.FLAGS.is_parsed():  # Grain reads an absl flag when it starts its threads
            flags.FLAGS.mark_as_parsed()
        self._shards, self._join, self._workers = shards, join, workers
        self._settings = json.loads(json.dumps(settings))  # tuples as lists, as a restored state has them
        self._states = {str(shard.index): shard.get_state() for shard in shards}
        self._block_bytes = block_bytes
        self._iterator: grain.DatasetIterator | None = None
        self._rings: list[Ring | None] = []  # of each shard while there are workers

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Any:
        return self.next_with_keys()[0]

    def next_with_keys(self) -> tuple[Any, list[list[str]]]:
        """The next batch, and the keys of the samples of each of its rows."""
        if self._iterator is None:
            self._iterator = self._start()
        blocks, keys = [], []
        for shard, ring in zip(self._shards, self._rings, strict=True):
            block = next(self._iterator)
            info = json.loads(block.pop("info"))
            blocks.append(ring.read(info["written"]) if ring and info["written"] else block)
            self._states[str(shard.index)] = info["state"]
            keys += info["keys"]
        batch = self._join(blocks)
        for ring in self._rings:
            if ring:
                ring.release()
        return batch, keys

    @property
    def patterns(self) -> dict[str, str]:
        """Where the files of each source are, by its name in reports ("generate/0")."""
        return self._shards[0].patterns

    def get_state(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return {"settings": self._settings, "shards": dict(self._states)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues behind the last batch that the state has seen; it may hold the shards of other processes too.

        Raises UserError naming the settings that are not those of the state.
        """
        saved = state.get("settings", {})
        changed = [
            f"{name}={self._settings.get(name)!r} (was {saved.get(name)!r})"
            for name in sorted({*saved, *self._settings})
            if saved.get(name) != self._settings.get(name)
        ]
        if changed:
            raise UserError(f"the checkpoint's data stream had other settings: {'; '.join(changed)}")
        self.close()
        self._states = {name: state["shards"][name] for name in self._states}

    def close(self) -> None:
        """Stops the workers; the stream starts again where it was when it is read again."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None
            for ring in self._rings:
                if ring:
                    ring.close()

    def _start(self) -> grain.DatasetIterator:
        self._rings = [Ring(RING_SLOTS, self._block_bytes) if self._workers else None for _ in self._shards]
        states = [self._states[str(shard.index)] for shard in self._shards]
        blocks = _Blocks(list(zip(self._shards, states, self._rings, strict=True)))
        if self._workers:
            ahead = PREFETCH * len(self._shards) // self._workers
            options = grain.MultiprocessingOptions(self._workers, per_worker_buffer_size=ahead)
            return iter(blocks.mp_prefetch(options, worker_init_fn=_end_with_parent))
        ahead = PREFETCH * len(self._shards)
        return iter(grain.experimental.ThreadPrefetchIterDataset(blocks, prefetch_buffer_size=ahead))


def _end_with_parent(worker: int, workers: int) -> None:
    """Lets this worker end when its parent is gone without having stopped it, as after a kill -9."""
    del worker, workers

    def wait() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True, name="end-with-parent").start()


def drop_reports(state: Mapping[str, Any]) -> dict[str, DropReport]:
    """What each source has given up to a state of the stream."""
    merged: dict[str, DropReport] = {}
    for shard in state["shards"].values():
        for name, values in shard["reports"].items():
            merged.setdefault(name, DropReport()).merge(DropReport.from_json(values))
    return merged


def format_reports(state: Mapping[str, Any], patterns: Mapping[str, str]) -> str:
    """A line per source: samples, drops by reason, samples cut to fit into a row, the first offenders.

    Args:
        patterns: `Stream.patterns`.
    """
    lines = []
    for name, report in drop_reports(state).items():
        cut = sum(shard["truncated"][name] for shard in state["shards"].values())
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(report.reasons.items()))
        dropped = f"{report.dropped:,} dropped ({reasons})" if reasons else "none dropped"
        offenders = f"; first: {report.offenders()}" if report.examples else ""
        counts = f"{report.seen:,} samples, {dropped}, {cut:,} cut to fit into a row"
        lines.append(f"data {name} ({patterns[name]}): {counts}{offenders}")
    return "\n".join(lines)


class _Blocks(grain.IterDataset):
    """The rows of one step of the first shard, of the second, ..., again of the first, ...

    Each block carries the state of its shard behind it: the iterator's own state is not used, since it would depend on
    the number of workers.
    """

    def __init__(self, shards: Sequence[tuple[Shard, Mapping[str, Any], Ring | None]]):
        super().__init__()
        self._shards = shards

    def set_slice(self, sl: slice, sequential_slice: bool = False) -> None:
        """Grain gives worker w of W the slice w::W and takes blocks from the workers in turn."""
        del sequential_slice
        self._shards = self._shards[sl]

    def __iter__(self) -> grain.DatasetIterator:
        return _BlockIterator(self._shards)


class _BlockIterator(grain.DatasetIterator):
    def __init__(self, shards: Sequence[tuple[Shard, Mapping[str, Any], Ring | None]]):
        super().__init__()
        self._shards = shards
        self._next = 0

    def __next__(self) -> dict[str, Any]:
        turn, place = divmod(self._next, len(self._shards))
        shard, state, ring = self._shards[place]
        if turn == 0:
            shard.set_state(state)
        self._next += 1
        block, keys = shard.next_block()
        written = ring.write(block) if ring else None
        info = {"state": shard.get_state(), "keys": keys, "written": written}
        return ({} if written else block) | {"info": json.dumps(info)}

    def get_state(self) -> dict[str, Any]:
        return {"next": self._next}

    def set_state(self, state: dict[str, Any]) -> None:
        raise NotImplementedError("the stream is resumed by the states of its shards")


def packed_rows(
    sources: Mapping[str, Sequence[RecordSource]],
    ratio: Mapping[str, Schedule],
    builder: SampleBuilder,
    *,
    weights: Mapping[str, Sequence[Schedule]] | None = None,
    unit: str = "samples",
    batch_size: int,
    num_shards: int,
    packing_bins: int,
    seed: int,
    max_drop_rate: float,
    settings: Mapping[str, Any] | None = None,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Stream:
    """Batches of packed rows that mix tasks at `ratio`: those of this process, of `batch_size` in all.

    Args:
        sources: per task.
        ratio: weight per task of `sources`, counted in `unit`.
        builder: turns a record into a sample.
        weights: per task, of its sources among each other; the number of records where it is not given.
    """
    if unit not in UNITS:
        raise UserError(f"data.ratio_unit={unit!r} is not one of {UNITS}")
    components = []
    for task, records in sources.items():
        given = weights[task] if weights else [len(source) for source in records]
        for i, (source, weight) in enumerate(zip(records, given, strict=True)):
            if ever_positive(weight):
                name = f"{task}/{i}"
                dataset = _shuffled(source, name, seed, num_shards).random_map(builder)
                components.append(Component(name, source.pattern, task, weight, dataset))
    rows = _rows_per_shard(batch_size, num_shards)
    slots = dict(zip(IMAGE_FEATURES, (builder.understanding_slots, builder.generation_slots), strict=True))
    if builder.stored_codes:
        del slots["gen_pixels"]
    make = functools.partial(
        Shard,
        num_shards=num_shards,
        components=components,
        ratio=ratio,
        unit=unit,
        capacity=(builder.row_length, builder.understanding_slots, builder.generation_slots),
        bins=packing_bins,
        lengths=_row_share,
        assemble=functools.partial(assemble, row_length=builder.row_length, images=tuple(slots)),
        rows_per_step=rows,
        max_drop_rate=max_drop_rate,
    )
    sizes = dict(zip(IMAGE_FEATURES, (builder.understanding_size, builder.generation_size), strict=True))
    largest = block_bytes(rows, builder.row_length, {name: (count, sizes[name]) for name, count in slots.items()})
    shards = [make(i) for i in _own_shards(num_shards, process_index, process_count)]
    return Stream(shards, functools.partial(_packed_batch, slots=slots), settings or {}, largest, workers)


def square_images(
    sources: Sequence[RecordSource],
    *,
    size: int,
    crop: Crop = CENTRE,
    batch_size: int,
    num_shards: int,
    seed: int,
    max_drop_rate: float,
    settings: Mapping[str, Any] | None = None,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Stream:
    """Batches of training images for the VQ tokenizer, cropped to squares."""
    rows = _rows_per_shard(batch_size, num_shards)
    make_sample = functools.partial(square_image, size=size, crop=crop)
    components = []
    for i, source in enumerate(sources):
        name = f"generate/{i}"
        dataset = _shuffled(source, name, seed, num_shards).random_map(make_sample)
        components.append(Component(name, source.pattern, "generate", len(source), dataset))
    make = functools.partial(
        Shard,
        num_shards=num_shards,
        components=components,
        ratio={"generate": 1.0},
        unit="samples",
        capacity=(1,),
        bins=1,
        lengths=_one,
        assemble=_stacked,
        rows_per_step=rows,
        max_drop_rate=max_drop_rate,
    )
    shards = [make(i) for i in _own_shards(num_shards, process_index, process_count)]
    return Stream(shards, _image_batch, settings or {}, rows * size * size * 3, workers)


def _shuffled(source: RecordSource, name: str, seed: int, num_shards: int) -> grain.MapDataset:
    """All records, reshuffled each epoch, endless; shards are strided slices of it, so they never overlap."""
    if len(source) < num_shards:
        raise UserError(f"data.num_shards={num_shards} is more than the {len(source)} records of source {name}")
    return grain.MapDataset.source(source).seed(zlib.crc32(f"{seed}/{name}".encode())).shuffle().repeat()


def _own_shards(num_shards: int, process_index: int, process_count: int) -> range:
    if num_shards % process_count:
        raise UserError(f"data.num_shards={num_shards} must be a multiple of the {process_count} processes")
    share = num_shards // process_count
    return range(process_index * share, (process_index + 1) * share)


def _rows_per_shard(batch_size: int, num_shards: int) -> int:
    if num_shards < 1 or batch_size % num_shards:
        raise UserError(f"train.batch_size={batch_size} must be a multiple of data.num_shards={num_shards}")
    return batch_size // num_shards


def _row_share(sample: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    """Tokens, understanding images, generation images of a sample."""
    und, gen = IMAGE_FEATURES
    images = len(sample[gen]) if gen in sample else int(sample["image_weights"].any())
    return len(sample["tokens"]), len(sample[und]), images


def _one(sample: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    return (1,)


def _packed_batch(blocks: Sequence[Mapping[str, np.ndarray]], slots: Mapping[str, int]) -> PackedBatch:
    return PackedBatch(**join_blocks(blocks, slots))


def _image_batch(blocks: Sequence[Mapping[str, np.ndarray]]) -> ImageBatch:
    return ImageBatch(np.concatenate([block["pixels"] for block in blocks]))


def _stacked(rows: Sequence[Sequence[Item]]) -> dict[str, np.ndarray]:
    return {name: np.stack([item.sample[name] for (item,) in rows]) for name in rows[0][0].sample}
