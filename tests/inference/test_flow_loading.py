"""JanusFlow from its folder: answers, images, and the command, which chooses the sampler by the kind of model."""

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

import janus_jax
from examples.digits import data as digits
from janus_jax.batches import Modality
from janus_jax.data.images import understanding_pixels
from janus_jax.data.prompts import IMAGE_PLACEHOLDER, STYLES, Message, format_conversation
from janus_jax.inference.janusflow import JanusFlowPipeline
from janus_jax.models.params import bind, build
from tests.helpers.small_flow import CONFIG, VAE
from tests.helpers.small_models import random_params
from tests.helpers.tiny_runs import cache_folder, start_command


@pytest.fixture(scope="module")
def pipeline():
    tokenizer = digits.build_tokenizer(digits.text_records(), CONFIG.llama.vocab_size, CONFIG.prompt_style)
    return JanusFlowPipeline(CONFIG, random_params(CONFIG), tokenizer, vae=(VAE, random_params(VAE)))


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory):
    path = tmp_path_factory.mktemp("flow") / "model"
    pipeline.save_pretrained(path)
    return path


def test_a_question_sees_the_learned_vector_and_the_features_of_its_image(pipeline):
    """The first token of the answer is that of the whole sequence written out by hand."""
    image = PIL.Image.new("RGB", (30, 20), (200, 40, 90))
    tokenizer, style = pipeline.tokenizer, STYLES[CONFIG.prompt_style]
    text = format_conversation([Message("user", f"{IMAGE_PLACEHOLDER}\nWhat?"), Message("assistant", "")], style)
    ids = tokenizer.expand_images(tokenizer.encode(text), CONFIG.siglip.num_tokens)
    begin = int(np.flatnonzero(ids == tokenizer.begin_of_image_id)[0])
    modality = np.full(len(ids), Modality.TEXT)
    modality[begin : begin + 1 + CONFIG.siglip.num_tokens] = Modality.UNDERSTANDING_IMAGE
    ids, modality = jnp.asarray(ids), jnp.asarray(modality)
    pixels = understanding_pixels(image, CONFIG.siglip.image_size) / 127.5 - 1

    @jax.jit
    def last_logits(params):
        apply = bind(build(CONFIG), params)
        x = apply(ids[None], modality[None], jnp.asarray(pixels, jnp.float32)[None, None], method="embed")
        hidden, _ = apply(x, jnp.arange(len(ids))[None], jnp.ones((1, len(ids)), jnp.int32))
        return apply(hidden[:, -1], method="text_logits")

    expected = int(last_logits(random_params(CONFIG)).argmax())
    question = [Message("user", f"{IMAGE_PLACEHOLDER}\nWhat?")]
    answer = pipeline.answer([question], [[image]], max_new_tokens=1)[0]
    assert answer.token_ids == [expected] and answer.prompt_token_ids == ids.tolist()


def test_a_saved_model_has_its_vae_and_generates_the_same_images(pipeline, folder):
    loaded = janus_jax.from_pretrained(folder)
    assert isinstance(loaded, JanusFlowPipeline)
    images = [model.generate_images("a one", 2, num_steps=2, seed=1) for model in (pipeline, loaded)]
    for one, other in zip(*images, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_a_vae_is_asked_for_before_latents_are_made(pipeline, tmp_path, tmp_path_factory, monkeypatch):
    alone = JanusFlowPipeline(CONFIG, random_params(CONFIG), pipeline.tokenizer)
    alone.save_pretrained(tmp_path / "alone")
    monkeypatch.setattr(alone, "generate_latents", lambda *args, **options: pytest.fail("made latents in vain"))
    with pytest.raises(janus_jax.UserError, match="has no VAE"):
        alone.generate_images("a one")
    flags = (f"--checkpoint={tmp_path / 'alone'}", "--prompt=a one", f"--output={tmp_path / 'out'}")
    process = start_command("launch.generate", *flags, cache=cache_folder(tmp_path_factory))
    _, error = process.communicate(timeout=300)
    assert process.returncode == 2 and "has no VAE" in error
    assert not (tmp_path / "out").exists()


def test_a_vae_is_asked_for_where_there_is_none_and_refused_where_it_means_nothing(pipeline, folder, tmp_path):
    JanusFlowPipeline(CONFIG, random_params(CONFIG), pipeline.tokenizer).save_pretrained(tmp_path / "alone")
    alone = janus_jax.from_pretrained(tmp_path / "alone")
    latents = np.zeros((1, *alone.latent_shape), np.float32)
    with pytest.raises(janus_jax.UserError, match="has no VAE"):
        alone.decode_latents(latents)
    again = janus_jax.from_pretrained(tmp_path / "alone", vae=folder / "vae")
    assert len(again.decode_latents(latents)) == 1
    with pytest.raises(janus_jax.UserError, match="not a VAE folder"):
        janus_jax.from_pretrained(folder, vae=tmp_path)


@pytest.mark.slow
def test_the_command_starts_from_given_noise_and_keeps_the_latents(pipeline, folder, tmp_path, tmp_path_factory):
    noise = np.random.default_rng(0).standard_normal((2, *pipeline.latent_shape)).astype(np.float32)
    np.save(tmp_path / "noise.npy", noise)
    np.save(tmp_path / "wrong.npy", noise[:, :, :4])
    np.savez(tmp_path / "archive.npz", noise)

    def run(*more):
        flags = [f"--checkpoint={folder}", "--prompt=a one", "--num_images=2", f"--output={tmp_path / 'out'}", *more]
        process = start_command("launch.generate", *flags, cache=cache_folder(tmp_path_factory))
        return (*process.communicate(timeout=300), process.returncode)

    _, error, code = run(f"--initial_noise={tmp_path / 'wrong.npy'}")
    assert code == 2 and "wrong.npy: initial_noise of shape (2, 8, 4, 3)" in error and error.count("\n") == 1
    _, error, code = run(f"--initial_noise={tmp_path / 'archive.npz'}")
    assert code == 2 and "archive.npz: not a readable .npy file" in error and error.count("\n") == 1
    _, error, code = run("--top_k=3")
    assert code == 2 and "--top_k=3 means nothing for JanusFlow" in error
    flags = (f"--initial_noise={tmp_path / 'noise.npy'}", "--save_latents", "--num_steps=3", "--solver=heun")
    out, error, code = run(*flags, "--cfg_weight=3")
    assert code == 0, error
    latents = np.load(tmp_path / "out" / "latents.npy")
    options = dict(num_steps=3, solver="heun", cfg_weight=3.0)
    expected = pipeline.generate_latents(["a one"], 2, initial_noise=noise, **options)
    np.testing.assert_allclose(latents, expected, rtol=0, atol=1e-5)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "00000.png",
        "00001.png",
        "grid.png",
        "latents.npy",
    ]
