"""Image codes equal the guided loop of the specification and transformers, alone or in a batch, for any seed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from janus_jax.data.prompts import STYLES, generation_prompt
from janus_jax.inference.compiled_programs import traced
from janus_jax.inference.decode_image import decode_pixels, image_program, start_images, start_prompts
from janus_jax.inference.janus import JanusPipeline
from janus_jax.inference.memory import cache_bytes
from janus_jax.inference.sampling import Sampling
from tests.helpers.reference_decoding import Reference
from tests.helpers.small_models import DECODED, DECODED_TORCH
from tests.helpers.torch_weights import make_pair

# Different lengths; the last is in another length bucket than the others.
PROMPTS = ["seven", "the digit one", "the larger of the digits two and nine, drawn in chalk above a smaller one"]
PREFIX = 2048  # tokens, many more than an image has


@pytest.fixture(scope="module")
def pair():
    """transformers' model and our parameters, with the same random weights."""
    torch_model, config, params = make_pair(*DECODED_TORCH, seed=5)
    assert dataclasses.replace(config, prompt_style=DECODED.prompt_style) == DECODED
    return torch_model, params


@pytest.fixture(scope="module")
def pipeline(pipeline, pair):
    """The session's pipeline with these weights: its traced, since only values differ."""
    return JanusPipeline(DECODED, pair[1], pipeline.tokenizer, buckets=pipeline.engine.buckets)


@pytest.fixture(scope="module")
def reference(pipeline):
    return Reference(pipeline)


@pytest.fixture(scope="module")
def prompt_ids(pipeline):
    ids = [pipeline.tokenizer.encode(generation_prompt(prompt, STYLES["janus_pro_tiny"])) for prompt in PROMPTS]
    assert len({len(each) for each in ids}) == 3
    assert max(len(each) for each in ids[:2]) <= 32 < len(ids[2])
    return ids


def guided(weight):
    return lambda conditional, unconditional: unconditional + weight * (conditional - unconditional)


@pytest.fixture(scope="module")
def greedy(pipeline):
    return pipeline.generate_codes(PROMPTS, 1, cfg_weight=5.0, temperature=0.0)


def test_greedy_codes_equal_the_loop_of_the_specification(pipeline, reference, prompt_ids, greedy):
    expected = [reference.greedy_codes(pipeline.params, ids, guided(5.0)) for ids in prompt_ids]
    np.testing.assert_array_equal(greedy, expected)
    assert greedy.dtype == np.int32
    assert min(len(set(row)) for row in expected) > 4  # codes that only repeat themselves would prove little


def test_greedy_codes_equal_transformers(pipeline, pair, prompt_ids, greedy):
    """There left-padded too, and in block order: all conditional rows, then all unconditional ones."""
    tokenizer, model = pipeline.tokenizer, pair[0]
    longest = max(len(ids) for ids in prompt_ids)
    padding = [longest - len(ids) for ids in prompt_ids]
    tokens = [[tokenizer.pad_id] * pads + ids for pads, ids in zip(padding, prompt_ids, strict=True)]
    mask = [[0] * pads + [1] * len(ids) for pads, ids in zip(padding, prompt_ids, strict=True)]
    generation = model.generation_config
    generation.bos_token_id, generation.pad_token_id = tokenizer.bos_id, tokenizer.pad_id
    generation.generation_kwargs = {"boi_token_id": tokenizer.begin_of_image_id}
    with torch.no_grad():
        codes = model.generate(
            inputs=torch.tensor(tokens),
            attention_mask=torch.tensor(mask),
            generation_mode="image",
            do_sample=False,
            guidance_scale=5,
        )
    np.testing.assert_array_equal(greedy, codes.numpy())
    several = pipeline.generate_codes(PROMPTS, 1, cfg_weight=5.0, temperature=0.0, window=8)  # codes per pass
    np.testing.assert_array_equal(several, codes.numpy())


@pytest.mark.parametrize(
    ("weight", "chosen"),
    [(1.0, lambda conditional, _: conditional), (0.0, lambda _, unconditional: unconditional)],
    ids=["1", "0"],
)
def test_weight_1_is_conditional_and_0_unconditional(pipeline, reference, prompt_ids, greedy, weight, chosen):
    codes = pipeline.generate_codes(PROMPTS, 1, cfg_weight=weight, temperature=0.0)
    expected = [reference.greedy_codes(pipeline.params, ids, chosen) for ids in prompt_ids]
    np.testing.assert_array_equal(codes, expected)
    assert np.any(codes != greedy)


def test_without_the_condition_only_the_length_of_the_prompt_matters(pipeline):
    same_length = [("the digit one", "the digit two"), ("the digit one", "the digit one one")]
    codes = {
        prompt: pipeline.generate_codes([prompt, *PROMPTS[1:]], 1, cfg_weight=0.0, temperature=0.0)[0]
        for prompt in {prompt for pair in same_length for prompt in pair}
    }
    lengths = {prompt: len(pipeline.tokenizer.encode(prompt)) for prompt in codes}
    assert lengths["the digit one"] == lengths["the digit two"] < lengths["the digit one one"]
    np.testing.assert_array_equal(codes["the digit one"], codes["the digit two"])
    assert np.any(codes["the digit one"] != codes["the digit one one"])


@pytest.mark.parametrize("index", [0, 1])
def test_each_prompt_alone_has_the_greedy_codes_it_has_in_the_batch(pipeline, greedy, index):
    alone = pipeline.generate_codes(PROMPTS[index : index + 1], 1, cfg_weight=5.0, temperature=0.0)
    np.testing.assert_array_equal(alone, greedy[index : index + 1])


def test_other_lengths_within_a_bucket_compile_no_program(pipeline, greedy):
    before = traced.copy()
    longer = [prompt + " one" for prompt in PROMPTS]
    codes = pipeline.generate_codes(longer, 1, cfg_weight=3.0, temperature=0.0)
    assert traced == before
    assert np.any(codes != greedy)
    pipeline.generate_codes(longer, 1, cfg_weight=3.0, temperature=0.0, top_k=2)  # means nothing for argmax
    assert traced == before


def test_progress_is_told_in_portions_that_change_nothing(pipeline, greedy, monkeypatch):
    monkeypatch.setattr("janus_jax.inference.janus.PORTION", 6)
    before, told = traced["codes of images"], []
    codes = pipeline.generate_codes(PROMPTS, 1, cfg_weight=5.0, temperature=0.0, on_codes=told.append)
    np.testing.assert_array_equal(codes, greedy)
    assert told == [6, 12, 16]
    assert traced["codes of images"] == before


def test_the_prefix_is_held_once_for_all_images_of_a_prompt(pipeline):
    """The program of 16 images has little more memory than 16 times what an image needs of its own."""

    def state_and_temporary_bytes(images):
        keys = jax.random.split(jax.random.key(0), images)
        model, params, sampling = pipeline.engine.model, pipeline.params, Sampling.of(1.0)
        prompts = start_prompts(model, 2, PREFIX, None)
        state = start_images.eval_shape(model, params, prompts, np.zeros(1, np.int32), keys, 5.0, sampling=sampling)
        lowered = image_program("cpu").lower(model, params, state, keys, 5.0, 16, sampling=sampling)
        memory = lowered.compile().memory_analysis()
        assert memory.alias_size_in_bytes > 0.99 * memory.output_size_in_bytes  # no second cache
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)) + memory.temp_size_in_bytes

    prefix = cache_bytes(DECODED.llama, pipeline.engine.model.execution, rows=2, slots=PREFIX)
    one, sixteen = state_and_temporary_bytes(1), state_and_temporary_bytes(16)
    assert one > prefix
    assert sixteen - one < 4 * prefix  # 15 more would be the prefix of each image


def test_more_images_take_no_more_memory_to_decode_but_for_their_pixels(pipeline):
    def temporary(images):
        codes = jnp.zeros((images, pipeline.config.image_tokens), jnp.int32)
        compiled = decode_pixels.lower(pipeline.engine.model, pipeline.params, codes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    size = pipeline.config.siglip.image_size
    assert temporary(8) - temporary(1) <= 2 * 7 * 4 * 3 * size**2


def test_the_unconditional_prefix_is_computed_once_per_length(pipeline, prompt_ids):
    rows = []
    for prompts in ([0], [0, 0, 0], [0, 1], [0, 1, 2], [0, 1, 2, 0]):
        guided = pipeline.engine.guided([prompt_ids[i] for i in prompts])
        lengths = np.array(list(map(len, guided.unconditional)))
        conditional = list(map(len, guided.conditional))
        np.testing.assert_array_equal(lengths[guided.unconditional_of], conditional)
        rows.append(len(lengths))
    assert rows == [1, 1, 2, 4, 4]  # powers of two


def test_one_candidate_is_greedy_and_another_temperature_compiles_no_program(pipeline, greedy):
    codes = pipeline.generate_codes(PROMPTS, 1, cfg_weight=5.0, temperature=1.0, top_k=1, seed=4)
    np.testing.assert_array_equal(codes, greedy)
    before = dict(traced)
    pipeline.generate_codes(PROMPTS, 1, cfg_weight=4.0, temperature=0.7, top_k=1, seed=4)
    assert dict(traced) == before


@pytest.fixture(scope="module")
def sampled(pipeline):
    """[prompt, image, code], two images of each prompt."""
    codes = pipeline.generate_codes(PROMPTS, 2, cfg_weight=2.0, temperature=1.0, seed=11)
    return codes.reshape(3, 2, -1)


def test_an_image_depends_on_its_prompt_seed_and_numbers_alone(pipeline, sampled):
    def alone(prompt, number, seed=11):
        options = dict(cfg_weight=2.0, temperature=1.0, seed=seed, prompt_numbers=[number])
        return pipeline.generate_codes([prompt], 3, **options)

    for number in (0, 1):  # neither on the other prompts nor on the number of images
        np.testing.assert_array_equal(alone(PROMPTS[number], number)[:2], sampled[number])
    images = [*alone(PROMPTS[0], 0), *alone(PROMPTS[0], 1), *alone(PROMPTS[0], 0, seed=12)]
    assert len({tuple(image) for image in images}) == 9


def test_equal_prompts_of_a_batch_have_different_images(pipeline):
    codes = pipeline.generate_codes(["seven"] * 30, 1, cfg_weight=2.0, temperature=1.0)
    assert len({tuple(image) for image in codes.tolist()}) == 30


def test_sampled_codes_have_the_probability_that_guidance_gives_them(pipeline, reference, prompt_ids, sampled):
    """Mean surprise of the 96 samples against its expectation under softmax(guided logits), in standard deviations."""

    def deviation(weight, temperature):
        surprise, variance = 0.0, 0.0
        for logits, code in zip(pairs, sampled.ravel(), strict=True):
            scores = guided(weight)(*logits) / temperature
            logp = scores - scores.max() - np.log(np.sum(np.exp(scores - scores.max())))
            p = np.exp(logp)
            entropy = -np.sum(p * logp)
            surprise += -logp[code] - entropy
            variance += np.sum(p * (logp + entropy) ** 2)
        return surprise / np.sqrt(variance)

    pairs = [
        reference.image_logits(pipeline.params, ids, image[:step])
        for ids, images in zip(prompt_ids, sampled.tolist(), strict=True)
        for image in images
        for step in range(len(image))
    ]
    assert abs(deviation(weight=2.0, temperature=1.0)) < 3
    # The same samples are not those of other settings.
    assert abs(deviation(weight=5.0, temperature=1.0)) > 5
    assert abs(deviation(weight=2.0, temperature=0.5)) > 5
