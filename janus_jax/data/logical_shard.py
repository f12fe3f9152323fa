"""One logical shard of the stream: an endless, resumable sequence of rows, and a pure function of its options.

Its state says how far every source was read, which source is served next, and which samples lie in rows that are still
open. Only those samples are read again on a resume: nothing is replayed, however long the run was.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from janus_jax.data.dropped_samples import DroppedSample, DropReport
from janus_jax.data.mixture import Schedule, StrideScheduler
from janus_jax.data.packing import OpenRow, PackedSample, Packer
from janus_jax.data.sample_builder import BuiltSample
from janus_jax.errors import UserError

MIN_DROPS = 100  # Number of dropped samples from which on a drop rate means anything.


class TaskSource(NamedTuple):
    """One source of one task."""

    name: str  # For example "understand/0".
    pattern: str  # Glob pattern of its files, for messages.
    records: int  # Number of its records, for messages.
    task: str
    weight: Schedule  # Weight among the sources of its task.
    samples: grain.MapDataset  # Endless. An element is a BuiltSample or DroppedSample, the same one at each access.


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardOptions:
    """What all logical shards of a stream have in common."""

    num_shards: int
    sources: Sequence[TaskSource]
    ratio: Mapping[str, Schedule]  # Share of each task, counted in `ratio_unit`.
    ratio_unit: str  # One of RATIO_UNITS; "rows" keeps the tasks in different rows.
    capacity: Sequence[int]  # What a row holds; see Packer.
    open_rows: int  # Number of rows that are filled at a time.
    measure: Callable[[Mapping[str, np.ndarray]], tuple[int, ...]]  # How much a sample uses of each capacity.
    assemble: Callable[[Sequence[Sequence[PackedSample]]], dict[str, np.ndarray]]  # Samples of rows to arrays.
    rows_per_step: int  # Rows of one shard in a training step; schedules count steps.
    max_drop_rate: float  # Fraction of a source's samples that may be dropped.


class LogicalShard:
    """Logical shard `index`: it reads every num_shards-th element of each source."""

    def __init__(self, index: int, options: ShardOptions):
        self.index = index
        self._options = options
        self._sources = {source.name: source for source in options.sources}
        self._samples = {source.name: source.samples[index :: options.num_shards] for source in options.sources}
        self._cursors = dict.fromkeys(self._sources, 0)
        offset = index / options.num_shards
        self._tasks = StrideScheduler(options.ratio, offset)
        self._sources_of = {
            task: StrideScheduler({s.name: s.weight for s in options.sources if s.task == task}, offset)
            for task in options.ratio
        }
        self._packer = Packer(options.capacity, options.open_rows, one_task=options.ratio_unit == "rows")
        self._reports = {name: DropReport() for name in self._sources}
        self._truncated = dict.fromkeys(self._sources, 0)
        self._rows = 0

    @property
    def patterns(self) -> dict[str, str]:
        """Glob pattern of each source's files."""
        return {name: source.pattern for name, source in self._sources.items()}

    def next_block(self) -> tuple[dict[str, np.ndarray], list[list[str]]]:
        """The rows of one step, and the keys of the samples in each row.

        Raises UserError when too many samples of a source are dropped: a source of bad samples would never fill a row.
        """
        rows = [self._next_row() for _ in range(self._options.rows_per_step)]
        return self._options.assemble(rows), [[sample.key for sample in samples] for samples in rows]

    def get_state(self) -> dict[str, Any]:
        """State after the last block returned, as values that JSON can hold."""
        return {
            "rows": self._rows,
            "cursors": dict(self._cursors),
            "tasks": self._tasks.get_state(),
            "sources": {task: scheduler.get_state() for task, scheduler in self._sources_of.items()},
            "open": [[list(sample.origin) for sample in row.samples] for row in self._packer.rows],
            "reports": {name: report.to_json() for name, report in self._reports.items()},
            "truncated": dict(self._truncated),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Inverse of `get_state`; reads the samples of the open rows again."""
        self._rows = state["rows"]
        self._cursors = dict(state["cursors"])
        self._tasks.set_state(state["tasks"])
        for task, scheduler in self._sources_of.items():
            scheduler.set_state(state["sources"][task])
        self._packer.rows = [self._reopen(origins) for origins in state["open"]]
        self._reports = {name: DropReport.from_json(values) for name, values in state["reports"].items()}
        self._truncated = dict(state["truncated"])

    def _next_row(self) -> list[PackedSample]:
        while True:
            name = self._choose()
            position = self._cursors[name]
            self._cursors[name] = position + 1
            result = self._samples[name][position]
            self._count(name, result)
            if isinstance(result, DroppedSample):
                continue
            sample = self._to_pack(name, position, result)
            self._serve(name, sample)
            if (row := self._packer.add(sample)) is not None:
                if self._options.ratio_unit == "rows":
                    self._tasks.served(row[0].task, 1)
                self._rows += 1
                return row

    def _choose(self) -> str:
        """Name of the source to read next."""
        step = self._rows // self._options.rows_per_step
        task = self._tasks.next(step)
        name = self._sources_of[task].next(step) if task else None
        if name is None:
            raise UserError(f"data.ratio and data.sources: nothing has a weight at step {step}")
        return name

    def _serve(self, name: str, sample: PackedSample) -> None:
        self._sources_of[sample.task].served(name, 1)
        if self._options.ratio_unit != "rows":
            self._tasks.served(sample.task, 1 if self._options.ratio_unit == "samples" else sample.lengths[0])

    def _count(self, name: str, result: BuiltSample | DroppedSample) -> None:
        report = self._reports[name]
        if isinstance(result, DroppedSample):
            report.drop(result)
            source = self._sources[name]
            times = report.seen * self._options.num_shards / source.records  # As far as this shard can tell.
            origin = f"{name}, {source.pattern}, {source.records:,} records, read {times:.1f} times"
            report.check(self._options.max_drop_rate, f"data.max_drop_rate ({origin})", at_least=MIN_DROPS)
        else:
            report.keep()
            self._truncated[name] += result.truncated

    def _to_pack(self, name: str, position: int, built: BuiltSample) -> PackedSample:
        lengths = self._options.measure(built.sample)
        return PackedSample(self._sources[name].task, lengths, built.sample, built.key, (name, position))

    def _reopen(self, origins: Sequence[tuple[str, int]]) -> OpenRow:
        samples = []
        for name, position in origins:
            result = self._samples[name][position]
            if isinstance(result, DroppedSample):
                raise UserError(
                    f"{result.key}: this sample was used before the resume and is now dropped ({result.reason}); "
                    "its file has changed"
                )
            samples.append(self._to_pack(name, position, result))
        used = [sum(lengths) for lengths in zip(*(sample.lengths for sample in samples), strict=True)]
        return OpenRow(samples, used)
