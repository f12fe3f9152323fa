"""Work of a Pallas kernel, read from the Mosaic program that the compiled HLO carries."""

import base64
import math
import re
from typing import NamedTuple

from janus_jax.compile_check.hlo import Instruction


class KernelWork(NamedTuple):
    flops: float  # of its matrix products
    padded_flops: float  # the same, with contraction and columns padded to the edge of the matrix unit
    vector_operations: float  # elements of elementwise operations and reductions


def kernel_work(instruction: Instruction, mxu_edge: int) -> KernelWork:
    """Work of one grid step times the steps of the grid.

    A kernel that is given a table in scalar memory is taken to skip blocks above the diagonal with it, as causal
    attention does: n x n blocks, of which (1 + 1 / n) / 2 are run.

    Raises ValueError when the call carries no Mosaic program.
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
    """Text of a serialized Mosaic program."""
    from jax._src.interpreters import mlir  # no public reader exists
    from jax._src.lib import tpu
    from jax._src.lib.mlir import ir

    context = mlir.make_ir_context()
    tpu.register_dialect(context)
    context.allow_unregistered_dialects = True
    with context:
        return str(ir.Module.parse(base64.b64decode(body)))
