"""Answers equal those of an uncached loop over the full forward pass, alone or in a batch, and end at EOS."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.data.images import understanding_pixels
from janus_jax.inference.decoding import continue_text, programs, start_text
from janus_jax.inference.pipeline import JanusPipeline
from janus_jax.inference.sampling import Sampling
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


def ask(pipeline, questions, images):
    conversations = [[user_message(text, len(own))] for text, own in zip(questions, images, strict=True)]
    return pipeline.answer(conversations, images, max_new_tokens=NEW_TOKENS)


@pytest.fixture(scope="module")
def answers(pipeline, images):
    return ask(pipeline, QUESTIONS, images)


@pytest.fixture(scope="module")
def expected(pipeline, reference, images, answers):
    pixels = [[understanding_pixels(image, 16) for image in own] for own in images]
    prompts = [answer.prompt_token_ids for answer in answers]
    return [
        reference.greedy_text(pipeline.params, ids, own, NEW_TOKENS) for ids, own in zip(prompts, pixels, strict=True)
    ]


def test_prompts_hold_each_image_between_its_tokens(pipeline, answers, images):
    tokenizer = pipeline.tokenizer
    image = [tokenizer.begin_of_image_id, *[tokenizer.image_id] * 4, tokenizer.end_of_image_id]
    for answer, own in zip(answers, images, strict=True):
        ids = answer.prompt_token_ids
        assert ids[0] == tokenizer.bos_id
        assert ids.count(tokenizer.image_id) == 4 * len(own)
        starts = [i for i, token in enumerate(ids) if token == tokenizer.begin_of_image_id]
        assert [ids[i : i + 6] for i in starts] == [image] * len(own)
    lengths = [len(answer.prompt_token_ids) for answer in answers]
    assert len(set(lengths)) == 3
    assert max(lengths[:2]) <= 32 < lengths[2]


def test_greedy_answers_equal_the_uncached_loop(answers, expected):
    assert [answer.token_ids for answer in answers] == expected
    assert len({tuple(ids) for ids in expected}) == 3
    assert min(len(set(ids)) for ids in expected) > 2  # no answer that only repeats itself


def test_other_lengths_and_limits_within_a_bucket_compile_no_program(pipeline):
    def answer(text, limit):
        return pipeline.answer([[user_message(text, 0)]], [[]], max_new_tokens=limit)[0].token_ids

    for program in (start_text, continue_text):
        program.clear_cache()  # of what other tests of this process compiled
    ten = answer("Is one odd?", NEW_TOKENS)
    before = programs.copy()
    assert answer("Is one odd?", 4) == ten[:4]
    assert answer("Is two odd or even?", NEW_TOKENS) != ten
    assert programs == before
    answer("Is one odd?", 65)  # more than `Buckets.answer`
    assert programs - before == {"text prompt": 1, "text": 1}


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


def test_an_answer_ends_at_end_of_sentence_while_others_go_on(pipeline, images, answers):
    """EOS takes the place of a token of the first answer: the columns of the text head are swapped."""
    eos, first = pipeline.tokenizer.eos_id, answers[0].token_ids
    stop = next(i for i in range(2, NEW_TOKENS) if first[i] not in first[:i])
    kernel = np.array(pipeline.params["llm"]["lm_head"]["kernel"])
    kernel[:, [eos, first[stop]]] = kernel[:, [first[stop], eos]]
    llm = pipeline.params["llm"] | {"lm_head": {"kernel": jnp.asarray(kernel)}}
    stopping = JanusPipeline(pipeline.config, pipeline.params | {"llm": llm}, pipeline.tokenizer)
    stopped = ask(stopping, QUESTIONS, images)
    assert stopped[0].token_ids == first[:stop]
    assert stopped[0].text == pipeline.tokenizer.decode(first[:stop]).strip()
    for before, after in zip(answers[1:], stopped[1:], strict=True):
        ids = before.token_ids
        assert after.token_ids == (ids[: ids.index(first[stop])] if first[stop] in ids else ids)
    assert len(stopped[2].token_ids) > stop


def steps_taken(pipeline, images, answers, limits, eos_id):
    """Of at most 64, for the first two prompts in one batch."""
    prompts = pipeline._pad([answer.prompt_token_ids for answer in answers[:2]])
    keys = jax.random.split(jax.random.key(0), 2)
    options = dict(sampling=Sampling.of(0.0), eos_id=eos_id)
    pixels = pipeline._pixels(images[:2])
    state = start_text(pipeline._model, pipeline.params, prompts, pixels, None, keys, slots=64, **options)
    state = continue_text(pipeline._model, pipeline.params, state, keys, jnp.asarray(limits), 64, **options)
    assert state.cache.length - prompts.tokens.shape[1] == state.step - 1  # the last token is not read
    return int(state.step)


def test_a_batch_takes_no_step_after_its_last_answer_has_ended(pipeline, images, answers):
    eos = pipeline.tokenizer.eos_id
    assert all(eos not in answer.token_ids[:5] for answer in answers[:2])
    assert steps_taken(pipeline, images, answers, [3, 5], eos) == 5
    # A token of the first answer takes the place of end-of-sentence; the second answer is one token.
    first = answers[0].token_ids
    stop = next(i for i in range(2, NEW_TOKENS) if first[i] not in first[:i])
    assert steps_taken(pipeline, images, answers, [64, 1], first[stop]) == stop + 1


def test_sampling_follows_the_seed_and_a_tiny_nucleus_or_one_candidate_is_greedy(pipeline, answers, images):
    conversations = [[user_message(QUESTIONS[0], 0)]]
    options = {"max_new_tokens": NEW_TOKENS, "temperature": 1.0}
    narrow = pipeline.answer(conversations, images[:1], top_p=1e-6, **options)[0]
    assert narrow.token_ids == answers[0].token_ids
    before = dict(programs)
    wide = pipeline.answer(conversations, images[:1], max_new_tokens=NEW_TOKENS, temperature=2.0, top_p=0.99)[0]
    assert wide.token_ids != narrow.token_ids
    assert dict(programs) == before  # another temperature and top_p compile nothing
    one = pipeline.answer(conversations, images[:1], top_p=1.0, top_k=1, **options)[0]
    assert one.token_ids == answers[0].token_ids
    drawn = [pipeline.answer(conversations, images[:1], top_p=1.0, seed=seed, **options)[0] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
