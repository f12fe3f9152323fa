"""What stops or warns a run of an image tokenizer: collapsed codes, a discriminator that wins, terms not finite."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from configs.vq16 import vq_config
from janus_jax.errors import UserError
from janus_jax.models.presets import LOSS_NETWORKS
from janus_jax.training import loop, plan
from janus_jax.training.objectives.base import CODE_COUNTS, code_usage
from janus_jax.training.plan import make_plan
from janus_jax.training.resilience.nan_guard import NanGuard
from janus_jax.training.tokenizer_warnings import tokenizer_warnings
from tests.helpers.tiny_runs import adversarial_experiment, vq_experiment
from tests.helpers.tokenizer_reference import LPIPS_NARROW

ONE = jnp.ones(())


def counting_step(metrics):
    """A step that only counts, with these metrics."""
    return lambda state, batch: (
        state._replace(step=state.step + 1),
        {"loss": (ONE, ONE), "images": (ONE, ONE), **metrics},
    )


def test_usage_and_perplexity_of_counts():
    assert code_usage(np.array([3.0, 0, 0, 0])) == {"codes/usage": 0.25, "codes/perplexity": 1.0}
    even = code_usage(np.array([5.0, 5, 5, 5]))
    assert even == {"codes/usage": 1.0, "codes/perplexity": pytest.approx(4.0)}
    skewed = code_usage(np.array([1.0, 3, 0, 0]))["codes/perplexity"]
    assert skewed == pytest.approx(4 / 27**0.25)  # exp(ln 4 - 3/4 ln 3)


@pytest.mark.parametrize(
    ("means", "named"),
    [
        ({"codes/usage": 0.04}, ["4.00%.*min_code_usage=0.05"]),
        ({"codes/usage": 0.06, "accuracy/discriminator": 0.9}, []),
        ({"codes/usage": 0.5, "accuracy/discriminator": 0.995}, ["99.50%.*discriminator_start"]),
        ({"loss": 1.0}, []),
    ],
)
def test_what_is_warned_of(means, named):
    loss = vq_config("micro_vq").loss
    loss.discriminator_start = 10
    found = tokenizer_warnings(loss, 10, means)
    assert len(found) == len(named)
    for pattern, warning in zip(named, found, strict=True):
        assert re.search(pattern, warning)


def test_a_discriminator_is_not_blamed_before_the_start():
    assert tokenizer_warnings(vq_config("micro_vq").loss, 19_999, {"accuracy/discriminator": 1.0}) == []


def test_a_run_whose_images_have_one_code_says_so(data_folder, tmp_path, monkeypatch, capsys):
    counts = jnp.zeros(32).at[7].set(64.0)

    config = vq_experiment(data_folder, num_steps=2)
    config.trainable = (("codebook", True), (".*", False))
    monkeypatch.setattr(plan, "make_train_step", lambda *_: counting_step({CODE_COUNTS: (counts, ONE)}))
    last = loop.train(config, tmp_path)
    assert last["codes/usage"] == 1 / 32 and last["codes/perplexity"] == pytest.approx(1.0)
    assert "warning: step 1: only 3.12% of the codes" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["loss/discriminator", "grad_norm/discriminator"])
def test_a_discriminator_that_is_not_finite_stops_the_run_by_name(tmp_path, name):
    guard = NanGuard(tmp_path)
    metrics = {"loss": (ONE, ONE), "grad_norm": (ONE, ONE), CODE_COUNTS: (jnp.ones(4), ONE)}
    guard.add(3, metrics | {name: (jnp.float32(np.nan), ONE)}, {"pixels": jnp.ones((2, 3))})
    with pytest.raises(FloatingPointError, match=f"step 3: {name} is nan"):
        guard.check()
    assert list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"discriminator_loss": "lecam"}, r"config\.loss\.discriminator_loss='lecam'"),
        ({"batch_statistics": "slice"}, r"config\.loss\.batch_statistics='slice'"),
        ({"discriminator_layers": 2}, r"config\.loss\.discriminator_layers=2 needs images of at least 12 pixels.* 8"),
        ({"adversarial_weight": -1.0}, r"config\.loss\.adversarial_weight=-1"),
    ],
)
def test_fields_that_cannot_work_are_refused(data_folder, change, expected):
    config = adversarial_experiment(data_folder)
    config.loss.update(change)
    with pytest.raises(UserError, match=expected):
        make_plan(config)


def test_an_adaptive_weight_needs_the_last_layer(data_folder):
    config = adversarial_experiment(data_folder)
    config.loss.adaptive_weight = True
    config.trainable = (("encoder/.*", True), (".*", False))
    with pytest.raises(UserError, match=r"adaptive_weight=True.*decoder/conv_out/kernel"):
        make_plan(config)


def test_a_perceptual_loss_without_files_is_refused_before_any_work(data_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(LOSS_NETWORKS, "lpips", LPIPS_NARROW)
    config = adversarial_experiment(data_folder)
    config.loss.perceptual_weight = 1.0
    with pytest.raises(UserError, match=r"config\.loss\.lpips_trunk='', config\.loss\.lpips_heads=''.*vgg16-397923af"):
        loop.train(config, tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_run_keeps_or_has_no_discriminator_to_its_end(data_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "make_train_step", lambda *_: counting_step({}))
    loop.train(vq_experiment(data_folder, num_steps=2), tmp_path)
    config = adversarial_experiment(data_folder)
    config.train.ema = 0.0
    with pytest.raises(UserError, match=r"config\.loss\.adversarial_weight is above 0, .* hold no discriminator"):
        loop.train(config, tmp_path)
