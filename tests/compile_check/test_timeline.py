"""The replay of a small program, compared with sums that were computed by hand."""

import dataclasses

import pytest

from janus_jax.compile_check.collectives import LATENCY, transfer
from janus_jax.compile_check.hlo import parse
from janus_jax.compile_check.parts import part
from janus_jax.compile_check.timeline import Pricing, Timeline
from janus_jax.hardware import SLICE_BANDWIDTH, Machine
from tests.helpers.small_program import COORDINATES, CORES, KIND, STEPS, TEXT, WIDTH

MACHINE = Machine(KIND, CORES, COORDINATES)
CHIP = MACHINE.chip
MATRIX = 2 * WIDTH * WIDTH
BANDWIDTH, FLOPS = MACHINE.hbm_bandwidth, MACHINE.flops
PRODUCT = 70_000 / CHIP.clock  # as the text says
SLICE = (2 * MATRIX + 4) / BANDWIDTH
GATHER = MATRIX * 7 / 8 / (2 * CHIP.link_bandwidth) + 10 * LATENCY  # a ring of eight chips, both ways


def run(text=TEXT, pricing=Pricing.MID, machine=MACHINE):
    return Timeline(parse(text), machine).run(pricing)


def test_a_gather_beside_a_product_costs_only_what_is_longer():
    assert PRODUCT < GATHER
    seconds, sums = run()
    assert seconds == pytest.approx(STEPS * (2 * SLICE + GATHER), rel=1e-9)
    assert sums["time/exposed collectives"] == pytest.approx(STEPS * (GATHER - PRODUCT), rel=1e-9)
    assert sums["exposed/all-gather"] == sums["time/exposed collectives"]
    assert sums["transfer/all-gather"] == pytest.approx(STEPS * GATHER, rel=1e-9)
    assert sums["time/matmul"] == pytest.approx(STEPS * PRODUCT, rel=1e-9)
    assert sums["time/elementwise"] == pytest.approx(STEPS * 2 * SLICE, rel=1e-9)
    assert sums["flops/matmul"] == STEPS * 2 * WIDTH**3
    assert sums["wire/all-gather"] == STEPS * MATRIX * 7 / 8


def test_the_seconds_of_operations_are_counted_by_part_of_the_model():
    seconds, sums = run()
    assert sums["part/mlp, forward"] == pytest.approx(STEPS * PRODUCT, rel=1e-9)
    of_parts = sum(value for name, value in sums.items() if name.startswith("part/"))
    assert of_parts == pytest.approx(seconds - sums["time/exposed collectives"], rel=1e-9)


STEP = "jit(step)/shard_map/"
BACKWARD = f"{STEP}transpose(jvp(Janus))/llm/decoder/while/body/closed_call/checkpoint/"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (f"{STEP}jvp(Janus)/llm/decoder/while/body/closed_call/layers/mlp/mul", "llm/decoder/layers/mlp, forward"),
        (f"{BACKWARD}layers/mlp/up_proj/dot_general", "llm/decoder/layers/mlp, backward"),
        (f"{BACKWARD}rematted_computation/layers/mlp_norm/mul", "llm/decoder/layers/mlp_norm, recomputed"),
        (f"{STEP}jvp(VQModel)/encoder/down_0_block_1/conv1/conv_general_dilated", "encoder/down_0_block_1, forward"),
        (f"{STEP}transpose(jvp())/while/body/closed_call/dot_general", "dot_general, backward"),
        ("", "unknown, forward"),
    ],
)
def test_a_part_has_the_names_of_its_modules(source, name):
    assert part(source) == name


def test_a_long_product_hides_the_gather():
    text = TEXT.replace('"70000"', '"1000000"')
    seconds, sums = run(text)
    assert seconds == pytest.approx(STEPS * (2 * SLICE + 1_000_000 / CHIP.clock), rel=1e-9)
    assert sums["time/exposed collectives"] == 0


def test_a_synchronous_gather_is_exposed_whole():
    start = next(line for line in TEXT.splitlines() if "all-gather-start" in line)
    done = next(line for line in TEXT.splitlines() if "all-gather-done" in line)
    plain = start.replace(
        "(bf16[256,2048]{1,0}, bf16[2048,2048]{1,0}) all-gather-start", "bf16[2048,2048]{1,0} all-gather"
    )
    seconds, sums = run(TEXT.replace(start, plain).replace(done + "\n", ""))
    assert sums["time/exposed collectives"] == pytest.approx(STEPS * GATHER, rel=1e-9)
    assert sums["exposed/all-gather"] == sums["time/exposed collectives"]
    assert seconds == pytest.approx(STEPS * (2 * SLICE + GATHER + PRODUCT), rel=1e-9)


def test_the_three_prices_of_a_product():
    text = TEXT.replace('"70000"', '"1000000"')
    roofline = 2 * WIDTH**3 / FLOPS
    assert roofline > GATHER / 3
    low = run(text, Pricing.LOW)[1]["time/matmul"]
    assert low == pytest.approx(STEPS * roofline, rel=1e-9)
    for pricing in (Pricing.MID, Pricing.HIGH):
        assert run(text, pricing)[1]["time/matmul"] == pytest.approx(STEPS * 1_000_000 / CHIP.clock, rel=1e-9)


def test_a_product_without_an_estimate_costs_the_roofline_and_is_counted():
    text = TEXT.replace('"70000"', '"9223372036854775807"')
    for pricing in Pricing:
        seconds, sums = run(text, pricing)
        assert sums["time/matmul"] == pytest.approx(STEPS * 2 * WIDTH**3 / FLOPS, rel=1e-9)
        assert sums["unpriced"] == sums["flops/matmul"] == pytest.approx(STEPS * 2 * WIDTH**3)
    assert run(TEXT, Pricing.MID)[1]["unpriced"] == 0


def test_only_the_high_price_believes_the_compiler_about_elementwise_work():
    text = TEXT.replace("calls=%layer", 'calls=%layer, backend_config={"window_config":{"estimated_cycles":"500000"}}')
    assert run(text, Pricing.MID)[1]["time/elementwise"] == pytest.approx(STEPS * 2 * SLICE, rel=1e-9)
    expected = STEPS * (SLICE + 500_000 / CHIP.clock)
    assert run(text, Pricing.HIGH)[1]["time/elementwise"] == pytest.approx(expected, rel=1e-9)


def test_a_loop_of_unknown_length_is_named_and_counted_once():
    timeline = Timeline(parse(TEXT.replace("direction=LT", "direction=NE")), MACHINE)
    seconds, _ = timeline.run(Pricing.MID)
    assert timeline.unknown_loops == {"loop"}
    assert seconds == pytest.approx(2 * SLICE + GATHER, rel=1e-9)


def collective(op, groups, machine, result="bf16[2048,2048]"):
    """Seconds and bytes of a collective that moves one matrix."""
    text = (
        "ENTRY %e (a: bf16[2048,2048]) -> " + result + " {\n  %a = bf16[2048,2048]{1,0} parameter(0)\n"
        "  ROOT %c = " + result + "{1,0} " + op + "(%a), " + groups + "\n}\n"
    )
    entry = parse(text).computations["e"]
    moved = transfer(entry["c"], entry, machine)
    return moved.seconds, moved.wire_bytes


def torus(x, y, z):
    return Machine(KIND, CORES, tuple((i, j, k) for k in range(z) for j in range(y) for i in range(x)))


def test_an_all_reduce_sends_twice_what_a_reduce_scatter_sends():
    groups = "replica_groups={{" + ",".join(map(str, range(64))) + "}}"
    machine = torus(4, 4, 4)
    rings = 6 * CHIP.link_bandwidth  # three rings, both ways
    scatter, scatter_bytes = collective("reduce-scatter", groups, machine, "bf16[32,2048]")
    reduce, reduce_bytes = collective("all-reduce", groups, machine)
    assert scatter_bytes == MATRIX * 63 / 64
    assert reduce_bytes == 2 * scatter_bytes
    assert scatter == pytest.approx(scatter_bytes / rings + 12 * LATENCY, rel=1e-9)
    assert reduce == pytest.approx(reduce_bytes / rings + 12 * LATENCY, rel=1e-9)


SCATTER = """%all-reduce-scatter (a.0: bf16[2048,2048]) -> bf16[256,2048] {
  %a.0 = bf16[2048,2048]{1,0} parameter(0)
  %sum.0 = bf16[2048,2048]{1,0} all-reduce(%a.0), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}
  %zero.0 = u32[] constant(0)
  %place.0 = u32[] partition-id()
  ROOT %own.0 = bf16[256,2048]{1,0} dynamic-slice(%sum.0, %place.0, %zero.0), dynamic_slice_sizes={256,2048}
}

ENTRY %e (a: bf16[2048,2048]) -> bf16[256,2048] {
  %a = bf16[2048,2048]{1,0} parameter(0)
  ROOT %scattered = bf16[256,2048]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter
}
"""


def test_an_all_reduce_of_which_a_fusion_keeps_a_part_is_a_reduce_scatter():
    seconds, sums = run(SCATTER)
    assert {name for name in sums if name.startswith("wire/")} == {"wire/reduce-scatter"}
    assert sums["wire/reduce-scatter"] == MATRIX * 7 / 8
    assert seconds == sums["exposed/reduce-scatter"] == pytest.approx(GATHER, rel=1e-9)


def test_a_plane_has_the_links_of_its_two_axes():
    groups = "replica_groups={{" + ",".join(map(str, range(16))) + "}}"  # z = 0
    seconds, sent = collective("all-gather", groups, torus(4, 4, 4))
    assert seconds == pytest.approx(sent / (4 * CHIP.link_bandwidth) + 9 * LATENCY, rel=1e-9)


def test_a_permute_to_the_neighbour_takes_one_link_and_a_far_one_waits():
    machine = torus(8, 1, 1)
    near = "source_target_pairs={{0,1},{1,2},{2,3},{3,4},{4,5},{5,6},{6,7},{7,0}}"
    far = "source_target_pairs={{0,2},{1,3},{2,4},{3,5},{4,6},{5,7},{6,0},{7,1}}"
    one, sent = collective("collective-permute", near, machine)
    assert (one, sent) == (pytest.approx(MATRIX / CHIP.link_bandwidth + LATENCY), MATRIX)
    assert collective("collective-permute", far, machine)[0] == pytest.approx(
        2 * MATRIX / CHIP.link_bandwidth + LATENCY
    )


# As the compiler writes a sum over slices: the send, work beside it, and the end of the receive of the same rendezvous.
OVER_SLICES = """%product (a.0: bf16[2048,2048], b.0: bf16[2048,2048]) -> bf16[2048,2048] {
  %a.0 = bf16[2048,2048]{1,0} parameter(0)
  %b.0 = bf16[2048,2048]{1,0} parameter(1)
  ROOT %c.0 = bf16[2048,2048]{1,0} convolution(%a.0, %b.0), dim_labels=bf_io->bf
}

ENTRY %e (a: bf16[2048,2048]) -> bf16[2048,2048] {
  %a = bf16[2048,2048]{1,0} parameter(0)
  %token = token[] after-all()
  %send = (bf16[2048,2048]{1,0}, u32[], token[]) send(%a, %token), is_host_transfer=true, frontend_attributes={MEETING}
  %recv = (bf16[2048,2048]{1,0}, u32[], token[]) recv(%token), is_host_transfer=true, frontend_attributes={MEETING}
  %work = bf16[2048,2048]{1,0} fusion(%a, %a), calls=%product, backend_config={"estimated_cycles":"70000"}
  %send-done = token[] send-done(%send), is_host_transfer=true
  %recv-done = (bf16[2048,2048]{1,0}, token[]) recv-done(%recv), is_host_transfer=true
  ROOT %result = bf16[2048,2048]{1,0} get-tuple-element(%recv-done), index=0
}
""".replace("MEETING", '_xla_host_transfer_rendezvous="psum_0",_xla_megascale_transfer_type="ALL_REDUCE"')


@pytest.mark.parametrize(("slices", "shares"), [(2, 1.0), (4, 1.5)])
def test_a_sum_over_slices_takes_the_assumed_network_beside_the_work(slices, shares):
    """A sum over n slices sends 2 (n - 1) / n times the array of a chip."""
    seconds, sums = run(OVER_SLICES, machine=dataclasses.replace(MACHINE, slices=slices))
    network = shares * MATRIX / SLICE_BANDWIDTH
    assert SLICE_BANDWIDTH == 200e9 / 8 / 4
    assert PRODUCT < network == pytest.approx(seconds, rel=1e-9)
    assert sums["wire/all-reduce of slices"] == shares * MATRIX
    assert sums["transfer/all-reduce of slices"] == pytest.approx(network, rel=1e-9)
    assert sums["exposed/all-reduce of slices"] == pytest.approx(network - PRODUCT, rel=1e-9)
