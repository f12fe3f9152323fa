"""We and transformers decode a folder of transformers' greedily to the same tokens, at the full grid of 24 x 24."""

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import JanusForConditionalGeneration

import janus_jax
from janus_jax.data.images import understanding_pixels
from janus_jax.data.prompts import STYLES, generation_prompt
from janus_jax.inference.validation import user_message
from tests.helpers.small_folders import TEXT, VISION, VQ, make_small, save_small

PROMPTS = ["seven", "the larger of two and nine"]
QUESTIONS = [("Which digit is this?", 1), ("Is four odd or even? Compare the two images.", 2), ("And now?", 0)]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(our pipeline, transformers' model) of one folder."""
    text = TEXT | {"max_position_embeddings": 2048, "num_hidden_layers": 2}
    vision = VISION | {"image_size": 384, "patch_size": 16, "num_hidden_layers": 1, "num_image_tokens": 576}
    vq = VQ | {"channel_multiplier": [1, 1, 1, 1, 1]}
    torch_model, config, _, tokenizer = make_small(text, vision, vq, seed=4)
    folder = save_small(tmp_path_factory.mktemp("full_grid") / "hf", torch_model, config, tokenizer)
    model = JanusForConditionalGeneration.from_pretrained(folder).eval()
    ours = janus_jax.from_pretrained(folder)
    generation = model.generation_config
    generation.bos_token_id, generation.eos_token_id = tokenizer.bos_id, tokenizer.eos_id
    generation.pad_token_id = tokenizer.pad_id
    generation.generation_kwargs = {"boi_token_id": tokenizer.begin_of_image_id}
    return ours, model


@pytest.mark.slow  # half a minute; tests/inference/test_image_decoding.py compares a smaller grid with transformers
def test_all_576_guided_codes_are_equal_alone_and_in_a_padded_batch(both):
    ours, model = both
    batch = ours.generate_codes(PROMPTS, 1, cfg_weight=5.0, temperature=0.0)
    alone = ours.generate_codes(PROMPTS[:1], 1, cfg_weight=5.0, temperature=0.0)
    prompts = [ours.tokenizer.encode(generation_prompt(prompt, STYLES["janus_pro"])) for prompt in PROMPTS]
    assert len({len(prompt) for prompt in prompts}) > 1
    np.testing.assert_array_equal(alone[0], batch[0])
    for prompt, codes in zip(prompts, batch, strict=True):
        inputs = torch.tensor([prompt])
        expected = model.generate(
            inputs=inputs,
            attention_mask=torch.ones_like(inputs),
            generation_mode="image",
            do_sample=False,
            guidance_scale=5,
        )
        np.testing.assert_array_equal(codes, expected[0].numpy())
        assert len(codes) == 576
        assert len(set(codes.tolist())) > 4  # codes that only repeat themselves would prove little


def test_64_greedy_text_tokens_are_equal_alone_and_in_a_padded_batch(both):
    ours, model = both
    rng = np.random.default_rng(0)
    pictures = [PIL.Image.fromarray(rng.integers(0, 256, (h, 300, 3), np.uint8)) for h in (200, 300, 400)]
    images = [pictures[:count] for _, count in QUESTIONS]
    conversations = [[user_message(text, count)] for text, count in QUESTIONS]
    batch = ours.answer(conversations, images, max_new_tokens=64)
    alone = ours.answer(conversations[:1], images[:1], max_new_tokens=64)
    assert alone[0] == batch[0]
    for answer, seen in zip(batch, images, strict=True):
        pixels = np.stack([understanding_pixels(image, 384) for image in seen]) if seen else np.zeros((0, 384, 384, 3))
        inputs = torch.tensor([answer.prompt_token_ids])
        arguments = {"pixel_values": torch.tensor(pixels / 127.5 - 1).permute(0, 3, 1, 2).float()} if seen else {}
        expected = model.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            do_sample=False,
            max_new_tokens=64,
            **arguments,
        )[0, inputs.shape[1] :].tolist()
        end = ours.tokenizer.eos_id
        assert answer.token_ids == (expected[: expected.index(end)] if end in expected else expected)
    assert len(batch[0].token_ids) > 8
