"""A term of the tokenizer's loss that is not finite stops the run, is named, and leaves its batch behind."""

import jax
import numpy as np
import pytest

from configs.vq16 import vq_config
from janus_jax.batches import ImageBatch
from janus_jax.models.params import flatten, init_params, unflatten
from janus_jax.models.presets import LOSS_NETWORKS, PRESETS
from janus_jax.training.loss_networks import initial_discriminator
from janus_jax.training.plan import make_plan
from janus_jax.training.resilience.nan_guard import NanGuard
from tests.helpers.tiny_runs import MICRO_VQ
from tests.helpers.tokenizer_reference import LPIPS_NARROW, narrow_lpips

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def compiled():
    """(plan, step, state before it), with every term that a tokenizer can have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "micro_vq", MICRO_VQ)
        patch.setitem(LOSS_NETWORKS, "lpips", LPIPS_NARROW)
        config = vq_config("micro_vq")
        config.dtype, config.train.batch_size, config.data.image_size, config.mesh.fsdp = "float32", 2, 16, 1
        config.loss.update(perceptual_weight=1.0, adversarial_weight=0.5, discriminator_start=0, entropy_weight=0.1)
        config.loss.update(discriminator_layers=1, discriminator_channels=4)
        plan = make_plan(config, jax.devices()[:1])
        discriminator = initial_discriminator(plan.two_networks.adversarial.discriminator, "", 0, plan.mesh)[0]
        state = plan.new_state(init_params(MICRO_VQ, 0), discriminator)
        state = jax.device_put(state._replace(loss_networks={"lpips": narrow_lpips()}), plan.shardings)
        yield plan, plan.make_step(), jax.tree.map(np.asarray, state)


def poisoned(params, path):
    """The parameters with one element that is not a number."""
    flat = dict(flatten(params))
    flat[path] = flat[path].copy()
    flat[path].flat[0] = np.nan
    return unflatten(flat)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "path", "named", "finite"),
    [
        ("lpips", "head_2", {"perceptual"}, {"pixel", "codebook", "adversarial"}),
        ("discriminator", "logits/bias", {"adversarial", "discriminator"}, {"pixel", "perceptual", "codebook"}),
        ("tokenizer", "codebook", {"codebook", "commitment", "entropy"}, set()),
        ("tokenizer", "decoder/conv_out/bias", {"pixel", "perceptual", "adversarial"}, {"codebook", "commitment"}),
        ("tokenizer", "quant_conv/bias", {"codebook", "commitment", "entropy", "pixel"}, set()),
    ],
)
def test_a_term_that_is_not_finite_is_named_and_its_batch_is_kept(compiled, tmp_path, network, path, named, finite):
    plan, step, state = compiled
    if network == "tokenizer":
        state = state._replace(trainable=poisoned(state.trainable, path))
    elif network == "discriminator":
        state = state._replace(adversary=state.adversary._replace(params=poisoned(state.adversary.params, path)))
    else:
        state = state._replace(loss_networks={"lpips": poisoned(state.loss_networks["lpips"], path)})
    batch = ImageBatch(jax.device_put(PIXELS, plan.rows))
    _, metrics = step(jax.device_put(state, plan.shardings), batch)
    guard = NanGuard(tmp_path)
    guard.add(7, metrics, batch)
    with pytest.raises(FloatingPointError, match="step 7: ") as stopped:
        guard.check()
    message = str(stopped.value)
    for name in named:
        assert f"loss/{name} is nan" in message, message
    for name in finite:
        assert f"loss/{name} is nan" not in message, message
    with np.load(next(tmp_path.iterdir()), allow_pickle=False) as kept:
        np.testing.assert_array_equal(kept["pixels"], PIXELS)
