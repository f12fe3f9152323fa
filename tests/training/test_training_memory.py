"""What a run needs in numbers that follow from its sizes, and when it is refused."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from configs import janus_pro_1b
from janus_jax.errors import UserError
from janus_jax.models.params import abstract_params, count
from janus_jax.models.presets import JANUS_PRO_1B
from janus_jax.training import loop, memory
from janus_jax.training.memory import ACTIVATIONS, SAVING_FACTOR, WORKER_BYTES, check_memory, estimate_memory
from janus_jax.training.plan import make_plan
from janus_jax.weights.vae import load_vae
from tests.helpers.tiny_runs import MICRO_FLOW, MICRO_JANUS, adversarial_experiment, flow_experiment, janus_experiment


@pytest.fixture
def config(data_folder):
    """Text alone, which is traced fastest."""
    config = janus_experiment(data_folder)
    config.check_memory = True
    config.data.ratio.update(understand=0.0, generate=0.0)
    return config


def free(monkeypatch, host, device=None):
    monkeypatch.setattr(memory, "free_host_bytes", lambda: host)
    monkeypatch.setattr(memory, "free_bytes", lambda devices: device)


def test_the_state_is_that_of_the_parameters(config):
    need = estimate_memory(config, make_plan(config))
    params = abstract_params(MICRO_JANUS)
    trained = count(params) - count(params["vq"])
    assert need.device["parameters"] == 4 * count(params)
    assert need.device["gradients"] == 4 * trained
    assert need.device["optimizer"] == pytest.approx(2 * 4 * trained, abs=64)  # two moments and counters
    step_number = 4
    assert need.host["saving"] == int(SAVING_FACTOR * (4 * count(params) + need.device["optimizer"] + step_number))
    assert need.devices_in_host == 1
    assert need.host_total == sum(need.device.values()) + sum(need.host.values())


def test_a_checkpoint_of_adapters_has_no_model_below_them(config):
    config.init.checkpoint, config.trainable = "base", ((".*", False),)
    config.lora.rules = (("llm/.*q_proj/kernel", 2, 4.0),)
    need = estimate_memory(config, make_plan(config))
    step_number = 4
    trained = need.device["gradients"] + need.device["optimizer"] + step_number
    assert need.host["saving"] == int(SAVING_FACTOR * trained) < need.device["parameters"]


def test_rows_in_parts_take_fewer_activations_and_workers_take_memory(config):
    whole = estimate_memory(config, make_plan(config))
    config.train.micro_batches = 4
    parts = estimate_memory(config, make_plan(config))
    assert parts.device[ACTIVATIONS] < 0.5 * whole.device[ACTIVATIONS]
    assert {part: size for part, size in parts.device.items() if part != ACTIVATIONS} == {
        part: size for part, size in whole.device.items() if part != ACTIVATIONS
    }
    config.data.workers = 2
    ring = 7 * whole.host["reading data"] // 3  # six blocks of a ring and the batch, instead of two and the batch
    assert estimate_memory(config, make_plan(config)).host["reading data"] == ring + 2 * WORKER_BYTES


def test_a_run_that_does_not_fit_is_refused_with_numbers_and_with_what_would_fit(config, monkeypatch, tmp_path):
    need = estimate_memory(config, make_plan(config)).host_total
    free(monkeypatch, need)
    line = check_memory(config, make_plan(config))
    assert f"{need / 1e9:.2f} GB of host memory" in line
    free(monkeypatch, need - 1)
    with pytest.raises(
        UserError, match=rf"{need / 1e9:.2f} GB.*micro_batches=4.*would need.*config\.check_memory=False"
    ):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "model.json").exists()
    free(monkeypatch, 1000)
    with pytest.raises(UserError, match=r"0\.00 GB are free.*mesh\.fsdp.*:debug"):
        check_memory(config, make_plan(config))


def test_an_accelerator_is_only_refused_for_what_is_certain(config, monkeypatch):
    plan = make_plan(config)
    need = estimate_memory(config, plan)
    monkeypatch.setattr(
        memory,
        "estimate_memory",
        lambda *_: memory.Memory(need.device | {ACTIVATIONS: 10**15}, need.host, devices_in_host=0),
    )
    free(monkeypatch, sum(need.host.values()), need.device_certain)
    check_memory(config, plan)
    free(monkeypatch, sum(need.host.values()), need.device_certain - 1)
    with pytest.raises(UserError, match="on each device"):
        check_memory(config, plan)
    free(monkeypatch, sum(need.host.values()) - 1, need.device_certain)
    with pytest.raises(UserError, match="host memory"):
        check_memory(config, plan)
    free(monkeypatch, None, None)
    assert "not known" in check_memory(config, plan)


def test_processes_decide_by_the_one_with_the_largest_shortage(config, monkeypatch):
    plan = make_plan(config)
    free(monkeypatch, 10**12)
    monkeypatch.setattr(memory.jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        memory.multihost_utils, "process_allgather", lambda pair: memory.np.stack([pair, [pair[0], 2e9 + pair[0] * 0]])
    )
    check_memory(config, plan)
    monkeypatch.setattr(
        memory.multihost_utils, "process_allgather", lambda pair: memory.np.stack([pair, [pair[0], 1e6]])
    )
    with pytest.raises(UserError, match=r"0\.00 GB are free"):
        check_memory(config, plan)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_the_1b_is_refused_on_a_laptop(stage, monkeypatch):
    """Without a parameter of it in memory."""
    free(monkeypatch, 23 * 10**9)
    config = janus_pro_1b.get_config(stage)
    before = len(jax.live_arrays())
    with pytest.raises(UserError, match=r"parameters 8\.31, .*23\.00 GB are free.*:debug"):
        check_memory(config, make_plan(config))
    assert len(jax.live_arrays()) <= before
    assert math.isclose(4 * count(abstract_params(JANUS_PRO_1B)) / 1e9, 8.31, abs_tol=0.01)


def test_a_discriminator_counts_with_its_gradient_and_its_moments(data_folder):
    config = adversarial_experiment(data_folder)
    plan = make_plan(config)
    both = 4 * (count(plan.state.trainable) + count(plan.state.adversary.params))
    device = estimate_memory(config, plan).device
    assert device["gradients"] == both
    assert device["parameters"] == both + 4 * count(plan.state.ema)
    assert device["optimizer"] == pytest.approx(2 * both, abs=64)  # and the counters of steps
    config.loss.adversarial_weight = 0.0
    assert device["activations"] > estimate_memory(config, make_plan(config)).device["activations"]


def test_a_vae_counts_with_its_parameters_and_with_the_images_that_it_encodes_at_once(data_folder):
    """A VAE of more channels than the micro one, so that encoding takes more than the step."""
    config = flow_experiment(data_folder)
    small, _ = load_vae(config.init.vae, np.float32)
    vae = dataclasses.replace(small, base_channels=64 * small.base_channels)
    need = estimate_memory(config, make_plan(config), vae)
    assert need.device["VAE"] == 4 * count(abstract_params(vae))
    images, size = config.train.batch_size * config.data.gen_slots, MICRO_FLOW.uvit.latent_size * vae.downsampling
    layer = 4 * images * size**2 * vae.base_channels  # bytes of a layer of the first block, in float32
    assert 2 * layer <= need.device[ACTIVATIONS] <= 6 * layer
