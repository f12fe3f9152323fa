"""One logical shard of the stream: an endless, resumable sequence of rows, a pure function of its settings.

Its state says where every source stands, whose turn it is, and which samples lie in rows that are not closed yet. Those
are read again on a resume: nothing is replayed, however long the run was.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from janus_jax.data.dropped_samples import Bad, DropReport
from janus_jax.data.mixture import Schedule, Turns
from janus_jax.data.packing import Item, OpenRow, Packer
from janus_jax.data.sample_builder import Kept
from janus_jax.errors import UserError

UNITS = ("samples", "tokens", "rows")
MIN_DROPS = 100  # before a drop rate means anything


class Component(NamedTuple):
    """One source of one task."""

    name: str  # "understand/0"
    pattern: str  # of its files, for messages
    task: str
    weight: Schedule  # among the sources of its task
    samples: grain.MapDataset  # endless; an element is `Kept` or `Bad`, the same one at each access


class Shard:
    """Shard `index` of `num_shards`: every num_shards-th element of each source.

    Args:
        ratio: schedule per task, in `unit`.
        unit: what the ratio counts, one of UNITS. "rows" keeps the tasks in rows of their own.
        lengths: what a sample takes of a row's capacity.
        assemble: samples per row -> arrays [rows, ...].
        rows_per_step: of this shard; the schedules count steps.
        max_drop_rate: of each source, from which on the shard gives up.
    """

    def __init__(
        self,
        index: int,
        num_shards: int,
        components: Sequence[Component],
        ratio: Mapping[str, Schedule],
        *,
        unit: str,
        capacity: Sequence[int],
        bins: int,
        lengths: Callable[[Mapping[str, np.ndarray]], tuple[int, ...]],
        assemble: Callable[[Sequence[Sequence[Item]]], dict[str, np.ndarray]],
        rows_per_step: int,
        max_drop_rate: float,
    ):
        self.index = index
        self.rows_per_step = rows_per_step
        self._samples = {c.name: c.samples[index::num_shards] for c in components}
        self.patterns = {c.name: c.pattern for c in components}
        self._task_of = {c.name: c.task for c in components}
        self._cursors = dict.fromkeys(self._samples, 0)
        self._unit = unit
        offset = index / num_shards
        self._tasks = Turns(ratio, offset)
        self._sources = {
            task: Turns({c.name: c.weight for c in components if c.task == task}, offset) for task in ratio
        }
        self._packer = Packer(capacity, bins, one_task=unit == "rows")
        self._lengths, self._assemble = lengths, assemble
        self._max_drop_rate = max_drop_rate
        self.reports = {name: DropReport() for name in self._samples}
        self.truncated = dict.fromkeys(self._samples, 0)
        self.rows = 0

    def next_block(self) -> tuple[dict[str, np.ndarray], list[list[str]]]:
        """The rows of one step, and the keys of the samples of each.

        Raises UserError when a source is mostly bad, since it would never fill a row.
        """
        rows = [self._next_row() for _ in range(self.rows_per_step)]
        return self._assemble(rows), [[item.key for item in items] for items in rows]

    def get_state(self) -> dict[str, Any]:
        """JSON-serialisable; belongs to the last block returned."""
        return {
            "rows": self.rows,
            "cursors": dict(self._cursors),
            "tasks": self._tasks.get_state(),
            "sources": {task: turns.get_state() for task, turns in self._sources.items()},
            "open": [[list(item.origin) for item in row.items] for row in self._packer.rows],
            "reports": {name: report.to_json() for name, report in self.reports.items()},
            "truncated": dict(self.truncated),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Inverse of `get_state`; reads the samples of the open rows again."""
        self.rows = state["rows"]
        self._cursors = dict(state["cursors"])
        self._tasks.set_state(state["tasks"])
        for task, turns in self._sources.items():
            turns.set_state(state["sources"][task])
        self._packer.rows = [self._reopen(origins) for origins in state["open"]]
        self.reports = {name: DropReport.from_json(values) for name, values in state["reports"].items()}
        self.truncated = dict(state["truncated"])

    def _next_row(self) -> list[Item]:
        while True:
            component = self._choose()
            place = self._cursors[component]
            self._cursors[component] = place + 1
            result = self._samples[component][place]
            self._count(component, result)
            if isinstance(result, Bad):
                continue
            item = self._item(component, place, result)
            self._serve(component, item)
            if (items := self._packer.add(item)) is not None:
                if self._unit == "rows":
                    self._tasks.served(items[0].task, 1)
                self.rows += 1
                return items

    def _choose(self) -> str:
        step = self.rows // self.rows_per_step
        task = self._tasks.next(step)
        component = self._sources[task].next(step) if task else None
        if component is None:
            raise UserError(f"data.ratio and data.sources: nothing has a weight at step {step}")
        return component

    def _serve(self, component: str, item: Item) -> None:
        self._sources[item.task].served(component, 1)
        if self._unit != "rows":
            self._tasks.served(item.task, 1 if self._unit == "samples" else item.lengths[0])

    def _count(self, component: str, result: Kept | Bad) -> None:
        report = self.reports[component]
        if isinstance(result, Bad):
            report.drop(result)
            origin = f"{component}, {self.patterns[component]}"
            report.check(self._max_drop_rate, f"data.max_drop_rate ({origin})", at_least=MIN_DROPS)
        else:
            report.keep()
            self.truncated[component] += result.truncated

    def _item(self, component: str, place: int, kept: Kept) -> Item:
        lengths = self._lengths(kept.sample)
        return Item(self._task_of[component], lengths, kept.sample, kept.key, (component, place))

    def _reopen(self, origins: Sequence[tuple[str, int]]) -> OpenRow:
        items = []
        for component, place in origins:
            result = self._samples[component][place]
            if isinstance(result, Bad):
                raise UserError(
                    f"{result.key}: was a good sample before the resume, now {result.reason}: its file changed"
                )
            items.append(self._item(component, place, result))
        used = [sum(lengths) for lengths in zip(*(item.lengths for item in items), strict=True)]
        return OpenRow(items, used)
