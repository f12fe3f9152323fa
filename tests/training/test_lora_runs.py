"""Runs that train adapters: the base stays as it is, in no checkpoint, and any other base or adapter is refused."""

import dataclasses
import json
import math
import re
import shutil

import numpy as np
import pytest
from etils import epath

from janus_jax.data.tokenizer import FILE_NAME
from janus_jax.errors import UserError
from janus_jax.models.params import flatten, init_params
from janus_jax.training import loop
from janus_jax.training.plan import abstract_batch, make_plan
from janus_jax.weights.adapter import merged_model
from janus_jax.weights.load import load_params
from janus_jax.weights.lora_run import adapter_of_run, open_trained, read_record
from janus_jax.weights.native import save_params
from janus_jax.weights.open_model import open_model
from janus_jax.weights.peft import read_adapter, write_adapter
from tests.helpers.tiny_runs import (
    MICRO_FLOW,
    MICRO_JANUS,
    differing_leaves,
    flow_experiment,
    janus_experiment,
    saved_state,
)

RULES = (("llm/.*(q|v|down)_proj/kernel", 3, 6.0), ("(gen_head|aligner|siglip|llm)/.*/kernel", 2, 2.0))
ADAPTED = "llm/decoder/layers/attention/q_proj"


def base_folder(folder, architecture, data_folder, seed=0):
    save_params(folder, architecture, init_params(architecture, seed))
    shutil.copy(data_folder / FILE_NAME, folder / FILE_NAME)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory, data_folder):
    return base_folder(tmp_path_factory.mktemp("base") / "janus", MICRO_JANUS, data_folder)


def lora_experiment(data_folder, base, num_steps=4, make=janus_experiment, **lora):
    config = make(data_folder, num_steps)
    config.init.checkpoint = str(base)
    config.trainable = ((".*", False),)
    config.lora.update({"rules": RULES, "base_dtype": "float32"} | lora)
    return config


@pytest.fixture(scope="module")
def straight(tmp_path_factory, data_folder, base):
    workdir = tmp_path_factory.mktemp("straight")
    loop.train(lora_experiment(data_folder, base), workdir)
    return workdir


def test_a_checkpoint_holds_adapters_and_their_moments_alone(straight, base):
    saved = saved_state(straight, 4)
    params = {path for path in saved if path.startswith("['params']")}
    assert params and all("lora_" in path for path in params)
    moments = [path for path in saved if "mu" in path]
    assert len(moments) == len(params) and all("lora_" in path for path in moments)
    record = json.loads((straight / "lora.json").read_text())
    assert record["base"] == str(base) and record["scales"][f"{ADAPTED}/kernel"] == 2.0
    assert record["scales"]["llm/lm_head/kernel"] == 1.0 and len(record["digests"]) > 100


def test_the_workdir_is_read_as_base_plus_scaled_product(straight, base):
    saved, merged = saved_state(straight, 4), flatten(load_params(open_model(straight)))
    original = flatten(load_params(open_model(base)))
    assert merged.keys() == original.keys()
    q_proj = "['params']['llm']['decoder']['layers']['attention']['q_proj']"
    a, b = (np.asarray(saved[f"{q_proj}['lora_{name}']"], np.float64) for name in "ab")
    assert np.abs(b).max() > 0
    expected = np.asarray(original[f"{ADAPTED}/kernel"], np.float64) + 2.0 * a @ b
    np.testing.assert_allclose(merged[f"{ADAPTED}/kernel"], expected, atol=1e-6)
    same = "llm/decoder/layers/input_norm/scale"
    assert np.array_equal(merged[same], original[same])


@pytest.mark.slow  # the default tests of resuming take the same code
def test_a_resumed_run_equals_a_straight_one_bit_for_bit(straight, tmp_path, data_folder, base):
    loop.train(lora_experiment(data_folder, base, 2), tmp_path)
    loop.train(lora_experiment(data_folder, base, 4), tmp_path)
    assert differing_leaves(saved_state(straight, 4), saved_state(tmp_path, 4)) == []


def changed_base(config, folder, data_folder):
    config.init.checkpoint = str(base_folder(folder / "other", MICRO_JANUS, data_folder, seed=1))


def changed_rank(config, *_):
    config.lora.rules = ((RULES[0][0], 4, 6.0), RULES[1])


def changed_rule(config, *_):
    config.lora.rules = RULES[:1]


def changed_scale(config, *_):
    config.lora.rslora = True


def no_adapters(config, *_):
    config.lora.rules = ()


CHANGES = [
    (changed_base, "tensors are not those that the adapters were trained on"),
    (changed_rank, "config.lora.rules"),
    (changed_rule, "config.lora.rules"),
    (changed_scale, "config.lora.rslora"),
    (no_adapters, "config.lora.rules"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_resume_refuses_another_base_rank_or_rule(straight, tmp_path, data_folder, base, change, message):
    config = lora_experiment(data_folder, base, 6)
    change(config, tmp_path, data_folder)
    with pytest.raises(UserError, match=message):
        loop.train(config, straight)


def test_a_base_that_changed_is_refused_when_the_workdir_is_read(straight, tmp_path, data_folder):
    other = base_folder(tmp_path / "other", MICRO_JANUS, data_folder, seed=1)
    shutil.copytree(straight, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "lora.json").read_text()) | {"base": str(other)}
    (tmp_path / "run" / "lora.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="not those that the adapters were trained on"):
        load_params(open_model(tmp_path / "run"))


WRONG = {
    "config.trainable trains in full": {"trainable": (("vq/.*", False), (".*", True))},
    "matches? no weight matrix|match no weight matrix": {"lora": {"rules": (("vq/.*/bias", 2, 2.0),)}},
    "rank from 1": {"lora": {"rules": (("llm/.*", 0, 2.0),)}},
    "config.lora.base_dtype": {"lora": {"base_dtype": "int4"}},
    "config.init.checkpoint is empty": {"init": {"checkpoint": ""}},
    "config.init.siglip": {"init": {"siglip": "somewhere"}},
    "config.lora.dropout=1.0": {"lora": {"dropout": 1.0}},
}


@pytest.mark.parametrize("message", WRONG)
def test_a_config_that_cannot_work_is_refused(data_folder, base, message):
    config = lora_experiment(data_folder, base)
    config.update(WRONG[message])
    with pytest.raises(UserError, match=message):
        make_plan(config)


def weight_gradients(config):
    """Shapes of the products of a compiled step that contract all tokens of a batch: gradients of weight matrices."""
    plan = make_plan(config)
    text = plan.make_step().lower(plan.state, abstract_batch(config, plan)).compile().as_text()
    shapes = {name: tuple(map(int, sizes.split(","))) for name, sizes in re.findall(r"%(\S+) = \w+\[([\d,]+)\]", text)}
    tokens = config.train.batch_size * config.data.row_length
    found = set()
    for name, left, axes in re.findall(r"%(\S+) = \S+ dot\(%([^,]+), .*?lhs_contracting_dims={([\d,]+)}", text):
        if math.prod(shapes[left][int(axis)] for axis in axes.split(",")) == tokens:
            found.add(tuple(sorted(shapes[name])))
    return found


@pytest.mark.slow
def test_the_compiled_step_has_no_gradient_of_a_frozen_matrix(data_folder, base):
    """Ranks are 3 and 5, which no size of the model is, so a product without them is a gradient of the base."""
    config = lora_experiment(
        data_folder, base, rules=(("llm/decoder/.*/kernel", 3, 6.0), ("gen_head/.*/kernel", 5, 5.0))
    )
    config.data.row_length = 92  # with 96, the batch would have as many tokens as the vocabulary
    found = weight_gradients(config)
    assert (3, 48) in found and (5, 24) in found
    assert {shape for shape in found if len(shape) == 2 and not {3, 5} & set(shape)} == set()
    config.lora.rules, config.trainable = (), (("vq/.*", False), (".*", True))
    assert {(32, 48), (24, 32)} < weight_gradients(config)


@pytest.mark.slow
def test_adapters_of_janusflow_resume_and_leave_as_a_folder_of_peft(tmp_path, data_folder):
    flow = dataclasses.replace(MICRO_FLOW, alignment=None)
    base = base_folder(tmp_path / "base", flow, data_folder)

    def experiment(num_steps):
        rules = (("llm/.*/kernel", 3, 6.0), ("gen_.*/kernel", 2, 4.0))
        config = lora_experiment(data_folder, base, num_steps, flow_experiment, rules=rules, base_dtype="bfloat16")
        config.loss.alignment_weight = 0.0
        config.trainable = (("gen_decoder_norm/.*", True), (".*", False))
        return config

    loop.train(experiment(4), tmp_path / "straight")
    loop.train(experiment(2), tmp_path / "resumed")
    loop.train(experiment(4), tmp_path / "resumed")
    assert differing_leaves(saved_state(tmp_path / "straight", 4), saved_state(tmp_path / "resumed", 4)) == []
    record = read_record(epath.Path(tmp_path / "straight"))
    adapter = adapter_of_run(open_trained(tmp_path / "straight", record), record)
    model = open_model(base)
    write_adapter(tmp_path / "adapter", adapter, model, "base", names="deepseek")
    merged = flatten(load_params(merged_model(model, read_adapter(tmp_path / "adapter", model))))
    whole = flatten(load_params(open_model(tmp_path / "straight")))
    for path, leaf in whole.items():
        np.testing.assert_allclose(merged[path], leaf, atol=1e-6, err_msg=path)
    average = flatten(load_params(open_model(tmp_path / "straight", ema=True)))
    assert np.abs(average["gen_decoder/block_0/expand/kernel"] - whole["gen_decoder/block_0/expand/kernel"]).max() > 0
