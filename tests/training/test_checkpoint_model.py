"""`config.model=checkpoint`: the architecture and the tokenizer come from the folder in `init.checkpoint`."""

import dataclasses

import jax
import numpy as np
import pytest

from configs import finetune, quickstart_flow
from janus_jax.errors import UserError
from janus_jax.models.config import AlignmentConfig
from janus_jax.models.params import flatten
from janus_jax.models.presets import JANUS_PRO_MINI, JANUSFLOW_TINY, PRESETS
from janus_jax.training import loop
from janus_jax.training.architecture import model_config
from janus_jax.training.plan import abstract_batch, make_plan
from janus_jax.training.setup import open_tokenizer
from janus_jax.weights.load import load_params
from janus_jax.weights.native import open_params
from janus_jax.weights.random_model import random_model
from janus_jax.weights.write_model import write_model
from tests.helpers.tiny_runs import MICRO_FLOW, MICRO_JANUS, differing_leaves, janus_experiment, saved_state

FLOW = dataclasses.replace(JANUSFLOW_TINY, llama=dataclasses.replace(JANUSFLOW_TINY.llama, vocab_size=700))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of three architectures, one of each layout that can hold it; none is a preset but the second."""
    root = tmp_path_factory.mktemp("folders")
    for name, architecture, layout in (
        ("micro", MICRO_JANUS, "orbax"),
        ("mini", JANUS_PRO_MINI, "hf"),
        ("flow", FLOW, "orbax"),
    ):
        write_model(random_model(architecture, seed=1), root / name, layout)
    return root


def recipe(folder):
    config = finetune.get_config("checkpoint:debug")
    config.init.checkpoint = str(folder)
    return config


@pytest.mark.parametrize(
    ("name", "architecture", "frozen"),
    [("micro", MICRO_JANUS, {"vq"}), ("mini", JANUS_PRO_MINI, {"vq"}), ("flow", FLOW, set())],
)
def test_a_plan_has_the_sizes_of_the_checkpoint(folders, name, architecture, frozen):
    config = recipe(folders / name)
    config.data.row_length = 128
    plan = make_plan(config)
    assert plan.architecture == architecture
    assert {path.split("/")[0] for path, trained in plan.mask.items() if not trained} == frozen
    batch = abstract_batch(config, plan)
    rows = batch if name != "flow" else batch.rows
    assert rows.und_pixels.shape == (8, 2, *[architecture.siglip.image_size] * 2, 3)
    own = open_tokenizer(config, architecture).backend.get_vocab()
    assert own == random_model(architecture, seed=1).tokenizer.backend.get_vocab()


def test_training_starts_from_the_checkpoint_and_equals_that_of_a_preset(folders, data_folder, tmp_path):
    runs = {}
    for model in ("micro_janus", "checkpoint"):
        config = janus_experiment(data_folder, num_steps=1)
        config.model, config.init.checkpoint = model, str(tmp_path / "start")
        if not (tmp_path / "start").exists():
            source = random_model(MICRO_JANUS, seed=1)
            source = dataclasses.replace(source, tokenizer=open_tokenizer(config, MICRO_JANUS))
            write_model(source, tmp_path / "start", "orbax")
        loop.train(config, tmp_path / model)
        runs[model] = saved_state(tmp_path / model, 1)
    data = {model: state.pop("['data']['settings']['model']") for model, state in runs.items()}
    assert data == {"micro_janus": "micro_janus", "checkpoint": "checkpoint"}
    assert differing_leaves(runs["micro_janus"], runs["checkpoint"]) == []
    frozen = open_params(tmp_path / "checkpoint", MICRO_JANUS)
    start = flatten(load_params(random_model(MICRO_JANUS, seed=1))["vq"])
    kept = flatten(load_params(frozen)["vq"])
    assert start.keys() == kept.keys()
    assert all(np.array_equal(start[path], kept[path]) for path in start)


def test_the_projector_of_an_alignment_loss_follows_the_config_not_the_checkpoint(tmp_path):
    write_model(random_model(MICRO_FLOW, seed=0), tmp_path / "flow", "orbax")
    config = recipe(tmp_path / "flow")
    assert MICRO_FLOW.alignment is not None
    assert model_config(config) == dataclasses.replace(MICRO_FLOW, alignment=None)
    config.loss.update(alignment_weight=1.0, alignment_layer=1, alignment_width=12)
    assert model_config(config).alignment == AlignmentConfig(layer=1, width=12)


@pytest.mark.parametrize(("patch_size", "fits"), [(16, True), (8, True), (4, False)])
def test_siglip_may_have_fewer_tokens_than_the_latents_that_are_aligned_with_it(monkeypatch, patch_size, fits):
    """The image has 2 x 2 latent tokens."""
    siglip = dataclasses.replace(MICRO_FLOW.siglip, patch_size=patch_size)
    monkeypatch.setitem(PRESETS, "flow", dataclasses.replace(MICRO_FLOW, siglip=siglip, alignment=None))
    config = quickstart_flow.get_config("stage3")
    config.model, config.loss.alignment_layer = "flow", 1
    if fits:
        assert model_config(config).siglip.grid * patch_size == 16
        return
    with pytest.raises(UserError, match=r"alignment_weight=1\.0: 2 x 2 latent tokens .* 4 x 4 of SigLIP"):
        model_config(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init.checkpoint": ""}, r"init\.checkpoint is empty.*config\.model='checkpoint'"),
        ({"init.checkpoint": "/nowhere"}, r"init\.checkpoint='/nowhere'"),
        ({"data.row_length": 4096}, r"data\.row_length=4096.*init\.checkpoint=.*mini.*1024"),
        ({"data.tokenizer": "/nowhere.json"}, r"/nowhere\.json"),
    ],
)
def test_a_mistake_names_the_field(folders, changes, message):
    config = recipe(folders / "mini")
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        open_tokenizer(config, make_plan(config, jax.devices()[:1]).architecture)


def test_the_recipe_of_a_released_model_refuses_another_architecture(folders, data_folder, tmp_path):
    config = janus_experiment(data_folder)
    config.init.checkpoint = str(folders / "mini")
    with pytest.raises(UserError, match=r"init\.checkpoint=.*another architecture"):
        loop.train(config, tmp_path / "run")
