"""What a batch of an evaluation costs, and how long the benchmarks take."""

import dataclasses

import pytest

from janus_jax.compile_check import benchmark_hours
from janus_jax.compile_check.batches import ROWS, TEXT_TOKENS, BatchCheck, Part, check_batches
from janus_jax.compile_check.benchmark_hours import WORKLOADS
from janus_jax.errors import UserError
from janus_jax.hardware import CHIPS
from janus_jax.models.presets import JANUS_PRO_TINY, JANUSFLOW_1P3B

V5E = CHIPS["TPU v5 lite"]
GIB = 2**30


def part(milliseconds, needed_bytes=GIB):
    return Part(milliseconds / 2e3, milliseconds / 1e3, milliseconds / 5e2, needed_bytes)


CHECK = BatchCheck(
    name="7B",
    topology="v5e:2x2",
    chips=4,
    mesh={"data": 1, "fsdp": 1, "tensor": 4},
    dtype="bfloat16",
    quantization=None,
    questions=part(300),
    answer_call=part(20),
    answer_step=part(5, 3 * GIB),
    prompts=part(10),
    code_steps=part(4000, 2 * GIB),
    pixels=part(50),
    hbm_bytes=16 * GIB,
)
BY_NAME = {workload.name: workload for workload in WORKLOADS}


def test_a_batch_is_the_sum_of_its_programs():
    assert CHECK.answers(2).predicted == pytest.approx(0.32)
    assert CHECK.answers(10).predicted == pytest.approx(0.36)
    assert (CHECK.images.low, CHECK.images.predicted, CHECK.images.high) == pytest.approx((2.03, 4.06, 8.12))
    assert (CHECK.answers(2).needed_bytes, CHECK.images.needed_bytes) == (3 * GIB, 2 * GIB)
    assert CHECK.needed_bytes == 3 * GIB


@pytest.mark.parametrize(
    ("name", "workers", "batches", "seconds"),
    [
        ("pope", 1, 321, 0.325),  # 5,127 questions, the last batch of 7
        ("pope", 16, 21, 0.325),
        ("geneval", 1, 139, 4.06),
        ("geneval", 4, 35, 4.06),
        ("mmvet", 16, 1, 2.87),  # 14 batches
    ],
)
def test_hours_are_those_of_the_worker_with_the_most_batches(name, workers, batches, seconds):
    found = benchmark_hours.hours(CHECK, BY_NAME[name], workers)
    assert 3600 * found == pytest.approx(batches * seconds)


def test_the_report_says_what_it_found():
    report = benchmark_hours.format_report(CHECK)
    assert "needed per chip, GB: 3.2 of 17.2: fits" in report
    assert "questions per second: 49.2" in report and "images per second: 3.94" in report
    assert f"{'coco_fid: 30,000 images':<42}       2.1      0.53      0.13" in report
    table = benchmark_hours.as_dict(CHECK)["benchmarks"]
    assert table["vqav2"]["hours"]["v5e-4"] == pytest.approx(13_398 * 0.35 / 3600)
    large = dataclasses.replace(CHECK, pixels=part(50, 17 * GIB))
    assert "DOES NOT FIT" in benchmark_hours.format_report(large)


def test_a_model_without_codes_is_refused_before_the_compiler_is_asked():
    with pytest.raises(UserError, match="janusflow"):
        check_batches("janusflow", JANUSFLOW_1P3B, "v5e:2x2", {}, dtype="bfloat16", quantization=None, options={})


@pytest.mark.slow
def test_a_compiled_batch_takes_at_least_its_operations():
    """A small model on four chips; its language model does 2 operations per weight and token."""
    pytest.importorskip("libtpu", reason="the TPU compiler, of Linux only")
    changes = {"width": 512, "num_heads": 8, "num_kv_heads": 8, "head_dim": 64, "mlp_dim": 1408, "depth": 2}
    llama = dataclasses.replace(JANUS_PRO_TINY.llama, **changes)
    small = dataclasses.replace(JANUS_PRO_TINY, llama=llama, image_head_width=512)
    mesh = {"data": 1, "fsdp": 1, "tensor": 4}
    options = {"dtype": "bfloat16", "options": {}}
    plain = check_batches("small", small, "v5e:2x2", mesh, quantization=None, **options)
    weights = llama.depth * (4 * 512 * 512 + 3 * 512 * 1408)
    flops = 2 * weights * ROWS * (2 * TEXT_TOKENS + small.siglip.num_tokens) / plain.chips
    assert flops / V5E.flops <= plain.questions.low <= plain.questions.predicted <= plain.questions.high
    assert plain.answer_step.predicted < plain.answer_call.predicted < plain.questions.predicted
    assert plain.code_steps.low > (small.image_tokens - 1) * 2 * weights / plain.chips / V5E.tpu.hbm_bandwidth
    int8 = check_batches("small", small, "v5e:2x2", mesh, quantization="int8", **options)
    assert int8.needed_bytes < plain.needed_bytes
