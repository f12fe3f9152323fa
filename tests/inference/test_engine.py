"""The engine around the compiled programs: batches, padding, memory, other values and other layouts of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from janus_jax.data.images import understanding_pixels
from janus_jax.errors import UserError
from janus_jax.inference.compiled_programs import traced
from janus_jax.inference.janus import JanusEngine, JanusPipeline
from janus_jax.inference.loading import load
from janus_jax.inference.memory import cache_bytes
from janus_jax.inference.padding import Buckets
from janus_jax.inference.requests import ImageRequest
from janus_jax.inference.sampling import image_keys
from janus_jax.inference.validation import user_message
from janus_jax.models.scan_layers import stack_layers
from janus_jax.weights.reader import model_in_memory
from tests.helpers.small_models import DECODED, random_params


@pytest.fixture(scope="module")
def requests(pipeline):
    """Questions and images of one prompt, as the engine takes them."""
    text = dict(max_new_tokens=10, temperature=1.0, top_p=0.95, top_k=0, seed=2)
    image = dict(cfg_weight=2.0, temperature=1.0, top_p=1.0, top_k=0, seed=2)
    reader = pipeline.engine.reader
    questions, sampling = reader.text([[user_message("Is one odd?", 0)]], [[]], **text)
    images, options = reader.codes(["the digit one"], 2, **image)
    return questions, sampling, images, options


def run(engine, requests):
    questions, sampling, images, options = requests
    codes = engine.generate(images, 2, **options)
    return engine.answer(questions, sampling), codes


@pytest.fixture(scope="module")
def results(pipeline, requests):
    return run(pipeline.engine, requests)


def test_stacked_parameters_are_taken_as_they_are_and_decode_to_the_same_tokens(pipeline, requests, results):
    params = stack_layers(pipeline.params)
    options = dict(buckets=pipeline.engine.buckets, scan_layers=True)
    engine = JanusEngine(DECODED, params, pipeline.tokenizer, **options)
    assert all(map(lambda ours, given: ours is given, jax.tree.leaves(engine.params), jax.tree.leaves(params)))
    answers, codes = run(engine, requests)
    assert answers == results[0]
    np.testing.assert_array_equal(codes, results[1])


def test_other_values_of_the_parameters_take_the_same_programs(pipeline, requests, results):
    others = JanusPipeline(DECODED, random_params(DECODED, seed=13), pipeline.tokenizer)
    before = traced.copy()
    other = pipeline.engine.with_params(others.params)
    answers, codes = run(other, requests)
    assert traced == before
    assert answers[0].token_ids != results[0][0].token_ids
    assert np.any(codes != results[1])
    assert pipeline.engine.params is not other.params  # the engine itself is as before


@pytest.mark.parametrize("changed", [{"gen_embed": jnp.zeros((64, 5))}, {"more": jnp.zeros(1)}], ids=["shape", "path"])
def test_parameters_of_other_shapes_or_paths_are_refused(pipeline, changed):
    with pytest.raises(ValueError, match=next(iter(changed))):
        pipeline.engine.with_params(pipeline.params | changed)


def test_images_are_divided_into_batches_of_whole_shares_of_the_devices(pipeline, monkeypatch):
    def sizes(num_prompts, num_images, shares, at_a_time=16):
        """[(number of prompts, number of images of each)], each image of each prompt being in one batch."""
        monkeypatch.setattr(JanusEngine, "row_shares", shares)
        batches = list(pipeline.engine.batches(num_prompts, num_images, at_a_time))
        made = [(prompt, image) for b in batches for prompt in range(num_prompts)[b.prompts] for image in b.images]
        assert made == [(prompt, image) for prompt in range(num_prompts) for image in range(num_images)]
        return [(len(range(num_prompts)[batch.prompts]), len(batch.images)) for batch in batches]

    assert sizes(37, 1, shares=1) == [(16, 1), (16, 1), (5, 1)]
    assert sizes(7, 5, shares=1) == [(3, 5), (3, 5), (1, 5)]
    assert sizes(2, 17, shares=1) == [(1, 9), (1, 8)] * 2
    assert sizes(1, 1000, shares=1, at_a_time=250) == [(1, 250)] * 4
    assert sizes(1, 5, shares=1, at_a_time=1) == [(1, 1)] * 5
    assert sizes(37, 1, shares=4) == [(16, 1), (16, 1), (5, 1)]
    assert sizes(9, 3, shares=4) == [(4, 3), (4, 3), (1, 3)]
    assert sizes(2, 20, shares=4) == [(1, 12), (1, 8)] * 2
    assert sizes(40, 1, shares=32) == [(32, 1), (8, 1)]
    assert sizes(1, 40, shares=32) == [(1, 32), (1, 8)]


def test_a_part_of_the_images_of_a_prompt_has_the_keys_that_it_has_among_all():
    requests = [ImageRequest([1], seed=3, prompt_number=2), ImageRequest([1], seed=2**32 - 1, prompt_number=0)]
    together = jax.random.key_data(image_keys(requests, 5)).reshape(2, 5, -1)
    part = jax.random.key_data(image_keys([request._replace(first_image=3) for request in requests], 2))
    np.testing.assert_array_equal(part.reshape(2, 2, -1), together[:, 3:])
    assert len(np.unique(together.reshape(10, -1), axis=0)) == 10


def test_batches_are_as_large_as_fits_the_memory(pipeline, monkeypatch):
    def fitting(free, num_prompts, num_images, at_a_time):
        monkeypatch.setattr("janus_jax.inference.memory.free_bytes", lambda devices: free)
        requests = [ImageRequest([20, 21, 22])] * num_prompts
        batches, found = pipeline.engine.fitting_batches(requests, num_images, at_a_time)
        return found, max(len(range(num_prompts)[batch.prompts]) * len(batch.images) for batch in batches)

    assert fitting(10**9, 1, 100_000, 16) == (16, 16)
    assert fitting(10**9, 1, 4, 10**9) == (10**9, 4)
    # An image takes 2 rows of 16 codes of 256 bytes; its prompt 4 rows of 32 tokens, and scores as large as these.
    assert fitting(2 * 32768 + 12 * 8192, 1, 100_000, 64) == (8, 8)
    assert fitting(2 * 32768 + 8 * 8192, 1, 100_000, 64) == (8, 8)
    assert fitting(2 * 32768 + 7 * 8192, 1, 100_000, 64) == (4, 4)
    assert fitting(170_000, 50, 1, 64) == (2, 2)
    with pytest.raises(UserError, match=r"GiB for key-value caches of 1 images .* are free"):
        fitting(10_000, 1, 100_000, 16)


@pytest.mark.parametrize(("shares", "counts"), [(1, [2, 4, 6, 5, 3]), (2, [2, 4, 6, 6, 4]), (4, [4, 4, 8, 8, 4])])
def test_devices_get_equally_many_images_with_the_least_padding(pipeline, monkeypatch, shares, counts):
    """For 2 prompts of 1, 2 and 3 images, 5 of 1 and 1 of 3."""
    monkeypatch.setattr(JanusEngine, "row_shares", shares)
    asked = [(2, 1), (2, 2), (2, 3), (5, 1), (1, 3)]
    assert [np.prod(pipeline.engine.padded_counts(*each)) for each in asked] == counts


def test_no_request_is_an_empty_result(pipeline):
    assert pipeline.engine.answer([]) == []
    assert pipeline.engine.generate([], 3).shape == (0, 3, 16)


def test_the_longest_prompt_that_fits_is_answered(pipeline, monkeypatch):
    """Padding to a length bucket does not count against the context."""
    monkeypatch.setattr(pipeline.engine, "prefill", lambda pieces, *_, slots, sampling: (len(pieces[0].tokens), slots))
    monkeypatch.setattr(pipeline.engine, "continue_", lambda state, *_, sampling: Sampled(jnp.full(state, 7)))
    question = [[user_message("one " * 30, 0)]]
    room = 128 - len(pipeline.answer(question, [[]], max_new_tokens=1)[0].prompt_token_ids)
    assert 0 < room < 96
    assert pipeline.answer(question, [[]], max_new_tokens=room)[0].token_ids == [7] * room
    # Without a number each answer of a batch takes what its own prompt leaves.
    short = pipeline.answer([[user_message("one?", 0)], *question], [[], []])
    assert [len(answer.token_ids) + len(answer.prompt_token_ids) for answer in short] == [128, 128]
    assert len(short[1].token_ids) == room
    with pytest.raises(UserError, match=rf"prompt of {128 - room} tokens and {room + 1} "):
        pipeline.answer(question, [[]], max_new_tokens=room + 1)


class Sampled:
    """A state that holds tokens."""

    def __init__(self, tokens):
        self.tokens = tokens


def test_a_request_larger_than_the_free_memory_is_refused_with_its_sizes(pipeline, monkeypatch):
    """2 layers, keys and values of 2 heads of 8, float32: 256 bytes per token and row."""
    monkeypatch.setattr("janus_jax.inference.memory.free_bytes", lambda devices: 10_000)
    monkeypatch.setattr(JanusEngine, "prefill", None)
    monkeypatch.setattr(JanusEngine, "prefill_images", None)
    with pytest.raises(UserError, match=r"GiB for key-value caches of 1 prompts \+ .* attention\), but 0\.00 GiB are"):
        pipeline.chat([], "one?", max_new_tokens=1)
    assert cache_bytes(DECODED.llama, pipeline.engine.model.execution, 1, 48) == 256 * 48 > 10_000
    with pytest.raises(UserError, match=r"of 1 prompts \+ 0\.00 GiB for key-value caches of 4 images \+"):
        pipeline.engine.generate([ImageRequest([20, 21, 22])], 4)


def test_16_bit_images_given_from_python_are_rescaled_like_those_of_files(pipeline, tmp_path):
    values = np.linspace(0, 65535, 24 * 24).astype(np.uint16).reshape(24, 24)
    image = PIL.Image.fromarray(values)
    image.save(tmp_path / "grey.png")
    from_memory, from_file = (pipeline.engine.pixels([[each]]) for each in (image, tmp_path / "grey.png"))
    np.testing.assert_array_equal(from_memory, from_file)
    expected = understanding_pixels(PIL.Image.fromarray((values // 257).astype(np.uint8)).convert("RGB"), 16)
    np.testing.assert_allclose(from_memory[0, 0], expected / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize(
    ("buckets", "message"),
    [
        (Buckets(prompt=0), "buckets.prompt=0, expected a whole number from 1 to 65536"),
        (Buckets(answer=2.5), r"buckets.answer=2\.5"),
        (Buckets(answer=65537), "buckets.answer=65537"),
        ((32, 64), r"buckets=\(32, 64\), expected"),
    ],
)
def test_buckets_that_are_no_lengths_are_refused_before_the_weights(pipeline, buckets, message):
    with pytest.raises(UserError, match=message):
        JanusPipeline(DECODED, {}, pipeline.tokenizer, buckets=buckets)
    with pytest.raises(UserError, match=message):
        load(model_in_memory(DECODED, {}, pipeline.tokenizer), buckets=buckets)
