"""The discriminator against LlamaGen's in both modes: logits, gradients and running statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.models.config import PatchDiscriminatorConfig
from janus_jax.models.params import abstract_params, bind, build, count, init_params
from janus_jax.models.patch_discriminator import fresh_norm_statistics
from janus_jax.ops.batch_norm import Statistics, update_running
from janus_jax.weights.discriminator import to_llamagen
from tests.helpers.tokenizer_reference import below, discriminator, load, nhwc

RELEASED = PatchDiscriminatorConfig(base_channels=64, num_layers=3, norm_eps=1e-5)


@pytest.fixture(scope="module", params=["patchgan", "patchgan_odd"])
def case(request):
    arrays = load(request.param)
    return arrays, discriminator(below(arrays, "weights/"), arrays["ndf"], arrays["n_layers"])


def close(actual, expected, name):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=3e-5 * scale, err_msg=name)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_logits_and_gradients_equal_the_original(case, mode):
    arrays, (config, params, running) = case
    model, cotangent = build(config), jnp.asarray(arrays["cotangent"][:, 0])

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def run(params, x):
        logits, statistics = bind(model, params)(x, running if mode == "eval" else None)
        return jnp.sum(logits * cotangent), (logits, statistics)

    (_, (logits, statistics)), (params_gradient, x_gradient) = run(params, nhwc(arrays["x"]))
    close(logits, arrays[f"{mode}/logits"][:, 0], "logits")
    close(x_gradient.transpose(0, 3, 1, 2), arrays[f"{mode}/grad_x"], "grad_x")
    if mode == "train":
        gradients = to_llamagen(params_gradient, {}, config)
        expected = below(arrays, "train/grad/")
        assert gradients.keys() == expected.keys()
        for name, value in expected.items():
            close(gradients[name], value, name)
        after = to_llamagen(params, update(running, statistics), config)
        for name, value in below(arrays, "train/stats/").items():
            if "running" in name:
                close(after[name], value, name)


def update(running, batch):
    return jax.tree.map(update_running, running, batch, is_leaf=lambda node: isinstance(node, Statistics))


def test_statistics_move_three_times_in_a_training_step(case):
    arrays, (config, params, running) = case
    forward = jax.jit(lambda x: bind(build(config), params)(x)[1])
    for images in ("fake", "real", "fake"):
        running = update(running, forward(nhwc(arrays[images])))
    after = to_llamagen(params, running, config)
    for name, value in below(arrays, "step/stats/").items():
        if "running" in name:
            close(after[name], value, name)


def test_released_size():
    assert count(abstract_params(RELEASED)) == 2_765_633
    assert [RELEASED.grid(side) for side in (256, 32, 24, 23)] == [30, 2, 1, 0]
    assert {name: value.mean.shape for name, value in fresh_norm_statistics(RELEASED).items()} == {
        "norm_1": (128,),
        "norm_2": (256,),
        "norm_3": (512,),
    }


def test_fresh_parameters_have_the_distribution_of_the_original():
    params = init_params(RELEASED, seed=0)
    assert np.std(params["conv_2"]["kernel"]) == pytest.approx(0.02, rel=0.01)
    assert np.mean(params["norm_3"]["scale"]) == pytest.approx(1, abs=0.003)
    assert np.std(params["norm_3"]["scale"]) == pytest.approx(0.02, rel=0.15)
    assert not np.any(params["norm_3"]["bias"])
    assert 0.8 / 48**0.5 < np.abs(params["conv_0"]["bias"]).max() < 1 / 48**0.5  # torch's default
    assert "bias" not in params["conv_1"]


def test_an_image_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match=r"23.*3 layers"):
        jax.eval_shape(lambda: bind(build(RELEASED), init_params(RELEASED, 0))(jnp.zeros((2, 23, 40, 3))))
