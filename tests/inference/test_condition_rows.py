"""Images that are generated from other images: the codes equal those of Janus-4o's loop on transformers' model."""

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import torch

from janus_jax.data.images import understanding_pixels
from janus_jax.data.prompts import BEGIN_OF_IMAGE, END_OF_IMAGE, IMAGE_PLACEHOLDER, PAD, STYLES, generation_prompt
from janus_jax.errors import UserError
from janus_jax.inference.janus import JanusPipeline
from janus_jax.models.params import flatten, unflatten
from janus_jax.ops.sampling import blend_conditions
from tests.helpers.small_models import DECODED, DECODED_TORCH
from tests.helpers.torch_weights import from_torch, make_pair

PROMPTS = ["seven", "the digit one, and larger"]
N = DECODED.image_tokens
SPAN = BEGIN_OF_IMAGE + IMAGE_PLACEHOLDER * 4 + END_OF_IMAGE + BEGIN_OF_IMAGE + PAD * N + END_OF_IMAGE


@pytest.fixture(scope="module")
def pair():
    """Both models, with codes of length 1, as DeepSeek's are: otherwise transformers would choose others."""
    model, config, _ = make_pair(*DECODED_TORCH, seed=5)
    with torch.no_grad():
        codes = model.model.vqmodel.quantize.embedding.weight
        codes /= codes.norm(dim=1, keepdim=True)
    return model, from_torch(model.state_dict(), config)


@pytest.fixture(scope="module")
def pipeline(pipeline, pair):
    return JanusPipeline(DECODED, pair[1], pipeline.tokenizer, buckets=pipeline.engine.buckets)


@pytest.fixture(scope="module")
def conditions():
    rng = np.random.default_rng(3)
    return [[PIL.Image.fromarray(rng.integers(0, 256, (h, 20, 3), np.uint8))] for h in (20, 30)]


def janus_4o(model, tokenizer, prompt, image, weight, weight2):
    """The loop of the README of ShareGPT-4o-Image, greedily for one image: full, part and unconditional rows."""
    ids = tokenizer.encode(generation_prompt(SPAN + prompt, STYLES["janus_pro_tiny"]))
    tokens = torch.tensor([ids, ids, [ids[0], *[tokenizer.pad_id] * (len(ids) - 2), ids[-1]]])
    pixels = torch.tensor(understanding_pixels(image, 16) / 127.5 - 1).permute(2, 0, 1)[None].float()
    inner = model.model
    with torch.no_grad():
        features = inner.aligner(inner.vision_model(pixels).last_hidden_state)[0]
        codes = inner.vqmodel.encode(pixels).image_tokens.reshape(1, -1)
        embeds = model.get_input_embeddings()(tokens)
        embeds[:2][tokens[:2] == tokenizer.image_id] = torch.cat([features, features])
        end = int((tokens[0] == tokenizer.end_of_image_id).nonzero()[0])
        embeds[0, end + 2 : end + 2 + N] = model.prepare_embeddings_for_image_generation(codes)[0]
        generated = []
        for _ in range(N):
            hidden = inner.language_model(inputs_embeds=embeds).last_hidden_state[:, -1]
            full, part, unconditional = inner.generation_head(hidden).double()
            conditional = (full + weight2 * part) / (1 + weight2)
            generated.append(int((unconditional + weight * (conditional - unconditional)).argmax()))
            new = model.prepare_embeddings_for_image_generation(torch.tensor([[generated[-1]]]))
            embeds = torch.cat([embeds, new.expand(3, 1, -1)], dim=1)
    return generated


@pytest.fixture(scope="module")
def greedy(pipeline, conditions):
    return pipeline.generate_codes(
        PROMPTS, 1, condition_images=conditions, cfg_weight=3.0, cfg_weight2=0.5, temperature=0.0
    )


def test_greedy_codes_equal_the_loop_of_janus_4o_on_transformers(pipeline, pair, conditions, greedy):
    for prompt, images, codes in zip(PROMPTS, conditions, greedy, strict=True):
        expected = janus_4o(pair[0], pipeline.tokenizer, prompt, images[0], 3.0, 0.5)
        assert codes.tolist() == expected and len(set(expected)) > 4


def test_features_codes_and_weights_count(pipeline, conditions, greedy):
    def codes(condition_images, weights=(3.0, 0.5), params=pipeline.params):
        other = JanusPipeline(DECODED, params, pipeline.tokenizer, buckets=pipeline.engine.buckets)
        options = dict(cfg_weight=weights[0], cfg_weight2=weights[1], temperature=0.0)
        return other.generate_codes(PROMPTS, 1, condition_images=condition_images, **options)

    assert np.any(codes(conditions[::-1]) != greedy)
    assert np.any(codes(conditions, (3.0, 5.0)) != greedy)
    flat = flatten(pipeline.params)
    other_codes = flat | {"vq/codebook": flat["vq/codebook"][::-1]}  # the same features, other codes
    assert np.any(codes(conditions, params=unflatten(other_codes)) != greedy)


def test_a_prompt_without_condition_images_in_the_batch_has_its_plain_codes(pipeline, conditions, greedy):
    options = dict(cfg_weight=3.0, temperature=0.0)
    mixed = pipeline.generate_codes(PROMPTS, 1, condition_images=[conditions[0], []], cfg_weight2=0.5, **options)
    plain = pipeline.generate_codes(PROMPTS, 1, **options)
    assert mixed[0].tolist() == greedy[0].tolist() and mixed[1].tolist() == plain[1].tolist()
    assert plain[0].tolist() != greedy[0].tolist()


def test_the_blend_of_the_rows_in_float64():
    full, part = np.random.default_rng(0).standard_normal((2, 3, 7))
    for weight in (0.0, 0.5, 5.0):
        blended = blend_conditions(jnp.asarray(full, jnp.float32), jnp.asarray(part, jnp.float32), weight)
        np.testing.assert_allclose(blended, (full + weight * part) / (1 + weight), atol=1e-6)


WRONG = {
    "a str where a list": (dict(condition_images=["x.png", "y.png"]), "got str where a list of images"),
    "one list": (dict(condition_images=[[]]), "2 prompts but 1 lists of images"),
    "a weight below 0": (dict(cfg_weight2=-0.5), "cfg_weight2=-0.5, expected 0 to"),
    "a marker too many": (dict(prompts=["a <image>", "b"], condition_images=[[], []]), "1 <image> in the prompt, 0"),
    "too long": (dict(condition_images=[["x.png"] * 5, []]), "exceed the context of 128"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_request_is_refused(pipeline, name):
    options, message = WRONG[name]
    with pytest.raises(UserError, match=message):
        pipeline.generate_codes(**{"prompts": PROMPTS, "num_images": 1} | options)


def test_one_image_is_a_list_of_one_prompt(pipeline, conditions, monkeypatch):
    asked = []
    monkeypatch.setattr(pipeline, "generate_codes", lambda *args, **options: asked.append((*args, options)))
    monkeypatch.setattr(pipeline, "decode_codes", lambda codes: [])
    (image,) = conditions[0]
    for condition in (image, [image], None, []):
        pipeline.generate_images("seven", condition_image=condition)
    pipeline.generate_images(["seven"], condition_image=[[image]])
    given = [options["condition_images"] for *_, options in asked]
    assert given == [[[image]], [[image]], None, [[]], [[image]]]
    assert all(prompts == ["seven"] for prompts, *_ in asked)
