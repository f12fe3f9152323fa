"""The loss of the semantic tokenizer: its cosine term, its teacher, and training that resumes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from transformers import SiglipVisionConfig, SiglipVisionModel

from configs.semantic_vq16 import add_semantic_fields
from configs.vq16 import vq_config
from janus_jax.batches import ImageBatch
from janus_jax.errors import UserError
from janus_jax.models.config import SemanticDecoderConfig, SemanticTokenizerConfig, SiglipConfig
from janus_jax.models.execution import Execution
from janus_jax.models.params import bind, build, init_params
from janus_jax.models.presets import PRESETS
from janus_jax.ops.representation_alignment import alignment_loss
from janus_jax.training import loop
from janus_jax.training.objectives.base import mean_metrics
from janus_jax.training.objectives.factory import make_objective
from janus_jax.training.plan import make_plan
from janus_jax.training.setup import open_stream
from janus_jax.weights.native import open_params, read_architecture
from janus_jax.weights.pretrained_parts import open_part
from tests.helpers.tiny_runs import MICRO_JANUS, MICRO_VQ, adversarial_experiment
from tests.helpers.tokenizer_reference import load

TEACHER = SiglipConfig(image_size=8, patch_size=2, width=16, depth=1, num_heads=2, mlp_dim=24, norm_eps=1e-6)
MICRO = SemanticTokenizerConfig(
    vq=MICRO_VQ,
    decoder=SemanticDecoderConfig(width=12, depth=1, num_heads=2, mlp_dim=20, norm_eps=1e-6),
    teacher=TEACHER,
)


@pytest.fixture(scope="module", autouse=True)
def preset():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "micro_semantic", MICRO)
        yield


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A folder of a SigLIP of transformers."""
    model = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=8,
            patch_size=2,
            intermediate_size=24,
            hidden_act="gelu",
        )
    )
    folder = tmp_path_factory.mktemp("teacher")
    model.save_pretrained(folder)
    return folder


def experiment(data_folder, teacher, num_steps=2):
    """A semantic tokenizer with a discriminator."""
    config = adversarial_experiment(data_folder, num_steps).unlock()
    config.model, config.loss.discriminator_start = "micro_semantic", 1
    add_semantic_fields(config)
    config.loss.teacher = str(teacher)
    return config


def test_the_cosine_term_and_its_gradient_equal_beit_v2():
    arrays = load("semantic_loss")
    predicted, target = jnp.asarray(arrays["rec"]), jnp.asarray(arrays["target"])
    loss, gradient = jax.value_and_grad(lambda x: 1 + jnp.mean(alignment_loss(x, target)))(predicted)
    assert float(loss) == pytest.approx(float(arrays["loss"]), rel=1e-6)
    scale = np.abs(arrays["grad_rec"]).max()
    np.testing.assert_allclose(gradient, arrays["grad_rec"], rtol=0, atol=3e-6 * scale)


def test_the_loss_has_the_cosine_to_the_teacher_with_its_weight():
    params, teacher = init_params(MICRO, 0), init_params(TEACHER, 1)
    batch = ImageBatch(np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8))
    config = vq_config("micro_semantic")
    add_semantic_fields(config)
    objective = make_objective(MICRO, Execution(), ConfigDict(config.loss))
    means = mean_metrics(jax.jit(objective)({**params, "teacher": teacher}, batch)[1])

    @jax.jit
    def by_hand(pixels):
        return bind(build(MICRO), params)(pixels).predicted, bind(build(TEACHER), teacher)(pixels)

    predicted, target = (np.asarray(x, np.float64) for x in by_hand(jnp.asarray(batch.pixels / 127.5 - 1, jnp.float32)))
    norms = np.linalg.norm(predicted, axis=-1) * np.linalg.norm(target, axis=-1)
    expected = np.mean(1 - (predicted * target).sum(-1) / norms)
    assert means["loss/semantic"] == pytest.approx(expected, rel=1e-5) and 0.1 < expected < 1.9
    terms = means["loss/pixel"] + means["loss/codebook"] + means["loss/commitment"] + 0.25 * expected
    assert means["loss"] == pytest.approx(terms, rel=1e-5)


@pytest.mark.slow
def test_a_run_trains_all_networks_but_the_teacher_and_gives_its_tokenizer(data_folder, teacher, tmp_path):
    last = loop.train(experiment(data_folder, teacher), tmp_path)
    assert {"loss/semantic", "loss/discriminator", "grad_norm/semantic", "grad_norm/head"} <= last.keys()
    assert last["grad_norm/semantic"] > 0
    assert read_architecture(tmp_path) == MICRO
    saved = open_params(tmp_path, MICRO)
    assert not any(path.startswith("teacher") for path in saved.parameters)
    part = open_part("vq", tmp_path, dataclasses.replace(MICRO_JANUS, vq=MICRO_VQ))
    assert part.parameters.keys() == {path for path in saved.parameters if path.startswith("vq/")}


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        (None, r"config\.loss\.teacher is empty"),
        ("nowhere", r"config\.loss\.teacher='nowhere'"),
        ("", r"(?s)config\.loss\.teacher=.*expected \[20, 3, 2, 2\]"),
    ],
)
def test_a_teacher_that_is_missing_or_another_one_is_refused(
    data_folder, teacher, tmp_path, monkeypatch, folder, expected
):
    config = experiment(data_folder, teacher)
    if folder is None:
        config.loss.teacher = ""
    elif folder:
        config.loss.teacher = folder
    else:
        wider = dataclasses.replace(MICRO, teacher=dataclasses.replace(TEACHER, width=20))
        monkeypatch.setitem(PRESETS, "micro_semantic", wider)
    with pytest.raises(UserError, match=expected):
        loop.train(config, tmp_path / "run")


def test_images_have_the_size_of_the_teachers(data_folder, teacher):
    config = experiment(data_folder, teacher)
    config.data.image_size = 16
    with pytest.raises(UserError, match=r"data\.image_size=16.* 8 pixels"):
        open_stream(config, make_plan(config).architecture, None)
