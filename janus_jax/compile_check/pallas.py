"""The work of a Pallas kernel, read from the Mosaic program that the compiled HLO contains."""

import base64
import math
import re
from typing import NamedTuple

from janus_jax.compile_check.hlo import Instruction


class KernelWork(NamedTuple):
    """Operations of one call of a kernel."""

    flops: float  # operations of its matrix products
    padded_flops: float  # the same with contractions and columns padded to the size of the matrix unit
    vector_operations: float  # number of elements of its elementwise operations and reductions


def kernel_work(instruction: Instruction, mxu_edge: int) -> KernelWork:
    """Work of one grid step times the number of steps of the grid.

    A kernel that gets a table in scalar memory is assumed to skip the blocks above the diagonal with it, as causal
    attention does: of n x n blocks it runs a share of (1 + 1 / n) / 2.

    Raises ValueError if the call contains no Mosaic program.
    """
    body = re.search(r'"body":"([^"]+)"', instruction.attributes)
    if body is None:
        raise ValueError(f"{instruction.name}: no Mosaic program")
    program = _decode(body[1])
    flops = padded = vector = 0.0
    for op, middle, operands, results in re.findall(r'"stable_mosaic\.(\w+\.\w+)"(.*?) : \((.*)\) -> \(?(.*)', program):
        first, result = _dims(operands.split(">")[0]), _dims(results.split(">")[0])
        if op in ("tpu.matmul", "vector.contract"):
            from_first = "transpose_lhs = true" in middle or "dot_dimension_numbers<[0]" in middle
            contracted = first[-2] if from_first else first[-1]
            product = 2.0 * math.prod(result) * contracted
            flops += product
            for size in (contracted, result[-1]):
                product *= math.ceil(size / mxu_edge) * mxu_edge / size
            padded += product
        elif op == "vector.multi_reduction":
            vector += math.prod(first)
        elif op.startswith(("arith.", "math.")) and op != "arith.constant" and result:
            vector += math.prod(result)
    share = _grid_steps(program) * _share_of_blocks(program)
    return KernelWork(flops * share, padded * share, vector * share)


def _grid_steps(program: str) -> int:
    bounds = re.search(r"iteration_bounds = array<i64: ([\d, ]+)>", program)
    return math.prod(int(n) for n in bounds[1].split(",")) if bounds else 1


def _share_of_blocks(program: str) -> float:
    table = re.search(r"memref<([\dx]+x)i(?:8|32), #tpu.memory_space<smem>>", program)
    return (1 + 1 / max(_dims(table[1])[-2:])) / 2 if table else 1.0


def _dims(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"(\d+)x", text)]


def _decode(body: str) -> str:
    """Text of a serialized Mosaic program. JAX has no public function that reads one (jax 0.10.2)."""
    from jax._src.interpreters import mlir
    from jax._src.lib import tpu
    from jax._src.lib.mlir import ir

    context = mlir.make_ir_context()
    tpu.register_dialect(context)
    context.allow_unregistered_dialects = True
    with context:
        return str(ir.Module.parse(base64.b64decode(body)))
