"""Peak memory of a traced program, estimated from the lifetimes of its arrays, without compiling it.

A program runs its operations in the order in which they were traced, and an array lives from the operation that makes
it to the last one that reads it. That is not how a compiler works: it reorders operations and reuses buffers. But the
largest arrays of a training step are those that wait for the backward pass, and these have to live in any order.
docs/training.md compares the estimate with compiled programs.
"""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend import core

# Operations that XLA fuses into the one that reads their result, if only one does: the result is then never stored.
_FUSED = frozenset(
    """abs add add_any and broadcast_in_dim ceil clamp convert_element_type copy cos div eq erf erfc exp floor ge gt
    integer_pow iota is_finite le log logistic lt max min mul name ne neg not or pow reshape round rsqrt select_n sign
    sin sqrt square squeeze stop_gradient sub tanh""".split()  # noqa: SIM905
)
# Operations whose inner program runs many times while the results of all turns are stored.
_LOOPS = frozenset({"scan", "while"})
# Operations whose inner program has no arrays in the memory of the device.
_KERNELS = frozenset({"pallas_call"})


def peak_bytes(jaxpr: Any) -> int:
    """Most bytes that a program holds at the same time besides its arguments.

    Args:
        jaxpr: `jax.extend.core.Jaxpr`, such as `jax.make_jaxpr(f)(...).jaxpr`. The arguments of inner programs are
            arrays of the outer one, and count there.
    """
    uses = Counter(variable for eqn in jaxpr.eqns for variable in _variables(eqn.invars))
    results = set(_variables(jaxpr.outvars))

    def is_fused(eqn: Any) -> bool:
        return eqn.primitive.name in _FUSED and all(uses[out] == 1 and out not in results for out in eqn.outvars)

    last_use: dict[Any, int] = {}
    for place, eqn in reversed(list(enumerate(jaxpr.eqns))):
        # What a fused operation reads is read again by the operation that it is fused into.
        end = last_use[eqn.outvars[0]] if is_fused(eqn) else place
        for variable in _variables(eqn.invars):
            last_use[variable] = max(last_use.get(variable, end), end)
    ending: dict[int, list[Any]] = {}
    for variable, place in last_use.items():
        ending.setdefault(place, []).append(variable)
    stored: dict[Any, int] = {}
    live = peak = 0
    for place, eqn in enumerate(jaxpr.eqns):
        made = 0 if is_fused(eqn) else sum(_bytes(variable) for variable in eqn.outvars)
        inside = max((peak_bytes(inner) for inner in _inner_programs(eqn)), default=0)
        peak = max(peak, live + (made + inside if eqn.primitive.name in _LOOPS else max(made, inside)))
        live += made
        if not is_fused(eqn):
            stored |= {variable: _bytes(variable) for variable in eqn.outvars}
        unread = [variable for variable in eqn.outvars if variable not in last_use]
        for variable in {*ending.get(place, ()), *unread} - results:
            live -= stored.pop(variable, 0)
    return peak


def _variables(atoms: Any) -> Iterator[Any]:
    """Those of the atoms that are no constants."""
    return (atom for atom in atoms if not isinstance(atom, core.Literal))


def _bytes(variable: Any) -> int:
    shape, dtype = variable.aval.shape, variable.aval.dtype
    itemsize = 8 if jax.dtypes.issubdtype(dtype, jax.dtypes.extended) else dtype.itemsize  # a random key
    return math.prod(shape) * itemsize


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
