"""Image codes equal the guided loop of the specification and transformers, alone or in a batch, for any seed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from janus_jax.data.prompts import STYLES, generation_prompt
from janus_jax.inference.decoding import decode_pixels, image_program, programs, start_images
from janus_jax.inference.memory import cache_bytes
from janus_jax.inference.padding import Prompts
from janus_jax.inference.sampling import Sampling
from tests.helpers.reference_decoding import Reference

# Different lengths; the last is in another length bucket than the others.
PROMPTS = ["seven", "the digit one", "the larger of the digits two and nine, drawn in chalk above a smaller one"]
PREFIX = 2048  # tokens, many more than an image has


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


def test_greedy_codes_equal_transformers(small, prompt_ids, greedy):
    """There left-padded too, and in block order: all conditional rows, then all unconditional ones."""
    tokenizer, model = small.pipeline.tokenizer, small.torch_model
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
    before = programs.copy()
    longer = [prompt + " one" for prompt in PROMPTS]
    codes = pipeline.generate_codes(longer, 1, cfg_weight=3.0, temperature=0.0)
    assert programs == before
    assert np.any(codes != greedy)
    pipeline.generate_codes(longer, 1, cfg_weight=3.0, temperature=0.0, top_k=2)  # means nothing for argmax
    assert programs == before


def test_progress_is_told_in_portions_that_change_nothing(pipeline, greedy, monkeypatch):
    monkeypatch.setattr("janus_jax.inference.decoding.PORTION", 6)
    before, told = programs["image"], []
    codes = pipeline.generate_codes(PROMPTS, 1, cfg_weight=5.0, temperature=0.0, on_codes=told.append)
    np.testing.assert_array_equal(codes, greedy)
    assert told == [6, 12, 16]
    assert programs["image"] == before


def test_the_prefix_is_held_once_for_all_images_of_a_prompt(pipeline):
    """The program of 16 images has little more memory than 16 times what an image needs of its own."""

    def state_and_temporary_bytes(images):
        row = np.zeros((1, PREFIX), np.int32)
        prompt = Prompts(row, row.astype(np.int8), row + 1, row)
        keys = jax.random.split(jax.random.key(0), images)
        model, params, sampling = pipeline._model, pipeline.params, Sampling.of(1.0)
        arguments = (model, params, prompt, prompt, np.zeros(1, np.int32), keys, 5.0)
        state = start_images.eval_shape(*arguments, sampling=sampling)
        lowered = image_program("cpu").lower(model, params, state, keys, 5.0, 16, sampling=sampling)
        memory = lowered.compile().memory_analysis()
        assert memory.alias_size_in_bytes > 0.99 * memory.output_size_in_bytes  # no second cache
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)) + memory.temp_size_in_bytes

    prefix = cache_bytes(pipeline.config.llama, np.float32, rows=2, slots=PREFIX)
    one, sixteen = state_and_temporary_bytes(1), state_and_temporary_bytes(16)
    assert one > prefix
    assert sixteen - one < 4 * prefix  # 15 more would be the prefix of each image


def test_more_images_take_no_more_memory_to_decode_but_for_their_pixels(pipeline):
    def temporary(images):
        codes = jnp.zeros((images, pipeline.config.image_tokens), jnp.int32)
        compiled = decode_pixels.lower(pipeline._model, pipeline.params, codes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    size = pipeline.config.siglip.image_size
    assert temporary(8) - temporary(1) <= 2 * 7 * 4 * 3 * size**2


def test_the_unconditional_prefix_is_computed_once_per_length(pipeline, monkeypatch):
    rows = []

    def decode(model, params, prompts, unconditional, unconditional_of, keys, cfg_weight, *, sampling, on_codes):
        lengths = unconditional.segment_ids.sum(axis=1)
        np.testing.assert_array_equal(lengths[unconditional_of], prompts.segment_ids.sum(axis=1))
        rows.append(len(lengths))
        return np.zeros((*keys.shape, 16), np.int32)

    monkeypatch.setattr("janus_jax.inference.pipeline.decode_image_codes", decode)
    for prompts in (["one"], ["one", "two", "six"], ["one", "the digit two"], PROMPTS, [*PROMPTS, PROMPTS[0]]):
        assert len(pipeline.generate_codes(prompts, 5)) == 5 * len(prompts)
    assert rows == [1, 1, 2, 4, 4]  # powers of two


def test_one_candidate_is_greedy_and_another_temperature_compiles_no_program(pipeline, greedy):
    codes = pipeline.generate_codes(PROMPTS, 1, cfg_weight=5.0, temperature=1.0, top_k=1, seed=4)
    np.testing.assert_array_equal(codes, greedy)
    before = dict(programs)
    pipeline.generate_codes(PROMPTS, 1, cfg_weight=4.0, temperature=0.7, top_k=1, seed=4)
    assert dict(programs) == before


@pytest.fixture(scope="module")
def drawn(pipeline):
    """[prompt, image, code], two images of each prompt."""
    codes = pipeline.generate_codes(PROMPTS, 2, cfg_weight=2.0, temperature=1.0, seed=11)
    return codes.reshape(3, 2, -1)


def test_an_image_depends_on_seed_prompt_and_number_only(pipeline, drawn):
    first_prompt = pipeline.generate_codes(PROMPTS[:1], 3, cfg_weight=2.0, temperature=1.0, seed=11)
    np.testing.assert_array_equal(first_prompt[:2], drawn[0])  # neither on the other prompts nor on `num_images`
    others = pipeline.generate_codes(PROMPTS[1:2], 3, cfg_weight=2.0, temperature=1.0, seed=11)
    np.testing.assert_array_equal(others[:2], drawn[1])
    other_seed = pipeline.generate_codes(PROMPTS[:1], 3, cfg_weight=2.0, temperature=1.0, seed=12)
    images = [first_prompt[0], first_prompt[1], first_prompt[2], other_seed[0], other_seed[1]]
    assert len({tuple(image) for image in images}) == 5


def test_sampled_codes_have_the_probability_that_guidance_gives_them(pipeline, reference, prompt_ids, drawn):
    """Mean surprise of the 96 draws against its expectation under softmax(guided logits), in standard deviations."""

    def deviation(weight, temperature):
        surprise, variance = 0.0, 0.0
        for logits, code in zip(pairs, drawn.ravel(), strict=True):
            scores = guided(weight)(*logits) / temperature
            logp = scores - scores.max() - np.log(np.sum(np.exp(scores - scores.max())))
            p = np.exp(logp)
            entropy = -np.sum(p * logp)
            surprise += -logp[code] - entropy
            variance += np.sum(p * (logp + entropy) ** 2)
        return surprise / np.sqrt(variance)

    pairs = [
        reference.image_logits(pipeline.params, ids, image[:step])
        for ids, images in zip(prompt_ids, drawn.tolist(), strict=True)
        for image in images
        for step in range(len(image))
    ]
    assert abs(deviation(weight=2.0, temperature=1.0)) < 3
    # The same draws are not those of other settings.
    assert abs(deviation(weight=5.0, temperature=1.0)) > 5
    assert abs(deviation(weight=2.0, temperature=0.5)) > 5
