"""Training of the ablation's arms: gradients, resuming, pretrained parts, and tasks that an arm does not have."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.errors import UserError
from janus_jax.models.config import SemanticDecoderConfig, SemanticTokenizerConfig, SiglipConfig
from janus_jax.models.execution import Execution
from janus_jax.models.params import flatten, init_params
from janus_jax.models.presets import PRESETS, ablation_arms
from janus_jax.training import loop
from janus_jax.training.initialization import initial_params
from janus_jax.training.objectives.factory import make_objective
from janus_jax.training.plan import make_plan
from janus_jax.training.setup import open_stream, open_tokenizer
from janus_jax.weights.load import load_params
from janus_jax.weights.native import open_params, read_architecture, save_params
from janus_jax.weights.pretrained_parts import open_part
from tests.helpers.tiny_runs import MICRO_JANUS, differing_leaves, janus_experiment, saved_state

SEMANTIC = SemanticDecoderConfig(width=12, depth=1, num_heads=2, mlp_dim=20, norm_eps=1e-6)
# Understanding images have at least 14 pixels, as in the original.
JANUS = dataclasses.replace(
    MICRO_JANUS, vq=dataclasses.replace(MICRO_JANUS.vq, image_size=16, channel_multipliers=(1, 2, 2))
)
ARMS = ablation_arms(JANUS, SEMANTIC)
TEACHER = SiglipConfig(image_size=16, patch_size=4, width=16, depth=1, num_heads=2, mlp_dim=24, norm_eps=1e-6)
TOKENIZER = SemanticTokenizerConfig(vq=JANUS.vq, decoder=SEMANTIC, teacher=TEACHER)


@pytest.fixture(scope="module", autouse=True)
def presets():
    with pytest.MonkeyPatch.context() as patch:
        for arm, config in ARMS.items():
            patch.setitem(PRESETS, f"micro_arm_{arm}", config)
        yield


def experiment(arm, data_folder, num_steps=4):
    config = janus_experiment(data_folder, num_steps).unlock()
    config.model = f"micro_arm_{arm}"
    frozen = {"b": "(vq|semantic)/.*", "c": "(vq|semantic)/.*", "e": "siglip/.*"}.get(arm, "vq/.*")
    config.trainable = ((frozen, False), (".*", True))
    return config


def test_the_loss_has_gradients_for_all_but_the_encoder_of_the_codes(data_folder):
    config = experiment("b", data_folder)
    architecture = ARMS["b"]
    stream = open_stream(config, architecture, open_tokenizer(config, architecture))
    batch = jax.tree.map(jnp.asarray, next(stream))
    stream.close()
    objective = make_objective(architecture, Execution(), config.loss)
    params = init_params(architecture, seed=0)
    gradient = jax.jit(jax.grad(lambda params: objective(params, batch)[0]))(params)
    reached = {path: bool(np.any(np.asarray(leaf) != 0)) for path, leaf in flatten(gradient).items()}
    codebook = {"vq/codebook"}  # read by the semantic decoder; codes themselves are whole numbers
    assert {path for path in reached if path.startswith("vq/") and reached[path]} == codebook
    # Biases of keys shift all scores of a query alike, which changes no softmax: exactly zero but for rounding.
    unreached = {path for path in reached if not reached[path] and not path.startswith("vq/")}
    assert all(path.endswith("k_proj/bias") for path in unreached)


@pytest.mark.slow  # the default tests of resuming take the same code
def test_a_run_resumes_bit_for_bit_and_keeps_its_tokenizer(data_folder, tmp_path):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    loop.train(experiment("b", data_folder), straight)
    loop.train(experiment("b", data_folder, num_steps=2), stopped)
    loop.train(experiment("b", data_folder), stopped)
    assert differing_leaves(saved_state(straight, 4), saved_state(stopped, 4)) == []
    assert read_architecture(straight) == ARMS["b"]
    fresh = flatten(init_params(ARMS["b"], seed=0))
    params = flatten(load_params(open_params(straight, ARMS["b"])))
    frozen = {path for path, leaf in params.items() if np.array_equal(leaf, fresh[path])}
    assert frozen == {path for path in fresh if path.startswith(("vq/", "semantic/"))}


@pytest.mark.parametrize(("arm", "task"), [("c", "generate"), ("e", "generate"), ("f", "understand")])
def test_data_of_a_task_that_an_arm_does_not_have_are_refused(data_folder, arm, task):
    config = experiment(arm, data_folder)
    with pytest.raises(UserError, match=rf"data\.ratio\.{task}=1\.0.*micro_arm_{arm}.*{task}s=False"):
        make_plan(config)


def test_a_semantic_tokenizer_gives_its_codes_and_its_semantic_decoder(data_folder, tmp_path):
    folder, params = tmp_path / "tokenizer", init_params(TOKENIZER, seed=5)
    save_params(folder, TOKENIZER, params)
    config = experiment("b", data_folder)
    config.init.vq = str(folder)
    plan = make_plan(config)
    loaded, origins, _ = initial_params(config, ARMS["b"], plan.mesh)
    for module in ("vq", "semantic"):
        for path, leaf in flatten(loaded[module]).items():
            np.testing.assert_array_equal(leaf, flatten(params[module])[path])
    assert {origin.module for origin in origins if "init.vq" in origin.source} == {"vq", "semantic"}
    only_codes = open_part("vq", folder, ARMS["a"])
    assert all(path.startswith("vq/") for path in only_codes.parameters)
    wider = dataclasses.replace(ARMS["b"], semantic=dataclasses.replace(SEMANTIC, mlp_dim=24))
    with pytest.raises(UserError, match=r"semantic decoder is .*mlp_dim=20.*expected .*mlp_dim=24"):
        open_part("vq", folder, wider)
    save_params(tmp_path / "plain", JANUS.vq, params["vq"])
    with pytest.raises(UserError, match="semantic decoder is None, expected"):
        open_part("vq", tmp_path / "plain", ARMS["b"])


def test_the_siglip_of_a_janus_of_ours_starts_an_arm(data_folder, tmp_path):
    folder, params = tmp_path / "janus", init_params(JANUS, seed=6)
    save_params(folder, JANUS, params)
    (folder / "tokenizer.json").write_bytes((data_folder / "tokenizer.json").read_bytes())
    part = open_part("siglip", folder, ARMS["e"])
    assert part.parameters.keys() == {f"siglip/{path}" for path in flatten(params["siglip"])}
    with pytest.raises(UserError, match="no such part"):
        open_part("siglip", folder, ARMS["a"])
    assert open_params(folder, JANUS).parameters.keys() >= part.parameters.keys()
