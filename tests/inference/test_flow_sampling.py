"""JanusFlow's sampler against full recomputation without a cache, and the pipeline's promises and errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from examples.digits import data as digits
from janus_jax.data.prompts import STYLES, generation_prompt
from janus_jax.errors import UserError
from janus_jax.inference import flow_sampling
from janus_jax.inference.compiled_programs import traced
from janus_jax.inference.janusflow import VAE_CHUNK, JanusFlowPipeline, normal_noise
from janus_jax.inference.sampling import sample_keys
from janus_jax.models.llama import init_cache
from janus_jax.models.params import bind, build
from tests.helpers.small_flow import CONFIG, VAE
from tests.helpers.small_models import random_params

SHORT, LONG = "a one", "a handwritten three, seven and nine"
OPTIONS = dict(cfg_weight=3.0, num_steps=2)


@pytest.fixture(scope="module")
def pipeline():
    tokenizer = digits.build_tokenizer(digits.text_records(), CONFIG.llama.vocab_size, CONFIG.prompt_style)
    return JanusFlowPipeline(CONFIG, random_params(CONFIG), tokenizer, vae=(VAE, random_params(VAE)))


@pytest.fixture(scope="module")
def noise(pipeline):
    return np.random.default_rng(5).standard_normal((2, *pipeline.latent_shape)).astype(np.float32)


@pytest.fixture(scope="module")
def recompute(pipeline):
    """Velocity of one prompt as the specification words it (5.4): the whole sequence, no cache, no padding.

    Pads stand in the unconditional prompt and are masked; the stacked layout of the layers.
    """
    apply = bind(build(CONFIG), random_params(CONFIG))
    tokenizer = pipeline.tokenizer

    @jax.jit
    def velocity(ids, visible, latents, time):
        encoded = apply(latents[None], time[None], method="encode_latents")
        x = jnp.concatenate([apply(ids[None], method="embed_text"), apply(encoded, method="embed_latents")], axis=1)
        segment_ids = jnp.concatenate([visible, jnp.ones(1 + CONFIG.uvit.num_tokens, jnp.int32)])[None]
        hidden, _ = apply(x, jnp.arange(x.shape[1])[None], segment_ids)
        return apply(hidden[:, -CONFIG.uvit.num_tokens :], encoded, method="velocity")[0]

    def run(prompt, latents, num_steps, cfg_weight, solver):
        ids = np.array(tokenizer.encode(generation_prompt(prompt, STYLES[CONFIG.prompt_style]))[:-1])
        everything, only_bos = np.ones_like(ids), np.eye(1, len(ids), dtype=ids.dtype)[0]
        pads = np.where(only_bos, ids, tokenizer.pad_id)

        def guided(latents, step):
            time = jnp.float32(1000 * step / num_steps)
            conditional = velocity(ids, everything, latents, time)
            unconditional = velocity(pads, only_bos, latents, time)
            return cfg_weight * conditional + (1 - cfg_weight) * unconditional

        for step in range(num_steps):
            v = guided(latents, step)
            if solver == "heun":
                v = (v + guided(latents + v / num_steps, step + 1)) / 2
            latents = latents + v / num_steps
        return np.asarray(latents)

    return run


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_reused_prefix_equals_full_recomputation(pipeline, noise, recompute, solver):
    """Two prompts of different lengths in one batch: each is also as if alone."""
    latents = pipeline.generate_latents([SHORT, LONG], 1, initial_noise=noise, solver=solver, **OPTIONS)
    for prompt, start, ours in zip([SHORT, LONG], noise, latents, strict=True):
        expected = recompute(prompt, start, OPTIONS["num_steps"], OPTIONS["cfg_weight"], solver)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_the_prompt_and_its_guidance_matter(pipeline, noise, recompute):
    """Weight 1 is conditional, 0 does not see the prompt, only how long it is."""
    start = noise[:1]

    def generate(prompt, cfg_weight):
        return pipeline.generate_latents([prompt], 1, initial_noise=start, cfg_weight=cfg_weight, num_steps=2)[0]

    np.testing.assert_allclose(generate(SHORT, 1.0), recompute(SHORT, start[0], 2, 1.0, "euler"), rtol=0, atol=1e-4)
    assert len(pipeline.tokenizer.encode("a six")) == len(pipeline.tokenizer.encode(SHORT))
    np.testing.assert_array_equal(generate("a six", 0.0), generate(SHORT, 0.0))
    assert np.abs(generate("a six", 1.0) - generate(SHORT, 1.0)).max() > 1e-3
    assert np.abs(generate(LONG, 0.0) - generate(SHORT, 0.0)).max() > 1e-4


def test_a_prefix_shared_by_images_is_that_of_each_image(pipeline, noise):
    shared = pipeline.generate_latents([LONG], 2, initial_noise=noise, **OPTIONS)
    apart = pipeline.generate_latents([LONG, LONG], 1, initial_noise=noise, **OPTIONS)
    np.testing.assert_allclose(shared, apart, rtol=0, atol=1e-5 * np.abs(apart).max())
    assert np.abs(shared[0] - shared[1]).max() > 0.1


def test_the_prompts_are_read_once_and_bos_once(pipeline, monkeypatch):
    """Three rows for two prompts of three images, and no row of an image before it has noise."""
    rows = []
    monkeypatch.setattr(flow_sampling, "init_cache", lambda *args: rows.append(args[2:]) or init_cache(*args))
    padded = pipeline.engine.pad([[1, 2, 3], [4, 5]])
    noise = jnp.zeros((6, *pipeline.latent_shape))
    options = dict(num_steps=jnp.int32(1), solver="euler")
    sample = flow_sampling.sample_latents.__wrapped__
    latents = jax.eval_shape(lambda: sample(pipeline.engine.model, pipeline.params, padded, noise, 2.0, **options))
    assert latents.shape == noise.shape
    assert rows == [(3, 32), (12, CONFIG.image_tokens)]


def test_an_image_depends_on_its_prompt_seed_and_numbers_alone(pipeline):
    many = pipeline.generate_latents([SHORT, LONG], 2, seed=3, **OPTIONS)
    alone = pipeline.generate_latents([LONG], 2, seed=3, prompt_numbers=[1], **OPTIONS)
    np.testing.assert_allclose(many[2:], alone, rtol=0, atol=1e-5)
    assert np.abs(alone[0] - alone[1]).max() > 0.1
    for others in (dict(seed=4, prompt_numbers=[1]), dict(seed=3, prompt_numbers=[0])):
        other = pipeline.generate_latents([LONG], 2, **others, **OPTIONS)
        assert np.abs(other - alone).min(axis=0).max() > 0.1


def test_the_noise_of_30_equal_prompts_is_standard_normal_and_differs():
    noise = np.asarray(normal_noise(sample_keys([0] * 30, range(30), 2).reshape(-1), (4, 4, 3)))
    assert noise.shape == (60, 4, 4, 3)
    assert len({each.tobytes() for each in noise}) == 60
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1


def test_images_are_the_vae_s_decoding_of_the_latents(pipeline):
    latents = np.random.default_rng(6).standard_normal((VAE_CHUNK + 1, *pipeline.latent_shape)).astype(np.float32)
    images = pipeline.decode_latents(latents)
    apply = bind(build(VAE), random_params(VAE))
    pixels = jax.jit(lambda z: apply(z, method="decode"))(latents)
    expected = np.clip((np.asarray(pixels) + 1) / 2 * 255, 0, 255)
    assert [image.size for image in images] == [(16, 16)] * len(latents)
    for image, values in zip(images, expected, strict=True):
        assert np.abs(np.asarray(image) - values).max() <= 1  # truncated, and rounding at the edges


def test_other_prompts_of_a_length_bucket_other_weights_and_numbers_of_steps_compile_no_program(pipeline):
    def generate(prompt, cfg_weight, num_steps=1):  # as many images as in no other test
        options = dict(cfg_weight=cfg_weight, num_steps=num_steps)
        pipeline.decode_latents(pipeline.generate_latents([prompt], 3, **options))

    before = traced.copy()
    generate(SHORT, 3.0)
    assert traced - before == {"latents": 1, "latent pixels": 1}
    before = traced.copy()
    generate("a handwritten two", 1.5, num_steps=2)
    assert traced == before


BAD = {
    "empty prompt": (dict(prompts=[" "]), "the prompt is empty"),
    "placeholder": (dict(prompts=["<image_placeholder>"]), "contains <image_placeholder>"),
    "begin of image": (dict(prompts=["a <begin_of_image> one"]), "contains <begin_of_image>, where JanusFlow would"),
    "too long": (dict(prompts=["a nine " * 40]), "exceed the context of 60 tokens"),
    "no images": (dict(num_images=0), "num_images=0"),
    "no steps": (dict(num_steps=0), "num_steps=0"),
    "solver": (dict(solver="dopri"), r"solver='dopri' is not one of \['euler', 'heun'\]"),
    "noise": (dict(initial_noise=np.zeros((1, 8, 8, 4), np.float32)), r"expected floats of shape \(1, 8, 8, 3\)"),
    "integers": (dict(initial_noise=np.zeros((1, 8, 8, 3), np.int32)), "type int32"),
    "nan": (dict(initial_noise=np.full((1, 8, 8, 3), np.nan)), "not finite"),
    "too large": (dict(initial_noise=np.full((1, 8, 8, 3), 1e39)), "not finite in float32"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_are_one_line(pipeline, case):
    change, message = BAD[case]
    with pytest.raises(UserError, match=message):
        pipeline.generate_latents(**(dict(prompts=[SHORT], num_images=1) | change))


def test_a_question_that_would_shift_its_image_is_refused(pipeline):
    """A literal begin-of-image takes a feature's place, which moves all features after it."""
    image = PIL.Image.new("RGB", (8, 8))
    with pytest.raises(UserError, match="contains <begin_of_image>, where JanusFlow would put an image"):
        pipeline.chat([image], "What does <begin_of_image> mean?", max_new_tokens=1)


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (1, 4, 8, 3), (8, 8, 3)])
def test_latents_of_another_size_are_refused(pipeline, shape):
    with pytest.raises(UserError, match=r"latents of shape .*, expected \[images, 8, 8, 3\]"):
        pipeline.decode_latents(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(latent_channels=4), "the VAE has 4 latent channels, expected 3"),
        (dict(channel_multipliers=(1, 2, 2)), "the VAE enlarges 8 latents to 32 pixels, expected 16"),
    ],
)
def test_another_vae_is_refused(pipeline, change, message):
    with pytest.raises(UserError, match=message):
        JanusFlowPipeline(CONFIG, {}, pipeline.tokenizer, vae=(dataclasses.replace(VAE, **change), {}))
