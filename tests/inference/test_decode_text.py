"""Answers equal those of an uncached loop over the full forward pass, alone or in a batch, and end at EOS."""

import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.data.images import understanding_pixels
from janus_jax.inference.compiled_programs import traced
from janus_jax.inference.prompt_pieces import total_length
from janus_jax.inference.sampling import Sampling, sample_keys
from janus_jax.inference.validation import user_message
from tests.helpers.reference_decoding import Reference

NEW_TOKENS = 10
# Different lengths, and 0, 1 and 2 images; the last is in another length bucket than the others.
QUESTIONS = ["Which digit comes after two?", "Is one odd?", "Which of the two digits of the images is larger, if any?"]


@pytest.fixture(scope="module")
def reference(pipeline):
    return Reference(pipeline)


@pytest.fixture(scope="module")
def images(pictures):
    return [[], pictures[:1], pictures[1:]]


def ask(pipeline, questions, images, **options):
    conversations = [[user_message(text, len(attached))] for text, attached in zip(questions, images, strict=True)]
    return pipeline.answer(conversations, images, **{"max_new_tokens": NEW_TOKENS} | options)


@pytest.fixture(scope="module")
def answers(pipeline, images):
    return ask(pipeline, QUESTIONS, images)


@pytest.fixture(scope="module")
def expected(pipeline, reference, images, answers):
    pixels = [[understanding_pixels(image, 16) for image in attached] for attached in images]
    prompts = [answer.prompt_token_ids for answer in answers]
    return [
        reference.greedy_text(pipeline.params, ids, attached, NEW_TOKENS)
        for ids, attached in zip(prompts, pixels, strict=True)
    ]


def test_prompts_hold_each_image_between_its_tokens(pipeline, answers, images):
    tokenizer = pipeline.tokenizer
    image = [tokenizer.begin_of_image_id, *[tokenizer.image_id] * 4, tokenizer.end_of_image_id]
    for answer, attached in zip(answers, images, strict=True):
        ids = answer.prompt_token_ids
        assert ids[0] == tokenizer.bos_id
        assert ids.count(tokenizer.image_id) == 4 * len(attached)
        starts = [i for i, token in enumerate(ids) if token == tokenizer.begin_of_image_id]
        assert [ids[i : i + 6] for i in starts] == [image] * len(attached)
    lengths = [len(answer.prompt_token_ids) for answer in answers]
    assert len(set(lengths)) == 3
    assert max(lengths[:2]) <= 32 < lengths[2]


def test_greedy_answers_equal_the_uncached_loop(answers, expected):
    assert [answer.token_ids for answer in answers] == expected
    assert len({tuple(ids) for ids in expected}) == 3
    assert min(len(set(ids)) for ids in expected) > 2  # no answer that only repeats itself


def test_other_lengths_and_limits_within_a_bucket_compile_no_program(pipeline):
    def answer(text, limit):
        return pipeline.answer([[user_message(text, 0)]] * 2, [[]] * 2, max_new_tokens=limit)[0].token_ids

    before = traced.copy()
    ten = answer("Is one odd?", NEW_TOKENS)
    # No other test of this file has two prompts.
    assert traced - before == {"text of a prompt": 1, "answer": 1}
    before = traced.copy()
    assert answer("Is one odd?", 4) == ten[:4]
    assert answer("Is two odd or even?", NEW_TOKENS) != ten
    assert traced == before


@pytest.mark.parametrize("index", [0, 1, 2])
def test_each_prompt_alone_has_the_answer_it_has_in_the_batch(pipeline, answers, images, index):
    alone = ask(pipeline, QUESTIONS[index : index + 1], images[index : index + 1])[0]
    assert alone == answers[index]


def test_images_are_read_in_order_from_files_or_memory(pipeline, pictures, expected, tmp_path):
    paths = []
    for i, picture in enumerate(pictures[1:]):
        paths.append(tmp_path / f"{i}.png")
        picture.save(paths[-1])
    want = pipeline.tokenizer.decode(expected[2]).strip()
    assert pipeline.chat(paths, QUESTIONS[2], max_new_tokens=NEW_TOKENS) == want
    assert pipeline.chat(paths[::-1], QUESTIONS[2], max_new_tokens=NEW_TOKENS) != want


@pytest.fixture(scope="module")
def early_end(pipeline, answers):
    """An engine in which EOS takes the place of a token of the first answer, and the index of that token there.

    The columns of the text head are swapped.
    """
    eos, first = pipeline.tokenizer.eos_id, answers[0].token_ids
    stop = next(i for i in range(2, NEW_TOKENS) if first[i] not in first[:i])
    kernel = np.array(pipeline.params["llm"]["lm_head"]["kernel"])
    kernel[:, [eos, first[stop]]] = kernel[:, [first[stop], eos]]
    llm = pipeline.params["llm"] | {"lm_head": {"kernel": jnp.asarray(kernel)}}
    return pipeline.engine.with_params(pipeline.params | {"llm": llm}), stop


def read(pipeline, questions, images, limits):
    conversations = [[user_message(text, len(attached))] for text, attached in zip(questions, images, strict=True)]
    options = dict(max_new_tokens=NEW_TOKENS, temperature=0.0, top_p=1.0, top_k=0, seed=0)
    requests, _ = pipeline.engine.reader.text(conversations, images, **options)
    return [request._replace(max_new_tokens=limit) for request, limit in zip(requests, limits, strict=True)]


def test_an_answer_ends_at_end_of_sentence_while_others_go_on(pipeline, images, answers, early_end):
    engine, stop = early_end
    first = answers[0].token_ids
    stopped = engine.answer(read(pipeline, QUESTIONS, images, [NEW_TOKENS] * 3))
    assert stopped[0].token_ids == first[:stop]
    assert stopped[0].text == pipeline.tokenizer.decode(first[:stop]).strip()
    for before, after in zip(answers[1:], stopped[1:], strict=True):
        ids = before.token_ids
        assert after.token_ids == (ids[: ids.index(first[stop])] if first[stop] in ids else ids)
    assert len(stopped[2].token_ids) > stop


def steps_taken(pipeline, engine, images, limits):
    requests = read(pipeline, QUESTIONS, images, limits)
    # Four rows, as `Engine.answer` makes of three.
    requests, images, limits = [*requests, requests[-1]], [*images, images[-1]], [*limits, limits[-1]]
    pieces = engine.pieces([request.prompt for request in requests])
    pixels = engine.pixels_of(pieces, images)
    keys = sample_keys([0] * 4, [0] * 4, 1)[:, 0]
    state = engine.prefill(pieces, pixels, keys, slots=engine.slots(4, total_length(pieces) + 16))
    state = engine.continue_(state, keys, limits, 16)
    assert state.cache.length - total_length(pieces) == state.step - 1  # the last token is not read
    return int(state.step)


def test_a_batch_takes_no_step_after_its_last_answer_has_ended(pipeline, images, answers, early_end):
    before = traced.copy()
    assert all(pipeline.tokenizer.eos_id not in answer.token_ids[:5] for answer in answers)
    assert steps_taken(pipeline, pipeline.engine, images, [3, 5, 2]) == 5
    engine, stop = early_end
    assert steps_taken(pipeline, engine, images, [16, 1, 1]) == stop + 1
    assert traced == before  # `with_params` compiles nothing


def test_sampling_follows_the_seed_and_a_tiny_nucleus_is_greedy(pipeline, answers, images):
    def sample(**options):
        return ask(pipeline, QUESTIONS[:1], images[:1], **{"temperature": 1.0, "top_p": 0.99} | options)[0]

    assert sample(top_p=1e-6).token_ids == answers[0].token_ids
    before = traced.copy()
    sampled = [sample(seed=seed) for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1]
    assert len({tuple(answer.token_ids) for answer in [*sampled, answers[0]]}) == 3
    assert sample(temperature=2.0).token_ids != answers[0].token_ids
    assert traced == before  # another temperature and top_p compile nothing


def test_a_sampled_answer_depends_on_its_seed_and_prompt_number_alone(pipeline, images, answers):
    """Equal questions of a batch have different answers, and each has the same one alone."""

    def sample(count, **options):
        return ask(pipeline, QUESTIONS[:1] * count, [[]] * count, temperature=1.0, top_p=0.99, **options)

    batch = sample(3, seed=[7, 7, 8], prompt_numbers=[0, 4, 4])
    assert len({tuple(answer.token_ids) for answer in batch}) == 3
    for answer, seed, number in zip(batch, [7, 7, 8], [0, 4, 4], strict=True):
        assert sample(1, seed=seed, prompt_numbers=[number]) == [answer]
    assert sample(3, seed=7)[0] == batch[0]  # prompts are numbered from 0


def test_options_reach_the_program(pipeline, monkeypatch):
    taken = []
    monkeypatch.setattr(pipeline.engine, "answer", lambda requests, sampling: taken.append((requests, sampling)) or [])
    ask(pipeline, QUESTIONS[:2], [[], []], temperature=0.5, top_p=0.25, top_k=3, seed=9)
    ((requests, sampling),) = taken
    assert sampling == Sampling.of(0.5, 0.25, 3)
    assert [(request.seed, request.prompt_number) for request in requests] == [(9, 0), (9, 1)]
