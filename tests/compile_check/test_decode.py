"""What the check reads from a compiled loop over image codes: time, traffic, moved weights, copied caches."""

import types

import jax
import jax.numpy as jnp
import pytest

from janus_jax.compile_check import decode
from janus_jax.compile_check.hlo import parse
from janus_jax.compile_check.program import Memory, Program
from janus_jax.errors import UserError
from janus_jax.hardware import CHIPS, Machine
from janus_jax.models.presets import JANUSFLOW_1P3B

KIND = "TPU v5 lite"
BANDWIDTH = CHIPS[KIND].tpu.hbm_bandwidth
CACHE, WEIGHT, ROW = 2 * 64 * 8 * 128, 2 * 1024 * 512, 2 * 8 * 1024  # bytes

# One weight [1024, 512] and the keys of one layer [64, 8, 128]; a step multiplies a row of 8 x 1024 and writes a slot.
TEXT = """HloModule loop, is_scheduled=true

%product (a.0: bf16[8,1024], b.0: bf16[1024,512]) -> bf16[8,512] {
  %a.0 = bf16[8,1024]{1,0} parameter(0)
  %b.0 = bf16[1024,512]{1,0} parameter(1)
  ROOT %c.0 = bf16[8,512]{1,0} convolution(%a.0, %b.0), dim_labels=bf_io->bf
}

%condition (p.1: (s32[], bf16[8,1024], bf16[1024,512], bf16[64,8,128])) -> pred[] {
  %p.1 = (s32[], bf16[8,1024]{1,0}, bf16[1024,512]{1,0}, bf16[64,8,128]{2,1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  ROOT %less.1 = pred[] compare(%i.1, %i.1), direction=LT
}

%body (p.2: (s32[], bf16[8,1024], bf16[1024,512], bf16[64,8,128])) -> (s32[], bf16[8,1024], bf16[1024,512], bf16[64,8,128]) {
  %p.2 = (s32[], bf16[8,1024]{1,0}, bf16[1024,512]{1,0}, bf16[64,8,128]{2,1,0}) parameter(0)
  %i.2 = s32[] get-tuple-element(%p.2), index=0
  %x.2 = bf16[8,1024]{1,0} get-tuple-element(%p.2), index=1
  %weight.2 = bf16[1024,512]{1,0} get-tuple-element(%p.2), index=2
  %keys.2 = bf16[64,8,128]{2,1,0} get-tuple-element(%p.2), index=3
  %fetch-start.2 = (bf16[1024,512]{1,0:S(1)}, bf16[1024,512]{1,0}, u32[]) copy-start(%weight.2)
  %fetch-done.2 = bf16[1024,512]{1,0:S(1)} copy-done(%fetch-start.2)
  %half.2 = bf16[8,512]{1,0} fusion(%x.2, %fetch-done.2), kind=kOutput, calls=%product
  %whole.2 = bf16[8,1024]{1,0} all-gather(%half.2), channel_id=1, replica_groups={{0,1}}, dimensions={1}
  ROOT %t.2 = (s32[], bf16[8,1024]{1,0}, bf16[1024,512]{1,0}, bf16[64,8,128]{2,1,0}) tuple(%i.2, %whole.2, %weight.2, %keys.2)
}

ENTRY %main (x: bf16[8,1024], weight: bf16[1024,512], keys: bf16[64,8,128]) -> bf16[64,8,128] {
  %x = bf16[8,1024]{1,0} parameter(0)
  %weight = bf16[1024,512]{1,0} parameter(1)
  %keys = bf16[64,8,128]{2,1,0} parameter(2)
  %zero = s32[] constant(0)
  %start = (s32[], bf16[8,1024]{1,0}, bf16[1024,512]{1,0}, bf16[64,8,128]{2,1,0}) tuple(%zero, %x, %weight, %keys)
  %loop = (s32[], bf16[8,1024]{1,0}, bf16[1024,512]{1,0}, bf16[64,8,128]{2,1,0}) while(%start), condition=%condition, body=%body
  ROOT %result = bf16[64,8,128]{2,1,0} get-tuple-element(%loop), index=3
}
"""  # noqa: E501
GATHERED = (
    "  %all.2 = bf16[1024,1024]{1,0} all-gather(%weight.2), channel_id=2, replica_groups={{0,1}}, dimensions={1}\n"
)
COPIED = "  %again.2 = bf16[64,8,128]{0,2,1} copy(%keys.2)\n"
READ = "  %read.2 = bf16[64,8,128]{0,2,1:S(1)} copy(%keys.2)\n"
BEFORE = "  %once = bf16[64,8,128]{0,2,1} copy(%keys)\n"


def in_step(line):
    return TEXT.replace("  ROOT %t.2", line + "  ROOT %t.2")


def judge(text):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def shape(*dims, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(dims, dtype, sharding=device)

    cache = types.SimpleNamespace(k=[shape(64, 8, 128)])
    state = types.SimpleNamespace(cache=cache)
    loop = types.SimpleNamespace(params={"llm": {"layers_0": {"kernel": shape(1024, 512)}}}, state=state)
    memory = Memory(arguments=WEIGHT, outputs=0, aliased=0, temporary=0, peak=0, program=0)
    program = Program(text, Machine(KIND, 1, ((0, 0, 0), (1, 0, 0))), memory, "0.11.1", "0.0.46.3")
    return decode.judge(program, loop, floor_bytes=WEIGHT + CACHE // 2)


def test_a_step_moves_each_weight_once_and_nothing_else():
    step = judge(TEXT)
    assert (step.moved_weights, step.copied_caches) == (
        [],
        [],
    )  # the all-gather is of a row, the copy to VMEM a weight's
    assert step.hbm_bytes == pytest.approx(WEIGHT + ROW + ROW // 2, rel=1e-3)
    assert step.predicted >= step.hbm_bytes / BANDWIDTH
    assert step.share_of_floor == pytest.approx((WEIGHT + CACHE // 2) / BANDWIDTH / step.predicted)
    assert step.around == pytest.approx(0, abs=1e-12)


def test_a_gathered_weight_and_a_copied_cache_are_named():
    assert judge(in_step(GATHERED)).moved_weights == ["all.2"]
    assert judge(in_step(COPIED)).copied_caches == ["again.2"]
    assert judge(in_step(READ)).copied_caches == []
    before = judge(TEXT.replace("  %start =", BEFORE + "  %start ="))
    assert before.copied_caches == []
    assert before.around == pytest.approx(2 * CACHE / BANDWIDTH)


def test_a_program_without_the_loop_is_refused():
    with pytest.raises(ValueError, match="0 loops"):
        decode.step_of(parse(TEXT.replace("while(", "custom-call(")))


def test_a_model_without_codes_is_refused_before_the_compiler_is_asked():
    options = dict(images=1, dtype="bfloat16", quantization=None, options={})
    with pytest.raises(UserError, match="janusflow"):
        decode.check_decoding("janusflow", JANUSFLOW_1P3B, "v5e:2x2", {}, **options)
