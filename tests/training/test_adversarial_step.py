"""Whole steps of two networks and two optimizers against LlamaGen's own classes, and the same on several devices."""

import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.vq16 import vq_config
from janus_jax.batches import ImageBatch
from janus_jax.models.params import flatten
from janus_jax.models.presets import LOSS_NETWORKS, PRESETS
from janus_jax.training.plan import make_plan
from janus_jax.weights.discriminator import to_llamagen
from tests.helpers import REPOSITORY
from tests.helpers.tokenizer_reference import (
    LPIPS_NARROW,
    VQ_SMALL,
    below,
    discriminator,
    load,
    narrow_lpips,
    probe,
    rule_value,
    shapes_of,
)
from tests.helpers.torch_weights import from_original_vq, original_vq_path

# Their gradient is zero but for rounding, which Adam makes a step.
NOISE = re.compile(r".*\.k\.bias|discriminator\.main\.11\.bias")


@pytest.fixture(scope="module", autouse=True)
def networks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "reference_vq", VQ_SMALL)
        patch.setitem(LOSS_NETWORKS, "lpips", LPIPS_NARROW)
        yield


@pytest.fixture(scope="module")
def arrays():
    return load("train_steps")


@pytest.fixture(scope="module")
def weights(arrays):
    """Tensors of both networks before the first step, by their original names."""
    return {key: rule_value(f"steps/{key}", shape) for key, shape in shapes_of(arrays).items()}


def reference_config(start, adaptive):
    config = vq_config("reference_vq")
    config.dtype, config.train.batch_size, config.train.ema, config.mesh.fsdp = "float32", 3, 0.9, 1
    config.loss.update(
        perceptual_weight=1.0,
        adversarial_weight=0.5,
        discriminator_start=start,
        discriminator_channels=8,
        adaptive_weight=adaptive,
    )
    return config


def first_state(plan, weights):
    ours = from_original_vq({k: v for k, v in weights.items() if not k.startswith("discriminator.")}, VQ_SMALL)
    tensors = below(weights, "discriminator.")
    for number, channels in ((3, 16), (6, 32), (9, 64)):  # the statistics are fresh
        tensors |= {f"main.{number}.running_mean": np.zeros(channels), f"main.{number}.running_var": np.ones(channels)}
    _, params, statistics = discriminator(tensors, 8, 3)
    state = plan.new_state(ours, (params, statistics))
    return jax.device_put(state._replace(loss_networks={"lpips": narrow_lpips()}), plan.shardings)


class Steps:
    """Our state and metrics after each step of a run, and what the reference has of them."""

    def __init__(self, arrays, weights, run, start, adaptive):
        config = reference_config(start, adaptive)
        plan = make_plan(config, jax.devices()[:1])
        step, state = plan.make_step(), first_state(plan, weights)
        self.reference, self.config = below(arrays, f"{run}/"), plan.two_networks.adversarial.discriminator
        self.metrics, self.tensors, self.statistics = [], [], []
        for i in range(len(self.reference["scalars/value"])):
            state, metrics = jax.block_until_ready(step(state, ImageBatch(jnp.asarray(arrays[f"pixels{i}"]))))
            self.metrics.append({name: np.asarray(total / weight) for name, (total, weight) in metrics.items()})
            self.tensors.append(self.by_original_name(state.trainable, state.adversary.params))
            self.statistics.append(to_llamagen({}, state.adversary.statistics, self.config))
        self.average = self.by_original_name(state.ema, state.adversary.params)

    def by_original_name(self, params, discriminator):
        """Tensors in the axes of the original, by name."""
        flat = flatten(params)
        keys = [key for key in shapes_of(load("train_steps")) if not key.startswith("discriminator.")]
        found = {}
        for key in keys:
            value = np.asarray(flat[original_vq_path(key, len(SHAPES[key]))])
            found[key] = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
        named = to_llamagen(discriminator, {}, self.config)
        return found | {f"discriminator.{name}": value for name, value in named.items()}


SHAPES = shapes_of(load("train_steps"))
RUNS = {"start1": (1, False), "start3": (3, False), "adaptive": (1, True)}


# One run by default, which has steps before and after the start: each compiles a program of its own.
PARAMS = [name if name == "start3" else pytest.param(name, marks=pytest.mark.slow) for name in RUNS]


@pytest.fixture(scope="module", params=PARAMS)
def steps(request, arrays, weights):
    return Steps(arrays, weights, request.param, *RUNS[request.param])


def test_all_terms_equal_the_original(steps):
    names = {
        "rec": "loss/pixel",
        "perceptual": "loss/perceptual",
        "adv": "loss/adversarial",
        "codebook": "loss/codebook",
        "commitment": "loss/commitment",
        "generator": "loss",
        "logits_real": "logits/real",
        "logits_fake": "logits/fake",
        "adaptive_weight": "adaptive_weight",
        "grad_norm": "grad_norm",
    }
    scalars = dict(zip(map(str, steps.reference["scalars/name"]), steps.reference["scalars/value"].T, strict=True))
    for theirs, ours in names.items():
        actual = np.array([metrics[ours] for metrics in steps.metrics])
        tolerance = 1e-4 if theirs == "grad_norm" else 2e-5
        np.testing.assert_allclose(actual[:2], scalars[theirs][:2], rtol=tolerance, atol=tolerance, err_msg=theirs)
        # Adam makes whole steps of rounding errors, so that the runs part slowly.
        np.testing.assert_allclose(actual, scalars[theirs], rtol=2 * tolerance, atol=2 * tolerance, err_msg=theirs)
    # Ours is without the weight 0.5 and does not depend on the start. The norm has the weight, as in the original.
    started = scalars["discriminator"] > 0
    actual = np.array([metrics["loss/discriminator"] for metrics in steps.metrics])
    np.testing.assert_allclose(0.5 * actual[started], scalars["discriminator"][started], rtol=0, atol=2e-5)
    actual = np.array([metrics["grad_norm/discriminator"] for metrics in steps.metrics])
    np.testing.assert_allclose(actual, scalars["discriminator_grad_norm"], rtol=1e-4, atol=0)


def test_the_same_codes_are_used(steps):
    for i, metrics in enumerate(steps.metrics):
        expected = np.bincount(steps.reference[f"codes{i}"].ravel(), minlength=VQ_SMALL.num_codes)
        np.testing.assert_array_equal(metrics["code_counts"], expected)


def test_whole_tensors_equal_the_original(steps):
    """Nearly all elements within 1e-6. Adam makes a step of the learning rate, 1e-4, of a gradient that is rounding."""
    differences = []
    for name, expected in steps.reference.items():
        found = re.fullmatch(r"after(\d)/(.+)", name)
        if found and not NOISE.fullmatch(found[2]):
            differences.append(np.abs(steps.tensors[int(found[1]) - 1][found[2]] - expected).ravel())
    differences = np.concatenate(differences)
    assert differences.size > 3000
    assert np.mean(differences > 1e-6) < 1e-4 and differences.max() < 1e-4
    expected = steps.reference["ema/decoder.conv_out.weight"]
    np.testing.assert_allclose(steps.average["decoder.conv_out.weight"], expected, rtol=0, atol=1e-6)


def test_every_parameter_moves_as_in_the_original(steps, arrays):
    """By the sum of each tensor times fixed random numbers, after each step."""
    for i, key in enumerate(map(str, arrays["keys"])):
        if NOISE.fullmatch(key):
            continue
        weight = probe(key, SHAPES[key])
        allowed = 1e-6 * np.linalg.norm(weight) + 1e-4
        for step, tensors in enumerate(steps.tensors, start=1):
            expected = steps.reference["summary"][step, i]
            assert abs(np.sum(tensors[key] * weight) - expected[2]) < allowed, (key, step)


def test_running_statistics_equal_the_original(steps):
    for step, statistics in enumerate(steps.statistics, start=1):
        for name, expected in below(steps.reference, f"stats{step}/").items():
            if "running" in name:
                scale = np.abs(expected).max()
                np.testing.assert_allclose(statistics[name], expected, rtol=0, atol=3e-5 * scale, err_msg=name)


@pytest.fixture(scope="module")
def meshes():
    """Values after two steps of the same images on several meshes, from a separate process."""
    command = [sys.executable, "-m", "tests.helpers.sharded_tokenizer"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def difference(left, right, name):
    return np.abs(np.asarray(left["values"][name]) - np.asarray(right["values"][name])).max()


@pytest.mark.slow
@pytest.mark.parametrize("devices", ["two", "four"])
def test_a_step_does_not_depend_on_the_devices(meshes, devices):
    """With the statistics of all images, the adaptive weight, and divided parameters on four devices."""
    one, several = meshes["one"], meshes[devices]
    assert several["divided"] == {"two": 0, "four": 18}[devices]
    for name, value in one["values"].items():
        tolerance = 1e-5 * max(1.0, np.abs(value).max()) if "of step" in name else 1e-6
        assert difference(one, several, name) < tolerance, name


@pytest.mark.slow
def test_a_micro_batch_normalises_with_its_own_statistics(meshes):
    """As a device does that has the same images, where each has its own."""
    own, parts = meshes["own_statistics"], meshes["micro_batches"]
    assert max(difference(own, parts, name) for name in own["values"] if "of step" not in name) < 1e-6
    # Which is not what statistics of all images give.
    assert difference(own, meshes["one"], "loss/discriminator of step 1") > 1e-3
