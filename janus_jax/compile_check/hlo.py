"""Reads the text of a compiled TPU program (`Compiled.as_text()`): computations of instructions in scheduled order.

It reads only what the cost model needs: shapes with their memory space, operands, attributes, called computations, trip
counts of loops, and groups of collectives.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

HBM, VMEM, HOST = 0, 1, 5  # numbers n of the memory spaces S(n) of a layout
# Bytes of an element; types that are not listed have one byte.
ELEMENT_BYTES = {"s4": 0.5, "u4": 0.5, "bf16": 2.0, "f16": 2.0, "s16": 2.0, "u16": 2.0, "f32": 4.0, "s32": 4.0}
ELEMENT_BYTES |= {"u32": 4.0, "f64": 8.0, "s64": 8.0, "u64": 8.0, "token": 0.0}
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "collective-permute",
    "ragged-all-to-all",
    "all-to-all",
)


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array of an instruction's result."""

    dtype: str
    dims: tuple[int, ...]
    space: int

    @property
    def bytes(self) -> float:
        return ELEMENT_BYTES.get(self.dtype, 1.0) * math.prod(self.dims)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    op: str
    shapes: tuple[Shape, ...]  # shapes of the result; several if it is a tuple
    operands: tuple[str, ...]  # names of instructions
    argument: str  # text between the parentheses: the number of a parameter, the value of a constant
    attributes: str  # text behind the parentheses
    is_root: bool

    def attribute(self, name: str, default: str = "") -> str:
        """The value of `name=value` or of `"name":"value"` in a backend config."""
        pattern = rf'(?:\b{name}=|"{name}":"?)(\{{[^}}]*\}}|\[[^\]]*\]|%?[\w.\-]+)'
        found = re.search(pattern, self.attributes)
        return found[1] if found else default

    @property
    def source(self) -> str:
        """Place in the model that it comes from, such as "jit(step)/.../mlp/up_proj/dot_general"."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Module:
    """A whole program."""

    computations: dict[str, Computation]
    entry: str  # name of the computation that runs first

    def called(self, instruction: Instruction, *roles: str) -> Computation:
        """The computation that an instruction calls in one of these roles, or an empty one.

        The default roles are those of a fusion and of a call.
        """
        for role in roles or ("calls", "to_apply"):
            name = instruction.attribute(role).strip("{}").split(",")[0].lstrip("%")
            if name in self.computations:
                return self.computations[name]
        return {}

    def bodies(self, instruction: Instruction) -> list[str]:
        """Names of the computations that a loop, call or conditional runs."""
        names = []
        for role in ("body", "branch_computations", "true_computation", "false_computation", "to_apply", "calls"):
            names += [name.strip().lstrip("%") for name in instruction.attribute(role).strip("{}").split(",")]
        return [name for name in names if name in self.computations]

    def within(self, instruction: Instruction) -> Iterator[tuple[Instruction, Computation]]:
        """The instructions of a fusion and of the fusions in it."""
        inside = self.called(instruction)
        for inner in inside.values():
            yield inner, inside
            if inner.op == "fusion":
                yield from self.within(inner)


def parse(text: str) -> Module:
    """The program of a text. Raises ValueError if the text has no entry computation."""
    computations: dict[str, Computation] = {}
    entry, name = "", ""
    lines: list[str] = []
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if not name and header:
            name, lines = header[2], []
            entry = name if header[1] else entry
        elif name and line.startswith("}"):
            instructions = [_instruction(text) for text in lines]
            computations[name] = {instruction.name: instruction for instruction in instructions}
            name = ""
        elif name and re.match(r"  (ROOT )?%[\w.\-]+ = ", line):
            lines.append(line)
        elif name and lines:  # a literal or backend config of several lines
            lines[-1] += line
    if not entry:
        raise ValueError("not the text of a compiled program: no ENTRY computation")
    return Module(computations, entry)


def _instruction(line: str) -> Instruction:
    head = re.match(r"  (ROOT )?%([\w.\-]+) = ", line)
    assert head is not None
    unread = line[head.end() :]
    after_type = _closing(unread, 0) if unread[0] == "(" else unread.index(" ")
    types, unread = unread[:after_type], unread[after_type:].lstrip()
    open_at = unread.index("(")
    close_at = _closing(unread, open_at)
    argument = unread[open_at + 1 : close_at - 1]
    return Instruction(
        name=head[2],
        op=unread[:open_at],
        shapes=tuple(_shapes(types)),
        operands=tuple(re.findall(r"%([\w.\-]+)", argument)),
        argument=argument,
        attributes=unread[close_at:],
        is_root=bool(head[1]),
    )


def _closing(text: str, start: int) -> int:
    """Index after the parenthesis that closes the one at `start`."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, start):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return found.end()
    raise ValueError(f"unbalanced parentheses: {text[:80]}")


def _shapes(types: str) -> Iterator[Shape]:
    for dtype, dims, layout in re.findall(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", types):
        space = re.search(r"S\((\d+)\)", layout)
        yield Shape(dtype, tuple(int(d) for d in dims.split(",") if d), int(space[1]) if space else HBM)


def collective_kind(op: str) -> str | None:
    """Name of the collective without "-start": all-gather for all-gather-start; None for other operations."""
    return next((kind for kind in COLLECTIVES if op.startswith(kind)), None)


def device_group(instruction: Instruction) -> list[int]:
    """Numbers of the partitions in the first group of a collective; empty means all. HLO has three notations."""
    text = instruction.attributes
    if found := re.search(r"replica_groups=mesh\[(.*?)\][^{]*\{([^}]*)\}", text):
        axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", found[1])}
        used = re.findall(r"'([^']+)'", found[2])
        numbers = np.arange(math.prod(axes.values())).reshape(tuple(axes.values()))
        order = [i for i, name in enumerate(axes) if name not in used] + [list(axes).index(name) for name in used]
        size = math.prod(axes[name] for name in used)
        return numbers.transpose(order).reshape(-1, size)[0].tolist()
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        groups, dims = ([int(n) for n in part.split(",")] for part in found.groups()[:2])
        transposed = [int(n) for n in (found[3] or "").split(",") if n] or list(range(len(dims)))
        return np.arange(math.prod(dims)).reshape(dims).transpose(transposed).reshape(groups)[0].tolist()
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", text)
    return [int(n) for n in listed[1].split(",")] if listed else []


def trip_count(module: Module, loop: Instruction, computation: Computation) -> int | None:
    """How often a while loop runs; None if that cannot be read from the program.

    XLA may write it down. Otherwise the condition must be `counter < limit` (or <=) with a constant limit, and the body
    must add constants to the counter.
    """
    if stated := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(stated[1])
    try:
        return _counted(module, loop, computation)
    except (KeyError, IndexError, StopIteration, ValueError, ZeroDivisionError):
        return None


def _counted(module: Module, loop: Instruction, computation: Computation) -> int:
    condition, body = module.called(loop, "condition"), module.called(loop, "body")
    compare = _root(condition)
    direction = compare.attribute("direction")
    if compare.op != "compare" or direction not in ("LT", "LE"):
        raise ValueError(compare.op)
    index = int(condition[compare.operands[0]].attribute("index"))
    limit = _constant(condition, compare.operands[1])
    start = _constant(computation, computation[loop.operands[0]].operands[index])
    step, value = 0, body[_root(body).operands[index]]
    while value.op != "get-tuple-element":
        constants = {name: _constant(body, name) for name in value.operands if _is_constant(body, name)}
        if value.op == "add":
            step += sum(constants.values())
        value = body[next(name for name in value.operands if name not in constants)]
    return math.ceil((limit - start + (direction == "LE")) / step)


def _root(computation: Computation) -> Instruction:
    return next(instruction for instruction in computation.values() if instruction.is_root)


def _is_constant(computation: Computation, name: str) -> bool:
    instruction = computation[name]
    if instruction.op in ("copy", "convert", "bitcast"):
        return _is_constant(computation, instruction.operands[0])
    return instruction.op == "constant"


def _constant(computation: Computation, name: str) -> int:
    instruction = computation[name]
    if instruction.op in ("copy", "convert", "bitcast"):
        return _constant(computation, instruction.operands[0])
    if instruction.op != "constant":
        raise ValueError(instruction.op)
    return int(instruction.argument)


def matmul_flops(module: Module, instruction: Instruction, computation: Computation) -> float:
    """Operations of the matrix products and convolutions in an instruction, two per multiply-add, fusions included."""
    if instruction.op == "fusion":
        parts = module.within(instruction)
        return sum(matmul_flops(module, inner, inside) for inner, inside in parts if inner.op != "fusion")
    if instruction.op == "dot":
        left = computation[instruction.operands[0]].shapes[0].dims
        contracted = instruction.attribute("lhs_contracting_dims").strip("{}")
        return 2.0 * math.prod(instruction.shapes[0].dims) * math.prod(left[int(d)] for d in contracted.split(",") if d)
    if instruction.op == "convolution":
        return _convolution_flops(instruction, computation)
    return 0.0


def _convolution_flops(instruction: Instruction, computation: Computation) -> float:
    """Operations of a convolution, as which XLA:TPU also writes matrix products.

    Only the positions of the window that lie inside the input count.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert labels is not None
    left, right = (computation[name].shapes[0].dims for name in instruction.operands[:2])
    result = instruction.shapes[0].dims
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", instruction.attribute("window").strip("{}")))
    flops = 2.0 * left[labels[1].index("b")] * right[labels[2].index("i")] * result[labels[3].index("f")]
    flops /= int(instruction.attribute("batch_group_count", "1"))

    def option(name: str, dimension: int, default: int) -> int:
        return int(window[name].split("x")[dimension].split("_")[0]) if name in window else default

    for d in range(len(labels[1]) - 2):
        size_in, size_out = left[labels[1].index(str(d))], result[labels[3].index(str(d))]
        taps, stride, pad = option("size", d, 1), option("stride", d, 1), option("pad", d, 0)
        left_dilation, right_dilation = option("lhs_dilate", d, 1), option("rhs_dilate", d, 1)
        place = np.arange(size_out)[:, None] * stride - pad + np.arange(taps)[None] * right_dilation
        inside = (place >= 0) & (place <= (size_in - 1) * left_dilation) & (place % left_dilation == 0)
        flops *= int(inside.sum())
    return flops
