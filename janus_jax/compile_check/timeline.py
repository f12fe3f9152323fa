"""Replays a compiled program in its scheduled order and adds up where the time goes.

A timeline of one TensorCore runs the instructions in the order of the text. Collectives, copies between memories and
transfers to the host run beside it; their `-done` instruction costs only the time that is left to wait. The body of a
loop counts as often as it runs.

An operation has three prices. `low` is the roofline, max(flops / peak, HBM bytes / bandwidth). In `mid`, the predicted
time, matrix products take the compiler's own estimate if that is longer. In `high` all operations do. Pallas kernels
are priced from their own program: in `low` matrix unit and vector unit work at the same time, otherwise one after the
other.

These are not modelled: copies and compute that share the bandwidth of HBM, work that depends on the data, reading
input, gaps between programs, and (except in `high`) products that the vector unit limits. The bandwidth between slices
is an assumption. The model ranks programs for one topology and one compiler; it has not been calibrated on hardware.
"""

import collections
import dataclasses
import enum
from collections.abc import Mapping

from janus_jax.compile_check.collectives import Transfer, between_slices, rendezvous, transfer
from janus_jax.compile_check.hlo import (
    HOST,
    VMEM,
    Computation,
    Instruction,
    Module,
    collective_kind,
    matmul_flops,
    trip_count,
)
from janus_jax.compile_check.pallas import KernelWork, kernel_work
from janus_jax.compile_check.parts import part
from janus_jax.compile_check.traffic import anywhere, hbm_bytes
from janus_jax.hardware import HOST_BANDWIDTH, Machine

FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
FREE |= {"recv"}  # only its `-done` waits
OFF_LINKS = {"copies", "slices"}  # resources that do not wait for the links between chips
NO_ESTIMATE = 2**63 - 1  # cycles that the compiler writes where it has no estimate (libtpu 0.0.42.1)
# An operation without a compiler's estimate that moves fewer bytes than this is bookkeeping and costs nothing.
NEGLIGIBLE = 1e5


class Pricing(enum.Enum):
    """The three prices of an operation."""

    LOW = "low"
    MID = "mid"
    HIGH = "high"


class Sums(collections.Counter[str]):
    """Totals by name: seconds `time/...`, bytes `hbm`, operations `flops/...`.

    The seconds of operations count again by the part of the model, `part/...`.
    For each kind of collective: bytes that are sent, `wire/...`; seconds that it would take with the links to itself,
    `transfer/...`; and seconds that the TensorCore waits for it, `exposed/...`.
    """

    def add(self, name: str, value: float) -> None:
        self[name] += value  # type: ignore[assignment]

    def add_all(self, other: Mapping[str, float], times: float = 1.0) -> None:
        for name, value in other.items():
            self.add(name, times * value)


@dataclasses.dataclass
class _Span:
    """Time of a computation, and how much of it collectives that its caller had started could use."""

    seconds: float
    sums: Sums
    overlapped: Sums  # channel -> seconds


class Timeline:
    """Replays a module on a machine."""

    def __init__(self, module: Module, machine: Machine):
        self.module, self.machine = module, machine
        self.unknown_loops: set[str] = set()  # loops whose trip count could not be read; they are counted once
        self._spans: dict[tuple[str, Pricing], _Span] = {}
        self._kernels: dict[str, KernelWork] = {}

    def run(self, pricing: Pricing) -> tuple[float, Sums]:
        """Seconds of the whole program, and its totals."""
        span = self.computation(self.module.entry, pricing)
        return span.seconds, span.sums

    def computation(self, name: str, pricing: Pricing) -> _Span:
        if (name, pricing) not in self._spans:
            self._spans[name, pricing] = _Replay(self, self.module.computations[name], pricing).run()
        return self._spans[name, pricing]

    def operation(self, instruction: Instruction, computation: Computation, pricing: Pricing, sums: Sums) -> float:
        """Seconds of an instruction on the TensorCore. Its totals are added to `sums`."""
        is_kernel = instruction.op == "custom-call" and '"tpu_custom_call"' in instruction.attributes
        if instruction.op in FREE or (instruction.op == "custom-call" and not is_kernel):
            return 0.0
        machine = self.machine
        cycles = int(instruction.attribute("estimated_cycles", "0"))
        estimate = 0.0 if cycles == NO_ESTIMATE else cycles / machine.chip.clock
        moved = hbm_bytes(self.module, instruction, computation)
        flops = matmul_flops(self.module, instruction, computation)
        seconds = max(flops / machine.flops, moved / machine.hbm_bandwidth)
        if is_kernel:
            work = self._kernel(instruction)
            matrix, vector = work.padded_flops / machine.flops, work.vector_operations / machine.vector_rate
            seconds = max(seconds, max(matrix, vector) if pricing is Pricing.LOW else matrix + vector)
            kind = "kernel"
            sums.add("flops/kernel", work.flops)
        else:
            if not estimate and not flops and moved < NEGLIGIBLE:
                return 0.0
            if pricing is Pricing.HIGH or (pricing is Pricing.MID and flops):
                seconds = max(seconds, estimate)
            kind = "matmul" if flops else "copy" if instruction.op == "copy" else "elementwise"
            sums.add("flops/matmul", flops)
            sums.add("unpriced", flops if cycles == NO_ESTIMATE else 0.0)
        sums.add("hbm", moved)
        sums.add(f"time/{kind}", seconds)
        sums.add(f"part/{part(instruction.source)}", seconds)
        return seconds

    def _kernel(self, instruction: Instruction) -> KernelWork:
        body = instruction.attribute("body") or instruction.name
        if body not in self._kernels:
            self._kernels[body] = kernel_work(instruction, self.machine.chip.mxu_edge)
        return self._kernels[body]

    def collective_in(
        self, instruction: Instruction, computation: Computation
    ) -> tuple[Instruction, Computation] | None:
        """The collective that an instruction is or contains, with the computation that it is in; None without one."""
        if collective_kind(instruction.op):
            return instruction, computation
        if instruction.op not in ("fusion", "call-start", "async-start"):
            return None
        inside = self.module.called(instruction)
        found = (self.collective_in(inner, inside) for inner in inside.values())
        return next((pair for pair in found if pair), None)


class _Replay:
    """The replay of one computation with one kind of price."""

    def __init__(self, timeline: Timeline, computation: Computation, pricing: Pricing):
        self.timeline, self.computation, self.pricing = timeline, computation, pricing
        self.now = 0.0
        self.sums, self.overlapped = Sums(), Sums()
        self.free: dict[str, float] = collections.defaultdict(float)  # links or copy engine -> time when it is free
        self.arrival: dict[str, float] = {}  # name of a start -> time when its transfer is complete
        self.offloaded: dict[str, float] = {}  # SparseCore collective -> its seconds; it begins at its `call-update`
        self.sent: dict[str, str] = {}  # rendezvous of a transfer between slices -> its kind
        self.fused: dict[str, float] = {}  # channel of a collective that is fused with computation -> seconds left

    def run(self) -> _Span:
        for instruction in self.computation.values():
            self._step(instruction)
        return _Span(self.now, self.sums, self.overlapped)

    def _step(self, instruction: Instruction) -> None:
        op = instruction.op
        collective = None if op == "call" else self.timeline.collective_in(instruction, self.computation)
        if op in ("while", "call", "conditional"):
            self._nested(instruction)
        elif op == "call-update" and instruction.operands[0] in self.offloaded:
            self._begin(instruction.name, "all", self.offloaded[instruction.operands[0]])
        elif op in ("send", "recv-done"):
            self._between_slices(instruction)
        elif op.endswith("-done"):
            self._wait(instruction)
        elif collective is not None:
            self._collective(instruction, *collective)
        elif op.endswith("-start"):
            self._copy(instruction)
        elif not op.endswith("-update"):
            self.now += self.timeline.operation(instruction, self.computation, self.pricing, self.sums)

    def _nested(self, instruction: Instruction) -> None:
        times = 1
        if instruction.op == "while":
            known = trip_count(self.timeline.module, instruction, self.computation)
            times = known if known is not None else 1
            if known is None:
                self.timeline.unknown_loops.add(instruction.name)
        names = self.timeline.module.bodies(instruction)
        spans = [self.timeline.computation(name, self.pricing) for name in names]
        span = max(spans, key=lambda span: span.seconds, default=_Span(0.0, Sums(), Sums()))
        self.now += times * span.seconds
        self.sums.add_all(span.sums, times)
        for channel, seconds in span.overlapped.items():
            self._overlap(channel, times * seconds)

    def _overlap(self, channel: str, seconds: float) -> None:
        if channel in self.fused:
            self.fused[channel] = max(0.0, self.fused[channel] - seconds)
        else:
            self.overlapped.add(channel, seconds)

    def _begin(self, name: str, resource: str, seconds: float) -> None:
        ready = max(self.now, self.free[resource], self.free["all"] if resource not in OFF_LINKS else 0.0)
        self.arrival[name] = self.free[resource] = ready + seconds

    def _wait(self, instruction: Instruction) -> None:
        name = instruction.operands[0]
        while name not in self.arrival and name in self.computation and self.computation[name].operands:
            name = self.computation[name].operands[0]
        waited = self.arrival.get(name, 0.0) - self.now
        started = self.computation.get(name)
        if started is not None and started.op == "call-update":
            started = self.computation[started.operands[0]]
        found = self.timeline.collective_in(started, self.computation) if started is not None else None
        self._expose(transfer(*found, self.timeline.machine).kind if found else None, waited)

    def _expose(self, kind: str | None, seconds: float) -> None:
        """Waits for a collective of this kind, or for a copy if `kind` is None, unless it is complete already."""
        seconds = max(0.0, seconds)
        self.sums.add("time/exposed collectives" if kind else "time/exposed copies", seconds)
        if kind:
            self.sums.add(f"exposed/{kind}", seconds)
        self.now += seconds

    def _between_slices(self, instruction: Instruction) -> None:
        """A `send` begins a transfer, and the `recv-done` with the same rendezvous waits for it."""
        moved = between_slices(instruction, self.computation, self.timeline.machine)
        if moved is not None:
            meeting = rendezvous(instruction)
            self.sent[meeting] = moved.kind
            self._count(moved)
            self._begin(meeting, moved.links, moved.seconds)
        elif instruction.op == "recv-done":
            meeting = rendezvous(self.computation[instruction.operands[0]])
            self._expose(self.sent.get(meeting), self.arrival.get(meeting, 0.0) - self.now)

    def _collective(self, instruction: Instruction, inner: Instruction, inside: Computation) -> None:
        moved = transfer(inner, inside, self.timeline.machine)
        channel = inner.attribute("channel_id")
        calls = [other.attributes for other in inside.values() if other.op == "custom-call"]
        in_fusion = instruction.op == "fusion"
        begins = in_fusion and any("AsyncCollectiveStart" in text for text in calls)
        ends = in_fusion and any("AsyncCollectiveDone" in text for text in calls)
        if ends:
            self._expose(moved.kind, self.fused.pop(channel, 0.0))
        elif in_fusion and not begins and "async_collective_fusion_config" in inner.attributes:
            seconds = self.timeline.operation(instruction, self.computation, self.pricing, self.sums)
            self.now += seconds
            self._overlap(channel, seconds)
        else:
            self._count(moved)
            self._start(instruction, moved, channel, begins)

    def _start(self, instruction: Instruction, moved: Transfer, channel: str, begins_fusion: bool) -> None:
        if begins_fusion:
            self.fused[channel] = moved.seconds
        elif instruction.op == "call-start":
            self.offloaded[instruction.name] = moved.seconds
        elif instruction.op.endswith("-start"):
            self._begin(instruction.name, moved.links, moved.seconds)
        else:
            self._expose(moved.kind, moved.seconds)

    def _count(self, moved: Transfer) -> None:
        self.sums.add(f"wire/{moved.kind}", moved.wire_bytes)
        self.sums.add(f"transfer/{moved.kind}", moved.seconds)

    def _copy(self, instruction: Instruction) -> None:
        """Begins a copy between HBM, VMEM and the memory of the host."""
        spaces = {shape.space for shape in instruction.shapes}
        sizes = [anywhere([shape]) for shape in instruction.shapes if shape.dims]
        size = min((size for size in sizes if size), default=0.0)
        if HOST in spaces:
            self._begin(instruction.name, "host", size / HOST_BANDWIDTH)
        else:
            moved = size * (1 if VMEM in spaces else 2)
            self.sums.add("hbm copies", moved)
            self._begin(instruction.name, "copies", moved / self.timeline.machine.hbm_bandwidth)
