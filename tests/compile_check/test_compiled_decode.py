"""What the TPU compiler makes of the loop that generates images, with a small model on four chips."""

import dataclasses

import pytest

from janus_jax.compile_check.decode import PROMPT_TOKENS, check_decoding
from janus_jax.errors import UserError
from janus_jax.models.presets import JANUS_PRO_7B, JANUS_PRO_TINY

pytest.importorskip("libtpu", reason="the TPU compiler, of Linux only")

LLAMA = {"width": 512, "num_heads": 8, "num_kv_heads": 8, "head_dim": 128, "mlp_dim": 1408, "depth": 2}
SMALL = dataclasses.replace(
    JANUS_PRO_TINY,
    llama=dataclasses.replace(JANUS_PRO_TINY.llama, **LLAMA),
    image_head_width=512,
    vq=dataclasses.replace(JANUS_PRO_TINY.vq, image_size=1024),  # so many codes that VMEM holds no cache of a layer
)


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_a_step_gathers_no_weights_and_copies_no_cache_nor_does_a_call(quantization):
    mesh = {"data": 1, "fsdp": 1, "tensor": 4}
    checked = check_decoding(
        "small", SMALL, "v5e:2x2", mesh, images=16, dtype="bfloat16", quantization=quantization, options={}
    )
    assert checked.step.moved_weights == []
    assert checked.step.copied_caches == []
    assert checked.step.hbm_bytes < 2.1 * checked.step.floor_bytes  # the floor is of the average step
    assert checked.program.memory.temporary < checked.cache_bytes / 4  # a call that copied them would hold them twice


@pytest.mark.slow  # the default test of one code per step guards the same layout of the cache
@pytest.mark.parametrize(("images", "window"), [(1, 32), (16, 4)])
def test_a_pass_of_a_window_gathers_no_weights_and_copies_no_cache(images, window):
    def check(window, **options):
        mesh = {"data": 1, "fsdp": 1, "tensor": 4}
        options = {"dtype": "bfloat16", "quantization": None, "options": {}} | options
        return check_decoding("small", SMALL, "v5e:2x2", mesh, images=images, window=window, **options)

    one, several = check(1), check(window, codes_per_pass=2.0)
    assert several.step.moved_weights == several.step.copied_caches == []
    assert several.step.hbm_bytes < 1.1 * one.step.hbm_bytes
    assert several.program.memory.temporary < several.cache_bytes / 4
    slots = SMALL.vq.num_tokens
    per_slot = one.cache_bytes / (slots + PROMPT_TOKENS / images)
    assert several.cache_bytes - one.cache_bytes == pytest.approx((window - 1) * per_slot)
    assert one.image_seconds == one.step.predicted * slots
    assert several.image_seconds == several.step.predicted * slots / 2


def test_more_codes_per_pass_than_the_window_has_are_refused():
    options = dict(images=1, dtype="bfloat16", quantization=None, options={}, codes_per_pass=4.5)
    with pytest.raises(UserError, match="--codes_per_pass=4.5: expected at most --window=4"):
        check_decoding("small", SMALL, "v5e:2x2", {"data": 1, "fsdp": 1, "tensor": 4}, window=4, **options)


@pytest.mark.slow
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_a_step_of_the_7b_writes_no_cache_back(quantization):
    """Without `compiler_options.TPU_IMAGE_LOOP` the compiler keeps the keys of a layer in VMEM and writes them back."""
    mesh = {"data": 1, "fsdp": 1, "tensor": 4}
    checked = check_decoding(
        "7B", JANUS_PRO_7B, "v5e:2x2", mesh, images=16, dtype="bfloat16", quantization=quantization, options={}
    )
    assert checked.fits
    assert checked.step.moved_weights == checked.step.copied_caches == []


@pytest.mark.slow
def test_a_pass_of_32_codes_of_the_7b_takes_at_most_a_quarter_longer_than_a_step():
    """No cache should be copied either. One array of 60 still is, which docs/performance.md says; more may not be."""

    def check(window, codes_per_pass):
        mesh = {"data": 1, "fsdp": 1, "tensor": 4}
        options = {"dtype": "bfloat16", "quantization": None, "options": {}, "codes_per_pass": codes_per_pass}
        return check_decoding("7B", JANUS_PRO_7B, "v5e:2x2", mesh, images=1, window=window, **options)

    one, several = check(1, 1.0), check(32, 144 / 46.4)  # passes of the trained model, docs/performance.md
    assert several.step.predicted < 1.25 * one.step.predicted
    assert one.image_seconds > 2.5 * several.image_seconds
    assert several.step.moved_weights == []
    assert len(several.step.copied_caches) <= 1
