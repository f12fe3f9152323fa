"""Few programs are compiled, whatever the lengths of prompts and answers and the number of pictures are."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from janus_jax.inference.cache_lengths import CONVERSATION, MASKED_SHARE, cache_length, ladder
from janus_jax.inference.compiled_programs import traced
from janus_jax.inference.janus import JanusPipeline
from janus_jax.inference.memory import cache_bytes
from janus_jax.inference.padding import Buckets
from janus_jax.inference.prompt_pieces import split
from janus_jax.inference.validation import user_message
from janus_jax.models.execution import decoding_execution
from janus_jax.models.params import abstract_params, flatten
from janus_jax.models.presets import JANUS_PRO_1B, JANUS_PRO_7B
from tests.helpers.small_models import DECODED, random_params

IMAGE, BEGIN, END = 9, 7, 8


@pytest.fixture
def compiled():
    """The compilations of JAX, those for single operations included."""
    events = []

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)


def test_a_job_of_600_questions_compiles_six_programs_at_most(tokenizer, pictures, compiled):
    """Yes or no, multiple choice and free answers, with no, one and two pictures, 50 questions at a time."""
    config = dataclasses.replace(DECODED, llama=dataclasses.replace(DECODED.llama, depth=1))
    pipeline = JanusPipeline(config, random_params(config, seed=3), tokenizer, buckets=Buckets(16, 16))
    rng, compiled[:] = np.random.default_rng(0), []
    before = traced.copy()
    for _ in range(12):
        images = [pictures[:number] for number in rng.integers(0, 3, 50)]
        words = [" ".join(rng.choice(["one", "two", "odd", "digit"], number)) for number in rng.integers(1, 6, 50)]
        kinds = [("Is it {}?", 1), ("{}? A. one B. two", 2), ("Which digit {}?", 12)]
        template, limit = kinds[rng.integers(3)]
        texts = [template.format(each) for each in words]
        conversations = [[user_message(text, len(each))] for text, each in zip(texts, images, strict=True)]
        assert len(pipeline.answer(conversations, images, max_new_tokens=limit)) == 50
    assert sum((traced - before).values()) == 3  # text and image of a prompt, and the answer
    assert len(compiled) <= 6, compiled


def test_the_second_turn_of_a_conversation_compiles_nothing(pipeline, pictures, compiled):
    conversation = pipeline.conversation()
    conversation.ask("Which digit?", pictures[:1], max_new_tokens=4, on_text=lambda text: None)
    compiled.clear()
    conversation.ask("Why?", max_new_tokens=7, on_text=lambda text: None)
    assert compiled == []


def test_pieces_hold_every_token_and_image_once_in_order():
    image = [BEGIN, *[IMAGE] * 3, END]
    prompts = [[1, 2], [1, 2, *image, 3, *image, 4, 5, 6], [1, *image, 2, 3, 4, 5]]
    pieces = split(prompts, [IMAGE], 3, text_tokens=4, first=10)
    assert [piece.tokens.shape[1] for piece in pieces] == [4, 3, 4, 3, 4, 4]
    assert [piece.images for piece in pieces] == [None, (None, 0, None), None, (None, 1, 0), None, None]
    for row, prompt in enumerate(prompts):
        kept = [piece.segment_ids[row] > 0 for piece in pieces]
        tokens = [np.where(piece.images is None, piece.tokens[row], IMAGE) for piece in pieces]
        assert np.concatenate([x[real] for x, real in zip(tokens, kept, strict=True)]).tolist() == prompt
        positions = np.concatenate([piece.positions[row][real] for piece, real in zip(pieces, kept, strict=True)])
        assert positions.tolist() == list(range(10, 10 + len(prompt)))
        for piece in pieces:
            assert np.all(np.diff(piece.segment_ids[row]) >= 0)  # padding is on the left


def test_lengths_of_caches_grow_by_about_half():
    lengths = list(itertools.islice(ladder(CONVERSATION), 6))
    assert lengths[0] == CONVERSATION
    assert all(1.5 <= after / before < 1.54 for before, after in itertools.pairwise(lengths))


@pytest.mark.parametrize("config", [JANUS_PRO_1B, JANUS_PRO_7B], ids=["1b", "7b"])
@pytest.mark.parametrize("rows", [1, 16, 64])
def test_masked_slots_cost_at_most_five_percent_of_a_step(config, rows):
    """Where a step reads the whole cache, as on a TPU in bfloat16: bytes of weights and of the cache that it reads."""
    llm = flatten(abstract_params(config)["llm"])
    weights = 2 * sum(leaf.size for path, leaf in llm.items() if path != "embed_tokens")
    slot = cache_bytes(config.llama, decoding_execution("bfloat16", "tpu", on_mesh=False), rows, 1)
    worst = 0
    for needed in range(64, 4096, 64):
        length = cache_length(needed, CONVERSATION, 64, slot, weights)
        assert length >= needed
        worst = max(worst, (length - needed) * slot / (weights + needed * slot))
    assert worst <= MASKED_SHARE
    if rows == 1:
        assert {cache_length(n, CONVERSATION, 64, slot, weights) for n in range(128, 1729)} == {768, 1152, 1728}
