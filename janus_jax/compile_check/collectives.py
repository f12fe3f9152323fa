"""Time and bytes of collectives inside a slice, which is a torus of chips, and between slices."""

import collections
import re
from typing import NamedTuple

from janus_jax.compile_check.hlo import Computation, Instruction, collective_kind, device_group
from janus_jax.compile_check.traffic import anywhere
from janus_jax.hardware import SLICE_BANDWIDTH, Machine

LATENCY = 1e-6  # seconds per hop


class Transfer(NamedTuple):
    """What one collective costs."""

    kind: str
    seconds: float  # duration with the links to itself
    wire_bytes: float  # bytes that one device sends
    links: str  # name of the links; transfers on the same links wait for each other


def transfer(instruction: Instruction, computation: Computation, machine: Machine) -> Transfer:
    """Cost of a collective, from the bytes that leave a device and the links of the torus axes that its group spans."""
    kind = collective_kind(instruction.op)
    assert kind is not None
    root = next((other for other in computation.values() if other.is_root), instruction)
    if kind == "all-reduce" and root.op == "dynamic-slice" and instruction.name in root.operands:
        kind = "reduce-scatter"  # the compiler writes it as a fusion named `all-reduce-scatter`
    operands = sum(anywhere(computation[name].shapes) for name in instruction.operands if name in computation)
    results = anywhere(instruction.shapes)
    if instruction.op.endswith("-start"):  # the result of a start contains the operands
        results = max(operands, results - operands)
    if kind == "collective-permute":
        return _permute(instruction, operands, machine)
    group = device_group(instruction) or list(range(len(machine.coordinates)))
    size, spans = len(group), machine.spans(group)
    links = 0
    for axis in range(3):
        if spans[axis] > 1:
            whole_ring = spans[axis] == machine.extent[axis] and machine.closed(axis)
            links += 2 if whole_ring else 1
    if '"emitter":"1D' in instruction.attributes:  # the compiler chose to use a single ring
        links = min(links, 2)
    sent = max(operands, results) * (size - 1) / size
    if kind == "all-reduce":  # a reduce-scatter and an all-gather
        sent *= 2
    elif kind.endswith("all-to-all"):  # most bytes travel further than one hop
        sent *= max(1.0, size**0.5 / 4)
    seconds = sent / (machine.chip.link_bandwidth * max(links, 1)) + LATENCY * sum(spans)
    return Transfer(kind, seconds, sent, "all")


def between_slices(instruction: Instruction, computation: Computation, machine: Machine) -> Transfer | None:
    """Cost of a `send` to other slices, which all chips of a slice do at once; None for other instructions.

    The compiler turns a collective over slices into collectives inside the slices and such sends. Only all-reduces
    cross slices, because only the mesh axis `data` does. No latency is counted.
    """
    found = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
    if instruction.op != "send" or not found:
        return None
    sent = anywhere(computation[instruction.operands[0]].shapes)
    if found[1] == "ALL_REDUCE":
        sent *= 2 * (machine.slices - 1) / machine.slices
    kind = f"{found[1].lower().replace('_', '-')} of slices"
    return Transfer(kind, sent / SLICE_BANDWIDTH, sent, "slices")


def rendezvous(instruction: Instruction) -> str:
    """Name that a `send` to other slices shares with the `recv` of its result; "" for other instructions."""
    found = re.search(r'_xla_host_transfer_rendezvous="([^"]*)"', instruction.attributes)
    return found[1] if found else ""


def _permute(instruction: Instruction, sent: float, machine: Machine) -> Transfer:
    """Cost of a permutation, whose messages go along one axis after the other. The busiest link decides the time."""
    listed = re.search(r"source_target_pairs=\{(.*?\})\}", instruction.attributes)
    pairs = [(int(a), int(b)) for a, b in re.findall(r"\{(\d+),(\d+)\}", listed[1] if listed else "")]
    load: collections.Counter[tuple] = collections.Counter()
    for source, target in pairs:
        place, goal = list(machine.coordinates[source]), machine.coordinates[target]
        for axis in range(3):
            step = 1 if goal[axis] > place[axis] else -1
            if machine.closed(axis) and abs(goal[axis] - place[axis]) > machine.extent[axis] / 2:
                step = -step
            while place[axis] != goal[axis]:
                load[*place, axis, step] += 1
                place[axis] = (place[axis] + step) % machine.extent[axis]
    forward = sum((b - a) % len(pairs) <= len(pairs) // 2 for a, b in pairs) * 2 > len(pairs)
    seconds = sent * max(load.values(), default=1) / machine.chip.link_bandwidth + LATENCY
    return Transfer("collective-permute", seconds, sent, "forward" if forward else "backward")
