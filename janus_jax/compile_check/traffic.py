"""How many bytes an instruction moves to and from HBM."""

from collections.abc import Iterable, Iterator

from janus_jax.compile_check.hlo import HBM, HOST, VMEM, Computation, Instruction, Module, Shape

SLICES = ("dynamic-slice", "slice", "gather")
UPDATE = "dynamic-update-slice"
SMALL = 1e6  # bytes; a smaller operand of a fusion counts as read completely


def in_hbm(shapes: Iterable[Shape]) -> float:
    """Bytes of the arrays that are in HBM."""
    return sum(shape.bytes for shape in shapes if shape.space == HBM)


def anywhere(shapes: Iterable[Shape]) -> float:
    """Bytes of the arrays in any memory but the registers."""
    return sum(shape.bytes for shape in shapes if shape.space in (HBM, VMEM, HOST))


def hbm_bytes(module: Module, instruction: Instruction, computation: Computation) -> float:
    """Bytes of the operands that are read and of the results that are written.

    Of slices and of updates in place only the part counts that is touched.
    """
    operands = [computation[name].shapes for name in instruction.operands if name in computation]
    if instruction.op in SLICES:
        read = anywhere(instruction.shapes) if in_hbm(operands[0]) else 0.0
        return in_hbm(instruction.shapes) + read
    if instruction.op == UPDATE:
        return 2 * anywhere(operands[1])
    inside = module.called(instruction) if instruction.op == "fusion" else {}
    if not inside:
        return in_hbm(instruction.shapes) + sum(map(in_hbm, operands))
    read = sum(
        _read_by_fusion(module, parameter, instruction, inside, computation)
        for parameter in inside.values()
        if parameter.op == "parameter"
    )
    return read + _written_by_fusion(instruction, inside)


def _read_by_fusion(
    module: Module, parameter: Instruction, fusion: Instruction, inside: Computation, computation: Computation
) -> float:
    number = int(parameter.argument)
    if number >= len(fusion.operands) or fusion.operands[number] not in computation:
        return 0.0
    whole = in_hbm(computation[fusion.operands[number]].shapes)
    if whole <= SMALL:
        return whole
    uses = list(_uses(module, inside, parameter.name))
    in_part = all(user.op in (*SLICES, UPDATE) and user.operands[0] == name for user, name in uses)
    if not uses or not in_part:
        return whole
    return min(whole, sum(anywhere(user.shapes) for user, _ in uses if user.op in SLICES))


def _uses(module: Module, computation: Computation, name: str) -> Iterator[tuple[Instruction, str]]:
    """(user, name of the operand) for every use of an array, through bitcasts and in nested fusions."""
    for user in computation.values():
        if name not in user.operands:
            continue
        if user.op == "bitcast":
            yield from _uses(module, computation, user.name)
        elif user.op == "fusion":
            inside = module.called(user)
            for parameter in inside.values():
                if parameter.op == "parameter" and user.operands[int(parameter.argument)] == name:
                    yield from _uses(module, inside, parameter.name)
        else:
            yield user, name


def _written_by_fusion(fusion: Instruction, inside: Computation) -> float:
    root = next(instruction for instruction in inside.values() if instruction.is_root)
    names = root.operands if root.op == "tuple" else (root.name,)
    total = 0.0
    for shape, name in zip(fusion.shapes, names, strict=False):
        while inside[name].op == "bitcast":
            name = inside[name].operands[0]
        written = in_hbm([shape])
        if inside[name].op == UPDATE:
            written = min(written, anywhere(inside[inside[name].operands[1]].shapes))
        total += written
    return total
