"""What adapters cost: parameters and state of the full sizes, and operations of a compiled step."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from configs import finetune
from janus_jax.compile_check.program import topology_devices
from janus_jax.models.lora import Lora, LoraRule
from janus_jax.models.params import abstract_params, count, flatten
from janus_jax.models.presets import JANUS_PRO_1B, JANUS_PRO_7B, PRESETS
from janus_jax.sharding import local_bytes
from janus_jax.training.plan import abstract_batch, make_plan, model_flops
from tests.helpers.tiny_runs import MICRO_JANUS, janus_experiment

LLM = LoraRule("llm/.*_proj/kernel", 16, 32.0)


@pytest.mark.parametrize(("config", "expected"), [(JANUS_PRO_7B, 37_478_400), (JANUS_PRO_1B, 15_138_816)])
def test_adapters_of_the_llm_have_the_number_of_parameters_that_peft_counts(config, expected):
    flat = flatten(abstract_params(config, Lora((LLM,))))
    assert count([leaf for path, leaf in flat.items() if path.endswith(("lora_a", "lora_b"))]) == expected


@pytest.mark.parametrize(("base_dtype", "largest"), [("bfloat16", 1.1), ("int8", 0.62)])
def test_the_state_is_little_more_than_the_base(base_dtype, largest):
    config = finetune.get_config("janus_pro_7b:lora_understand")
    config.init.checkpoint, config.lora.base_dtype, config.mesh.fsdp = "model", base_dtype, 1
    plan = make_plan(config, jax.devices()[:1])
    base = 2 * count(abstract_params(JANUS_PRO_7B))
    assert local_bytes((plan.state.trainable, plan.state.frozen, plan.state.opt_state)) <= largest * base
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(plan.state.trainable))
    full = finetune.get_config("janus_pro_7b")
    full.mesh.fsdp, full.data.ratio.text, full.data.ratio.generate = 1, 0.0, 0.0
    assert model_flops(config, plan) <= 0.72 * model_flops(full, make_plan(full, jax.devices()[:1]))


@pytest.mark.parametrize(("base_dtype", "slice_"), [("bfloat16", "v5e-8"), ("int8", "v5e-4"), ("int8", "v5e-16")])
def test_a_chip_holds_little_more_than_its_part_of_the_base(base_dtype, slice_):
    config = finetune.get_config("janus_pro_7b:lora")
    config.init.checkpoint, config.lora.base_dtype, config.train.batch_size = "model", base_dtype, 16
    state = make_plan(config, topology_devices(slice_)).state
    base = local_bytes(state.frozen)
    assert base < local_bytes((state.trainable, state.frozen, state.opt_state)) <= 1.06 * base


@pytest.mark.slow
def test_a_compiled_step_has_two_thirds_of_the_operations(data_folder, monkeypatch):
    """Text alone, wide enough that the products of weight matrices are nearly everything."""
    llama = dataclasses.replace(MICRO_JANUS.llama, width=512, mlp_dim=1376, num_heads=8, num_kv_heads=8, head_dim=64)
    monkeypatch.setitem(PRESETS, "wide", dataclasses.replace(MICRO_JANUS, llama=llama))

    def flops(**changes):
        config = janus_experiment(data_folder)
        config.model = "wide"
        config.data.ratio.update(understand=0.0, generate=0.0)
        config.update(changes)
        plan = make_plan(config)
        return plan.make_step().lower(plan.state, abstract_batch(config, plan)).compile().cost_analysis()["flops"]

    full = flops(trainable=(("llm/.*", True), (".*", False)))
    adapted = flops(
        trainable=((".*", False),), init={"checkpoint": "model"}, lora={"rules": (LLM,), "base_dtype": "float32"}
    )
    assert adapted <= 0.72 * full
    assert adapted >= 0.6 * full


@pytest.mark.slow
def test_a_cpu_converts_the_matrices_below_adapters_layer_by_layer(data_folder, monkeypatch):
    """All layers at once would take twice the memory of a base in bfloat16."""
    llama = dataclasses.replace(MICRO_JANUS.llama, depth=12, width=128, mlp_dim=512)
    monkeypatch.setitem(PRESETS, "deep", dataclasses.replace(MICRO_JANUS, llama=llama))

    def temporaries(base_dtype):
        config = janus_experiment(data_folder)
        config.update({"model": "deep", "trainable": ((".*", False),), "remat": "full"})
        config.init.checkpoint, config.lora.rules, config.lora.base_dtype = "model", (LLM,), base_dtype
        config.data.ratio.update(understand=0.0, generate=0.0)
        plan = make_plan(config)
        compiled = plan.make_step().lower(plan.state, abstract_batch(config, plan)).compile()
        layers = plan.state.frozen["llm"]["decoder"]["layers"]
        return compiled.memory_analysis().temp_size_in_bytes, 4 * count(layers)

    (exact, size), (rounded, _) = temporaries("float32"), temporaries("bfloat16")
    assert rounded - exact < 0.25 * size
