"""The endless, resumable stream of batches that training reads.

The stream is a pure function of files, settings and seed. It is cut into S fixed *logical shards* (logical_shard.py),
and rows [s * B / S, (s + 1) * B / S) of every batch of B rows come from shard s. Every process owns some shards and
divides them among its worker processes. So the rows depend neither on the number of processes nor on the number of
workers, and the state is one small dict per shard. A shard gives contiguous rows, so that the rows of a process are
those of its devices.
"""

import dataclasses
import json
import multiprocessing
import os
import sys
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from janus_jax.data.dropped_samples import DropReport
from janus_jax.data.logical_shard import LogicalShard
from janus_jax.data.record_reader import RecordSource
from janus_jax.data.shared_memory_ring import Ring
from janus_jax.data.system_limits import require_shared_memory
from janus_jax.errors import UserError

PREFETCH = 2  # Number of blocks prepared ahead for each shard.
# Number of blocks of a shard that may exist at a time: the worker prepares PREFETCH, Grain has taken over as many, and
# one each is in the hands of the worker and of the reader.
RING_SLOTS = 2 * PREFETCH + 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """How a stream is cut into shards, checked and read; the same for every kind of row."""

    batch_size: int  # Number of rows of a batch, those of all processes together.
    num_shards: int  # Number of logical shards.
    seed: int
    max_drop_rate: float  # Fraction of a source's samples that may be dropped.
    # Everything that the rows depend on, by the name of its config field; a state with other settings is refused.
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    workers: int = 0  # Number of processes that decode and pack; 0 does it in a thread of this process.
    shared_memory: bool = True  # Whether they hand over rows in shared memory; otherwise through pipes, more slowly.
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self) -> None:
        if self.num_shards < 1 or self.batch_size % self.num_shards:
            raise UserError(
                f"train.batch_size={self.batch_size} must be a multiple of data.num_shards={self.num_shards}"
            )
        if self.num_shards % self.process_count:
            raise UserError(
                f"data.num_shards={self.num_shards} must be a multiple of the {self.process_count} processes"
            )
        if self.workers and len(self.local_shards) % self.workers:
            raise UserError(
                f"data.workers={self.workers} must divide the {len(self.local_shards)} logical shards of a process"
            )

    @property
    def rows_per_shard(self) -> int:
        return self.batch_size // self.num_shards

    @property
    def local_shards(self) -> range:
        """Indices of the logical shards of this process."""
        count = self.num_shards // self.process_count
        return range(self.process_index * count, (self.process_index + 1) * count)

    def shuffled(self, records: RecordSource, name: str) -> grain.MapDataset:
        """All records without end, in a new order each epoch. Shards are strided slices of it and never overlap."""
        if len(records) < self.num_shards:
            raise UserError(
                f"data.num_shards={self.num_shards} is more than the {len(records)} records of source {name}"
            )
        seed = zlib.crc32(f"{self.seed}/{name}".encode())
        return grain.MapDataset.source(records).seed(seed).shuffle().repeat()


class Stream:
    """Endless batches from the logical shards of one process; `get_state` belongs to the last batch returned.

    Args:
        shards: The logical shards of this process, in order.
        join: Makes one batch of a block of each shard.
        block_bytes: Upper limit on the bytes of one shard's block.

    Raises:
        UserError: the workers would need more shared memory than there is.
    """

    def __init__(
        self,
        shards: Sequence[LogicalShard],
        join: Callable[[Sequence[Mapping[str, np.ndarray]]], Any],
        block_bytes: int,
        options: StreamOptions,
    ):
        if not flags.FLAGS.is_parsed():  # Grain reads an absl flag when it starts its threads.
            flags.FLAGS.mark_as_parsed()
        self._shards, self._join, self._workers = shards, join, options.workers
        self._ring_bytes = block_bytes if options.workers and options.shared_memory else 0  # 0: there are no rings
        require_shared_memory(len(shards) * RING_SLOTS * self._ring_bytes, options.workers)
        self._settings = json.loads(json.dumps(options.settings))  # Tuples become lists, as in a restored state.
        self._states = {str(shard.index): shard.get_state() for shard in shards}
        self._iterator: grain.DatasetIterator | None = None
        self._rings: list[Ring | None] = []  # One per shard while there are workers.

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
        """Glob pattern of the files of each source, by its name in reports, such as "generate/0"."""
        return self._shards[0].patterns

    def get_state(self) -> dict[str, Any]:
        """State after the last batch returned, as values that JSON can hold."""
        return {"settings": self._settings, "shards": dict(self._states)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues after the last batch that the state has seen. The state may hold shards of other processes too.

        Raises UserError that names every setting whose value differs from the state's.
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
        """Stops the workers. The stream continues where it was when it is read again."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None
            for ring in self._rings:
                if ring:
                    ring.close()

    def _start(self) -> grain.DatasetIterator:
        self._rings = [Ring(RING_SLOTS, self._ring_bytes) if self._ring_bytes else None for _ in self._shards]
        states = [self._states[str(shard.index)] for shard in self._shards]
        blocks = _Blocks(list(zip(self._shards, states, self._rings, strict=True)))
        if self._workers:
            ahead = PREFETCH * len(self._shards) // self._workers
            options = grain.MultiprocessingOptions(self._workers, per_worker_buffer_size=ahead)
            dataset = blocks.mp_prefetch(options, worker_init_fn=_end_with_parent)
            if not self._ring_bytes:  # Grain itself shares arrays from a size on, too.
                no_array = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
                dataset = grain.experimental.WithOptionsIterDataset(dataset, no_array)
            return iter(dataset)
        ahead = PREFETCH * len(self._shards)
        return iter(grain.experimental.ThreadPrefetchIterDataset(blocks, prefetch_buffer_size=ahead))


def _end_with_parent(worker: int, workers: int) -> None:
    """Ends this worker when its parent process is gone without having stopped it, as after a kill -9."""
    del worker, workers

    def wait() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True, name="end-with-parent").start()


def drop_reports(state: Mapping[str, Any]) -> dict[str, DropReport]:
    """Counts of each source up to a state of the stream."""
    merged: dict[str, DropReport] = {}
    for shard in state["shards"].values():
        for name, values in shard["reports"].items():
            merged.setdefault(name, DropReport()).merge(DropReport.from_json(values))
    return merged


def drop_metrics(state: Mapping[str, Any]) -> dict[str, float]:
    """Shares of the samples of each source that were dropped, `dropped/SOURCE`, and by reason, `dropped/SOURCE/REASON`.

    A reason for which nothing was dropped has no entry.
    """
    metrics = {}
    for name, report in drop_reports(state).items():
        metrics[f"dropped/{name}"] = report.rate
        metrics |= {f"dropped/{name}/{reason}": count / report.seen for reason, count in report.reasons.items()}
    return metrics


def format_reports(state: Mapping[str, Any], patterns: Mapping[str, str]) -> str:
    """One line per source: samples, drops by reason, samples that were cut to fit into a row, the first drops.

    If the source that gave most samples has a notable loss, the last line says so. A source of which no sample is in a
    delivered batch yet has no counts, and no line.

    Args:
        patterns: `Stream.patterns`.
    """
    lines = []
    reports = drop_reports(state)
    for name, report in reports.items():
        if not report.seen:
            continue
        cut = sum(shard["truncated"][name] for shard in state["shards"].values())
        dropped = f"{report.dropped:,} dropped ({report.describe_reasons()})" if report.dropped else "none dropped"
        examples = f"; first: {report.describe_examples()}" if report.examples else ""
        counts = f"{report.seen:,} samples, {dropped}, {cut:,} cut to fit into a row"
        lines.append(f"data {name} ({patterns[name]}): {counts}{examples}")
    largest = max(reports, key=lambda name: reports[name].seen)
    lines += filter(None, [reports[largest].notable_loss(f"data {largest} ({patterns[largest]})")])
    return "\n".join(lines)


class _Blocks(grain.IterDataset):
    """Blocks of rows, one of each shard in turn.

    Each block carries the state of its shard after it. The iterator's own state is not used, since it would depend on
    the number of workers.
    """

    def __init__(self, shards: Sequence[tuple[LogicalShard, Mapping[str, Any], Ring | None]]):
        super().__init__()
        self._shards = shards

    def set_slice(self, sl: slice, sequential_slice: bool = False) -> None:
        """Called by Grain, which gives worker w of W the slice w::W and takes blocks from the workers in turn."""
        del sequential_slice
        self._shards = self._shards[sl]

    def __iter__(self) -> grain.DatasetIterator:
        return _BlockIterator(self._shards)


class _BlockIterator(grain.DatasetIterator):
    def __init__(self, shards: Sequence[tuple[LogicalShard, Mapping[str, Any], Ring | None]]):
        super().__init__()
        self._shards = shards
        self._next = 0

    def __next__(self) -> dict[str, Any]:
        step, index = divmod(self._next, len(self._shards))
        shard, state, ring = self._shards[index]
        if step == 0:
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
