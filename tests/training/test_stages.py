"""Which parameters the stages of the papers train: names and counts at full size, real steps at micro size."""

import functools
import importlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from janus_jax.errors import UserError
from janus_jax.models.execution import Execution
from janus_jax.models.params import abstract_params, flatten, init_params
from janus_jax.models.presets import PRESETS
from janus_jax.sharding import make_mesh
from janus_jax.training.architecture import model_config
from janus_jax.training.freezing import format_table, merge, module_table, split, trainable_mask
from janus_jax.training.objectives.base import Objective
from janus_jax.training.objectives.factory import make_objective
from janus_jax.training.optimizer import make_optimizer
from janus_jax.training.train_state import create_state, state_shardings
from janus_jax.training.train_step import make_train_step
from tests.helpers.tiny_runs import MICRO_JANUS, differing_leaves, janus_experiment

# Counts of models.md 1.7, measured on the released architectures; SigLIP without its unused pooling head.
_SIZES_1B = {
    "siglip": 303_688_704,
    "aligner": 6_295_552,
    "vq": 71_883_403,
    "gen_embed": 131_072,
    "gen_aligner": 4_214_784,
    "gen_head": 37_767_168,
    "llm": 1_652_656_128,
}
_SIZES_7B = _SIZES_1B | {
    "aligner": 20_979_712,
    "gen_aligner": 16_818_176,
    "gen_head": 83_906_560,
    "llm": 6_910_365_696,
}
SIZES = {"janus_1p3b": _SIZES_1B, "janus_pro_1b": _SIZES_1B, "janus_pro_7b": _SIZES_7B}
TOTALS = {"janus_1p3b": 2_076_636_811, "janus_pro_1b": 2_076_636_811, "janus_pro_7b": 7_407_773_323}
# Janus, section 3.2; `gen_embed` by our choice.
TRAINED = {
    "stage1": {"aligner", "gen_aligner", "gen_head", "gen_embed"},
    "stage2": {"aligner", "gen_aligner", "gen_head", "gen_embed", "llm"},
    "stage3": {"aligner", "gen_aligner", "gen_head", "gen_embed", "llm", "siglip"},
}
# Adding one vector to all keys shifts all scores of a query alike, so its gradient is zero but for rounding.
NO_GRADIENT = "siglip/layers/k_proj/bias"
DECAY = 0.75  # of the average

abstract = functools.cache(abstract_params)


def rules_of(name, stage):
    return importlib.import_module(f"configs.{name}").get_config(stage).trainable


@pytest.mark.parametrize("stage", TRAINED)
@pytest.mark.parametrize("name", SIZES)
def test_each_stage_trains_the_papers_modules_with_their_exact_counts(name, stage):
    params = abstract(PRESETS[name])
    mask = trainable_mask(params, rules_of(name, stage))
    assert mask == {path: path.split("/")[0] in TRAINED[stage] for path in flatten(params)}
    expected = {module: (size, size if module in TRAINED[stage] else 0) for module, size in SIZES[name].items()}
    expected["total"] = (TOTALS[name], sum(trained for _, trained in expected.values()))
    table = module_table(params, mask)
    assert {module: (size, trained) for module, size, trained in table} == expected
    printed = {line.split()[0]: line.split()[1:] for line in format_table(table).splitlines()[1:]}
    assert printed == {
        module: [f"{size:,}", f"{trained:,}" if trained else "frozen"] for module, (size, trained) in expected.items()
    }


def test_each_stage_of_janusflow_trains_the_papers_modules():
    """JanusFlow, 3.3. The VAE is no part of the model; `alignment_head` and begin of images are our choice."""
    adapters = {"aligner", "begin_of_understanding", "alignment_head"}
    adapters |= {"gen_encoder", "gen_aligner", "gen_decoder_norm", "gen_decoder_aligner", "gen_decoder"}
    trained = {"stage1": adapters, "stage2": adapters | {"llm"}, "stage3": adapters | {"llm", "siglip"}}
    for stage, modules in trained.items():
        config = importlib.import_module("configs.janusflow_1p3b").get_config(stage)
        paths = flatten(abstract(model_config(config)))
        mask = trainable_mask(abstract(model_config(config)), config.trainable)
        assert mask == {path: path.split("/")[0] in modules for path in paths}
        assert {path.split("/")[0] for path in paths} == trained["stage3"]


def sum_of_squares(params, batch, denominators):
    """A loss with a gradient for every parameter, which compiles fast."""
    del batch, denominators
    return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params)), {}


@pytest.fixture(scope="module", params=TRAINED)
def step(request, data_folder, batch):
    """(stage, parameters before, state after two steps; the first has the learning rate 0).

    Stage III trains the most, so its steps are real ones, on a batch of all tasks.
    """
    config = janus_experiment(data_folder)
    params = init_params(MICRO_JANUS, seed=1)
    before = {path: np.array(leaf) for path, leaf in flatten(params).items()}
    mask = trainable_mask(params, rules_of("janus_1p3b", request.param))
    optimizer = make_optimizer(config.train)
    mesh = make_mesh({"data": 1, "fsdp": -1, "tensor": 1})
    abstract_state = jax.eval_shape(lambda params: create_state(params, mask, optimizer, ema=True), params)
    shardings = state_shardings(MICRO_JANUS, mask, optimizer, abstract_state, mesh)
    state = jax.jit(lambda params: create_state(params, mask, optimizer, ema=True), out_shardings=shardings)(params)
    squares = Objective(lambda batch: {}, sum_of_squares)
    loss = make_objective(MICRO_JANUS, Execution(), config.loss) if request.param == "stage3" else squares
    step_fn = make_train_step(loss, optimizer, shardings, mesh, ema=DECAY)
    for _ in range(2):
        state, _ = step_fn(state, batch)
    return request.param, before, state


def test_moments_exist_and_are_filled_exactly_for_the_trainable_parameters(step):
    stage, before, state = step
    trainable = {path for path in before if path.split("/")[0] in TRAINED[stage]}
    for name in ("mu", "nu"):
        moments = flatten(optax.tree_utils.tree_get(state.opt_state, name))
        assert {path: leaf.shape for path, leaf in moments.items()} == {path: before[path].shape for path in trainable}
        assert [path for path, leaf in moments.items() if path != NO_GRADIENT and not np.any(leaf)] == []
    others = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert len(others) == 2 * len(trainable)  # nothing of the size of a parameter besides the two moments


def test_steps_change_every_trainable_leaf_and_no_bit_of_a_frozen_one(step):
    stage, before, state = step
    after = {path: np.array(leaf) for path, leaf in flatten(merge(state.trainable, state.frozen)).items()}
    changed = set(differing_leaves(before, after))
    assert changed - {NO_GRADIENT} == {path for path in before if path.split("/")[0] in TRAINED[stage]} - {NO_GRADIENT}
    assert int(state.step) == 2


def test_the_average_follows_the_trained_parameters(step):
    """It starts at them, and the first step has a learning rate of 0."""
    stage, before, state = step
    trained, average = flatten(state.trainable), flatten(state.ema)
    assert average.keys() == trained.keys()
    for path, leaf in trained.items():
        expected = DECAY * before[path] + (1 - DECAY) * np.asarray(leaf)
        np.testing.assert_allclose(average[path], expected, rtol=1e-6, atol=1e-7, err_msg=f"{stage} {path}")


def test_merge_inverts_split():
    params = {"a": {"x": 1, "y": 2}, "b": 3}
    trainable, frozen = split(params, {"a/x": True, "a/y": False, "b": True})
    assert (trainable, frozen) == ({"a": {"x": 1}, "b": 3}, {"a": {"y": 2}})
    assert merge(trainable, frozen) == params


def test_the_first_matching_rule_decides():
    params = {"a": {"x": 0}, "b": 0}
    assert trainable_mask(params, (("a/.*", False), (".*", True))) == {"a/x": False, "b": True}
    assert trainable_mask(params, ((".*", True), ("a/.*", False))) == {"a/x": True, "b": True}


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        ((("siglip/.*", True), ("vq/.*", False)), "aligner/linear_0/bias"),  # the first that nothing matches
        ((("sigclip/.*", False), (".*", True)), "sigclip/.*"),
        ((("vq", False), (".*", True)), "'vq'"),  # a rule must match the whole path
    ],
)
def test_unmatched_parameter_and_unused_rule_are_refused_by_name(rules, named):
    with pytest.raises(UserError, match=re.escape(named)):
        trainable_mask(abstract(MICRO_JANUS), rules)
