import dataclasses

import pytest

from janus_jax.compile_check import hlo
from janus_jax.compile_check.hlo import HBM, HOST, VMEM, Instruction, Shape, parse
from janus_jax.compile_check.traffic import hbm_bytes
from tests.helpers.small_program import DEPTH, STEPS, TEXT, WIDTH

MODULE = parse(TEXT)
BODY = MODULE.computations["body"]
MATRIX = 2 * WIDTH * WIDTH  # bytes


def convolution(left, right, result, attributes):
    """An instruction and the computation that it is in."""
    shapes = [Shape("bf16", dims, HBM) for dims in (left, right, result)]
    operands = {
        name: Instruction(name, "parameter", (shape,), (), "0", "", False)
        for name, shape in zip("lr", shapes[:2], strict=True)
    }
    return Instruction("c", "convolution", (shapes[2],), ("l", "r"), "", attributes, True), operands


def test_computations_are_read_in_order_with_their_entry():
    assert MODULE.entry == "main"
    assert list(MODULE.computations) == ["product", "layer", "keep", "condition", "body", "main"]
    assert [i.op for i in MODULE.computations["main"].values()][:4] == ["parameter"] * 3 + ["constant"]
    assert [name for name, i in BODY.items() if i.is_root] == ["t.4"]


def test_an_instruction_has_shapes_operands_and_attributes():
    start = BODY["gather-start.4"]
    assert start.shapes == (Shape("bf16", (256, 2048), HBM), Shape("bf16", (2048, 2048), HBM))
    assert (start.operands, start.attribute("channel_id")) == (("x.4",), "1")
    matmul = BODY["matmul.4"]
    assert (matmul.attribute("estimated_cycles"), matmul.attribute("calls")) == ("70000", "%product")
    assert matmul.source == "jit(step)/mlp/dot_general"
    assert BODY["i.4"].attribute("missing", "7") == "7"


@pytest.mark.parametrize(("layout", "space"), [("{1,0}", HBM), ("{1,0:T(8,128)(2,1)S(1)}", VMEM), ("{0:S(5)}", HOST)])
def test_the_memory_space_is_part_of_the_layout(layout, space):
    text = "ENTRY %e (a: f32[4,8]) -> f32[4,8] {\n  ROOT %a = f32[4,8]" + layout + " parameter(0)\n}\n"
    (shape,) = parse(text).computations["e"]["a"].shapes
    assert shape == Shape("f32", (4, 8), space)
    assert shape.bytes == 128


def test_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        parse("HloModule nothing")


def test_the_loop_runs_as_often_as_its_condition_says():
    main = MODULE.computations["main"]
    assert hlo.trip_count(MODULE, main["loop"], main) == STEPS


@pytest.mark.parametrize(
    ("old", "new", "trips"),
    [
        ("direction=LT", "direction=LE", STEPS + 1),
        ("%one.4 = s32[] constant(1)", "%one.4 = s32[] constant(3)", 3),
        ("%zero = s32[] constant(0)", "%zero = s32[] constant(5)", 3),
        ("direction=LT", "direction=NE", None),
        ("%limit.3 = s32[] constant(8)", "%limit.3 = s32[] parameter(1)", None),
        (
            "while(%start), condition",
            'while(%start), backend_config={"known_trip_count":{"n":"21"}}, condition',
            21,
        ),
    ],
)
def test_trip_counts_follow_start_step_and_limit_or_are_unknown(old, new, trips):
    module = parse(TEXT.replace(old, new))
    main = module.computations["main"]
    assert hlo.trip_count(module, main["loop"], main) == trips


def test_flops_of_a_fused_product():
    assert hlo.matmul_flops(MODULE, BODY["matmul.4"], BODY) == 2 * WIDTH**3
    assert hlo.matmul_flops(MODULE, BODY["keep.4"], BODY) == 0


def test_flops_of_a_dot_with_a_batch_dimension():
    shape = Shape("f32", (4, 16, 32), HBM)
    operands = {"l": Instruction("l", "parameter", (shape,), (), "0", "", False)}
    attributes = ", lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={1}"
    dot = Instruction("d", "dot", (Shape("f32", (4, 16, 8), HBM),), ("l", "r"), "", attributes, True)
    assert hlo.matmul_flops(MODULE, dot, operands) == 2 * 4 * 16 * 32 * 8


@pytest.mark.parametrize(
    ("left", "right", "result", "attributes", "flops"),
    [
        # 3 x 3 over 8 x 8 with padding 1: borders see fewer taps, 3 * 8 - 2 per axis
        ((1, 8, 8, 4), (3, 3, 4, 5), (1, 8, 8, 5), "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f", 22**2),
        # stride 2 without padding: all three taps of three places per axis
        ((1, 8, 8, 4), (3, 3, 4, 5), (1, 3, 3, 5), "window={size=3x3 stride=2x2}, dim_labels=b01f_01io->b01f", 9**2),
        # a batch of products written as a convolution: one tap per place
        (
            (6, 8, 4),
            (6, 4, 5),
            (6, 8, 5),
            "window={size=6 stride=5 pad=0_0 lhs_dilate=6}, dim_labels=0bf_0io->0bf",
            6 * 8,
        ),
    ],
)
def test_flops_of_a_convolution_count_taps_inside_the_input(left, right, result, attributes, flops):
    instruction, operands = convolution(left, right, result, ", " + attributes)
    assert hlo.matmul_flops(MODULE, instruction, operands) == 2 * flops * 4 * 5


@pytest.mark.parametrize(
    ("attributes", "group"),
    [
        ("replica_groups={{1,3},{5,7}}", [1, 3]),
        ("replica_groups=[2,4]<=[8]", [0, 1, 2, 3]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [0, 4]),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", [0, 4]),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}", [0, 1, 4, 5]),
        ("channel_id=1", []),
    ],
)
def test_groups_of_devices_in_all_notations(attributes, group):
    instruction = dataclasses.replace(BODY["gather-start.4"], attributes=", " + attributes)
    assert hlo.device_group(instruction) == group


def test_slices_and_updates_move_only_what_they_touch():
    assert hbm_bytes(MODULE, BODY["slice.4"], BODY) == 2 * MATRIX + 4  # one layer read and written, and the index
    assert hbm_bytes(MODULE, BODY["keep.4"], BODY) == 2 * MATRIX + 4  # one matrix read, put in place
    assert hbm_bytes(MODULE, BODY["matmul.4"], BODY) == 3 * MATRIX
    assert BODY["weights.4"].shapes[0].dims[0] == DEPTH


def test_buffers_in_vmem_cost_no_traffic():
    module = parse(TEXT.replace("%matmul.4 = bf16[2048,2048]{1,0}", "%matmul.4 = bf16[2048,2048]{1,0:S(1)}"))
    body = module.computations["body"]
    assert hbm_bytes(module, body["matmul.4"], body) == 2 * MATRIX
    assert hbm_bytes(module, body["keep.4"], body) == MATRIX + 4
