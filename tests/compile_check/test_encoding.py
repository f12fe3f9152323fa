"""The encoding of images is a program of its own, whose costs are added to those of the step with stored codes."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import janus_pro_1b, janusflow_1p3b
from janus_jax.batches import FlowBatch
from janus_jax.compile_check import check as check_module
from janus_jax.compile_check import encoding
from janus_jax.compile_check.check import check_plan
from janus_jax.compile_check.encoding import compile_encoding, encodes, with_stored_codes
from janus_jax.compile_check.estimate import estimate
from janus_jax.compile_check.program import topology_devices
from janus_jax.compiler_options import LEAST_EFFORT
from janus_jax.models.execution import Execution
from janus_jax.models.params import bind, build, init_params
from janus_jax.models.presets import JANUS_PRO_TINY, PRESETS
from janus_jax.ops.pixels import normalize
from janus_jax.training.plan import Plan, abstract_batch, make_plan
from tests.compile_check.test_check import PROGRAM


@pytest.fixture(scope="module")
def stage2():
    """Config, plan and batch of eight rows in two micro-batches, two images in a row."""
    config = janus_pro_1b.get_config("stage2:debug")
    config.train.micro_batches = 2
    plan = make_plan(config, jax.devices()[:1])
    return config, plan, abstract_batch(config, plan)


def test_the_program_encodes_the_images_of_a_micro_batch_with_little_effort(stage2, monkeypatch):
    config, plan, batch = stage2
    monkeypatch.setattr(encoding, "compile_program", lambda lowered, devices, options: (lowered, options))
    lowered, options = compile_encoding(plan, batch, {"an_option": "1"})
    assert options == {"an_option": "1", **LEAST_EFFORT}
    vq = plan.architecture.vq
    params = init_params(vq, 0)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 2, vq.image_size, vq.image_size, 3), np.uint8)
    codes = lowered.compile()({"vq": params}, pixels)
    images = normalize(jnp.asarray(pixels.reshape(8, *pixels.shape[2:])), jnp.float32)
    encode = jax.jit(
        lambda params, images: bind(build(vq, Execution(dtype=jnp.float32)), params)(images, method="encode")
    )
    np.testing.assert_array_equal(codes, encode(params, images))


def test_only_steps_that_generate_without_stored_codes_encode(stage2):
    config, _, batch = stage2
    assert encodes(config, batch)
    assert not encodes(config, with_stored_codes(batch))
    without = config.copy_and_resolve_references()
    without.data.ratio.generate = 0.0
    assert not encodes(without, batch)
    assert not encodes(janusflow_1p3b.get_config("stage2"), FlowBatch(batch, None, None, None))


def test_costs_are_those_of_the_step_and_of_the_encoding_of_every_micro_batch(stage2, monkeypatch):
    """Both programs are the hand-written one. Its arguments are 1 byte, its peak is 50."""
    config, plan, _ = stage2
    batches = []
    step = SimpleNamespace(lower=lambda state, batch: batches.append(batch))
    monkeypatch.setattr(Plan, "make_step", lambda plan: step)
    monkeypatch.setattr(check_module, "compile_program", lambda *_: (PROGRAM, ""))
    monkeypatch.setattr(check_module, "compile_encoding", lambda *_: (PROGRAM, ""))
    one = estimate(PROGRAM)
    apart, whole = check_plan(config, plan, "v5p-16", {}), check_plan(config, plan, "v5p-16", {}, whole=True)
    assert [batch.gen_pixels is None for batch in batches] == [True, False]
    for name in ("low", "predicted", "high", "flops", "hbm_bytes"):
        assert getattr(whole.estimate, name) == getattr(one, name)
        assert getattr(apart.estimate, name) == pytest.approx(3 * getattr(one, name))
    assert apart.estimate.wire_bytes["all-gather"] == pytest.approx(3 * one.wire_bytes["all-gather"])
    assert apart.estimate.peak_flops == one.peak_flops and apart.estimate.hbm_capacity == one.hbm_capacity
    # The sum of the gradients of the first micro-batch lies beside the encoding of the second one.
    assert apart.needed_bytes - whole.needed_bytes == apart.state_bytes["trained parameters"]


@pytest.mark.slow  # three programs for TPUs, a minute of one core
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_the_peak_of_both_programs_is_that_of_the_whole_step(monkeypatch, micro_batches):
    pytest.importorskip("libtpu", reason="the TPU compiler, of Linux only")
    llama = dataclasses.replace(JANUS_PRO_TINY.llama, width=128, num_heads=1, num_kv_heads=1, head_dim=128)
    monkeypatch.setitem(PRESETS, "small", dataclasses.replace(JANUS_PRO_TINY, llama=llama, image_head_width=128))
    config = janus_pro_1b.get_config("stage2:debug").unlock()
    config.model, config.dtype, config.remat, config.attention = "small", "bfloat16", "full", "xla"
    config.train.update(batch_size=8 * micro_batches, micro_batches=micro_batches)
    config.data.row_length = config.loss.chunk_size = 256
    config.mesh.fsdp = 4
    plan = make_plan(config, topology_devices("v5e-4"))
    apart, whole = (check_plan(config, plan, "v5e-4", {}, whole) for whole in (False, True))
    assert apart.needed_bytes == pytest.approx(whole.needed_bytes, rel=0.02)
