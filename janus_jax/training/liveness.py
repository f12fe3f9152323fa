"""Peak memory of a traced program, estimated from the lifetimes of its arrays, without compiling it.

A program runs its operations in the order in which they were traced, and an array lives from the operation that makes
it to the last one that reads it. That is not how a compiler works: it reorders operations and reuses buffers. But the
largest arrays of a training step are those that wait for the backward pass, and these have to live in any order. Of
what XLA does to the others, programs that were compiled for TPUs show the following, which is imitated: results that
nobody reads are not computed, elementwise operations are fused into those that read them, loops update in place what
they carry, the cast of a stack that a loop slices is moved in front of the loop, and sums over devices of what a loop
adds up are moved behind it. docs/training.md and docs/compile_check.md compare the estimate with compiled programs.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core
from jax.interpreters import partial_eval

# Operations that XLA fuses into the one that reads their result, if only one does: the result is then never stored.
_FUSED = frozenset(
    """abs add add_any and broadcast_in_dim ceil clamp convert_element_type copy cos div eq erf erfc exp floor ge gt
    integer_pow iota is_finite le log logistic lt max min mul ne neg not or pow round rsqrt select_n sign sin sqrt
    square sub tanh""".split()  # noqa: SIM905
)
# Operations whose results are what they read, under another name, shape or layout.
_VIEWS = frozenset({"name", "optimization_barrier", "reshape", "squeeze", "stop_gradient", "transpose"})
# Operations that do nothing but their inner program.
_CALLS = frozenset({"jit", "pjit", "closed_call", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call"})
# Operations whose inner program has no arrays in the memory of the device.
_KERNELS = frozenset({"pallas_call"})


@dataclasses.dataclass(frozen=True, eq=False)
class _Array:
    size: int  # bytes
    itemsize: int


class _Operation(NamedTuple):
    name: str
    inputs: Sequence[_Array | None]  # None: a constant
    outputs: Sequence[_Array]
    params: Mapping[str, Any]
    inner: Sequence["_Program"]  # bodies of loops, branches, functions


class _Program(NamedTuple):
    arguments: Sequence[_Array]
    operations: Sequence[_Operation]
    results: Sequence[_Array | None]


def peak_bytes(jaxpr: Any) -> int:
    """Most bytes that a program holds at the same time besides its arguments.

    Args:
        jaxpr: `jax.extend.core.Jaxpr`, such as `jax.make_jaxpr(f)(...).jaxpr`. The arguments of inner programs are
            arrays of the outer one, and count there.
    """
    needed, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)
    return _peak(_program(needed), in_place=frozenset())


def _peak(program: _Program, in_place: frozenset[_Array]) -> int:
    """`peak_bytes`; the arrays `in_place` take no memory."""
    operations = _with_casts_outside_loops(program.operations)
    uses = Counter(array for operation in operations for array in _read(operation))
    results = set(program.results)

    def is_fused(operation: _Operation) -> bool:
        if operation.name not in _FUSED or not results.isdisjoint(operation.outputs):
            return False
        return _widens(operation) or all(uses[out] == 1 for out in operation.outputs)

    last_use: dict[_Array, int] = {}
    for place, operation in reversed(list(enumerate(operations))):
        # What a fused operation reads is read again by the operation that it is fused into.
        end = last_use[operation.outputs[0]] if is_fused(operation) else place
        for array in _read(operation):
            last_use[array] = max(last_use.get(array, end), end)
    ending: dict[int, list[_Array]] = {}
    for array, place in last_use.items():
        ending.setdefault(place, []).append(array)
    stored: dict[_Array, int] = {}
    live = peak = 0
    for place, operation in enumerate(operations):
        made = {} if is_fused(operation) else {out: out.size for out in operation.outputs if out not in in_place}
        new, inside = sum(made.values()), max((_peak(*inner) for inner in _bodies(operation)), default=0)
        inside += _growth_of_sums(operation)
        peak = max(peak, live + (new + inside if _num_carried(operation) is not None else max(new, inside)))
        live += new
        stored |= made
        unread = [out for out in operation.outputs if out not in last_use]
        for array in {*ending.get(place, ()), *unread} - results:
            live -= stored.pop(array, 0)
    return peak


def _widens(operation: _Operation) -> bool:
    """Whether it is a cast to a larger type, which is cheaper to repeat than to store."""
    (output,) = operation.outputs
    return operation.name == "convert_element_type" and output.itemsize > max(
        (array.itemsize for array in _read(operation)), default=output.itemsize
    )


def _bodies(operation: _Operation) -> Iterator[tuple[_Program, frozenset[_Array]]]:
    """Inner programs, each with the arrays that it makes in the place of older ones."""
    carried = _num_carried(operation) or 0
    for inner in operation.inner:
        yield inner, _updated_in_place(inner, inner.results[:carried])


def _updated_in_place(body: _Program, carried: Sequence[_Array | None]) -> frozenset[_Array]:
    """Arrays without memory of their own: carried ones made elementwise, and products that are only added to these."""
    uses = Counter(array for operation in body.operations for array in _read(operation))
    made_by = {out: operation for operation in body.operations for out in operation.outputs}
    found: set[_Array] = set()

    def visit(array: _Array | None) -> None:
        operation = made_by.get(array) if array is not None else None
        if operation is None or array is None or operation.name not in _FUSED | {"dot_general"}:
            return
        found.add(array)
        if operation.name in _FUSED:
            for read in _read(operation):
                if uses[read] == 1:
                    visit(read)

    for array in carried:
        if array is not None and array in made_by and made_by[array].name in _FUSED:
            visit(array)
    return frozenset(found)


def _growth_of_sums(operation: _Operation) -> int:
    """Bytes by which the sums that a scan carries grow when their terms are whole arrays, of which devices get shards.

    The program scatters each term over the devices, and XLA the sum alone, after the last turn.
    """
    if operation.name != "scan":
        return 0
    (body,) = operation.inner
    made_by = {out: each for each in body.operations for out in each.outputs}
    growth = 0
    for total in body.results[: _scan_counts(operation)[1]]:
        if total is None or total not in made_by or made_by[total].name not in ("add", "add_any"):
            continue
        for term in map(made_by.get, _read(made_by[total])):
            while term is not None and term.name == "convert_element_type":
                term = next(map(made_by.get, _read(term)), None)
            if term is not None and term.name == "reduce_scatter":
                growth += sum(whole.size * total.itemsize // whole.itemsize for whole in _read(term)) - total.size
    return growth


def _num_carried(operation: _Operation) -> int | None:
    """Number of arrays that a loop carries from turn to turn; None for an operation that is no loop."""
    if operation.name == "scan":
        return _scan_counts(operation)[1]
    return len(operation.outputs) if operation.name == "while" else None


def _scan_counts(operation: _Operation) -> tuple[int, int]:
    """Number of arrays that all turns of a scan read, and of those that it carries from turn to turn."""
    if "ft_in" in operation.params:  # since jax 0.12
        constants, carried, _ = operation.params["ft_in"].unpack()
        return len(constants), len(carried)
    return operation.params["num_consts"], operation.params["num_carry"]


def _with_casts_outside_loops(operations: Sequence[_Operation]) -> list[_Operation]:
    """A stack that loops slice and cast to a smaller type is cast once, and kept from the first loop to the last."""
    casts: dict[tuple[_Array, int], _Array] = {}
    result = []
    for operation in operations:
        read = []
        for array, itemsize in _casts_of_slices(operation):
            if (array, itemsize) not in casts:
                casts[array, itemsize] = _Array(array.size * itemsize // array.itemsize, itemsize)
                result.append(_Operation("cast", [array], [casts[array, itemsize]], {}, ()))
            read.append(casts[array, itemsize])
        result.append(operation._replace(inputs=[*operation.inputs, *read]))
    return result


def _casts_of_slices(operation: _Operation) -> Iterator[tuple[_Array, int]]:
    """Stacks that a loop slices and only reads in a smaller type, with the bytes of an element of that."""
    if operation.name != "scan":
        return
    (body,) = operation.inner
    first = sum(_scan_counts(operation))
    for stack, piece in zip(operation.inputs[first:], body.arguments[first:], strict=False):
        readers = [reader for reader in body.operations if piece in reader.inputs]
        types = {reader.outputs[0].itemsize for reader in readers if reader.name == "convert_element_type"}
        if stack and len(types) == len({reader.name for reader in readers}) == 1 and min(types) < stack.itemsize:
            yield stack, min(types)


def _program(jaxpr: Any) -> _Program:
    """A jaxpr with its calls inlined."""
    arguments = [_array(variable) for variable in jaxpr.invars]
    operations: list[_Operation] = []
    return _Program(arguments, operations, _inline(jaxpr, arguments, operations))


def _inline(jaxpr: Any, inputs: Sequence[_Array | None], operations: list[_Operation]) -> list[_Array | None]:
    """Appends the operations of a jaxpr and returns its results."""
    arrays: dict[Any, _Array | None] = dict(zip(jaxpr.invars, inputs, strict=True))
    for eqn in jaxpr.eqns:
        read = [None if isinstance(atom, core.Literal) else arrays.get(atom) for atom in eqn.invars]
        inner = list(_inner_programs(eqn))
        made: Sequence[_Array | None]
        if eqn.primitive.name in _CALLS:
            made = _inline(inner[0], read, operations)
        elif eqn.primitive.name in _VIEWS:
            made = read
        else:
            made = outputs = [_array(variable) for variable in eqn.outvars]
            bodies = tuple(_program(each) for each in inner)
            operations.append(_Operation(eqn.primitive.name, read, outputs, eqn.params, bodies))
        arrays |= dict(zip(eqn.outvars, made, strict=True))
    return [None if isinstance(atom, core.Literal) else arrays.get(atom) for atom in jaxpr.outvars]


def _inner_programs(eqn: Any) -> Iterator[Any]:
    """The programs among the parameters of an operation: bodies of loops, branches, differentiated functions."""
    if eqn.primitive.name in _KERNELS:
        return
    for value in eqn.params.values():
        for inner in value if isinstance(value, tuple | list) else (value,):
            if isinstance(inner, core.ClosedJaxpr):
                yield inner.jaxpr
            elif isinstance(inner, core.Jaxpr):
                yield inner


def _array(variable: Any) -> _Array:
    shape, dtype = variable.aval.shape, variable.aval.dtype
    itemsize = 8 if jax.dtypes.issubdtype(dtype, jax.dtypes.extended) else dtype.itemsize  # a random key
    return _Array(math.prod(shape) * itemsize, itemsize)


def _read(operation: _Operation) -> Iterator[_Array]:
    """Those of the inputs that are no constants."""
    return (array for array in operation.inputs if array is not None)
