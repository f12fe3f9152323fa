"""Turns that keep the cache have the answers of a conversation read anew, and stream them."""

import pytest

from janus_jax.data.prompts import Message
from janus_jax.errors import UserError
from janus_jax.inference import chat_session as module
from janus_jax.inference.decoding import start_text
from janus_jax.inference.validation import user_message

OPTIONS = {"max_new_tokens": 6}


@pytest.fixture
def prompt_lengths(monkeypatch):
    """Tokens read by each turn, padding not counted."""
    lengths = []

    def start(model, params, prompts, *args, **options):
        lengths.append(int(prompts.segment_ids.sum()))
        return start_text(model, params, prompts, *args, **options)

    monkeypatch.setattr(module, "start_text", start)
    return lengths


def read_anew(pipeline, turns, answers, **options):
    messages, images = [], []
    for (text, own), answer in zip(turns, [*answers, None], strict=True):
        messages.append(user_message(text, len(own)))
        images += own
        if answer is not None:
            messages.append(Message("assistant", answer.text))
    return pipeline.answer([messages], [images], **options)[0]


def test_turns_read_what_is_new_and_answer_as_if_all_was_read(pipeline, pictures, prompt_lengths, monkeypatch):
    monkeypatch.setattr(module, "CAPACITY", 32)  # so that the cache grows
    checked, capacities = [], [0]
    monkeypatch.setattr(pipeline, "_check_memory", lambda *asked: checked.append(asked))
    turns = [("Which digit?", pictures[:1]), ("Is one odd?", []), ("And these?", pictures[1:])]
    conversation = pipeline.conversation()
    answers = []
    for i, (text, own) in enumerate(turns):
        pieces = []
        answer = conversation.ask(text, own, on_text=pieces.append, **OPTIONS)
        caches, (_, queries, keys) = checked[-1]
        (_, new_slots), capacity = caches["the conversation"], conversation._cache.segment_ids.shape[1]
        assert capacity == (new_slots or capacities[-1])  # a grown cache is made anew
        assert queries <= keys <= capacity
        capacities.append(capacity)
        assert answer == read_anew(pipeline, turns[: i + 1], answers, **OPTIONS)
        assert "".join(pieces) == answer.text
        answers.append(answer)
    assert [message.role for message in conversation.messages] == ["user", "assistant"] * 3
    lengths = [len(answer.prompt_token_ids) for answer in answers]
    assert prompt_lengths[0] == lengths[0]
    for read, whole, before in zip(prompt_lengths[1:], lengths[1:], lengths, strict=False):
        assert read <= whole - before + 2  # at most the last token and the last prompt's end are read again
    assert capacities[1] < capacities[3] and capacities[3] % 32 == 0
    assert len({tuple(answer.token_ids) for answer in answers}) > 1


def test_a_sampled_turn_is_that_of_the_seed_and_mistakes_change_nothing(pipeline):
    options = {"max_new_tokens": 6, "temperature": 1.0, "seed": 3}
    conversation = pipeline.conversation()
    first = conversation.ask("Is one odd?", **OPTIONS)
    for text, images, message in (("  ", [], "prompt is empty"), ("why " * 200, [], "exceed the context")):
        with pytest.raises(UserError, match=message):
            conversation.ask(text, images, **options)
    second = conversation.ask("Is two odd?", **options)
    assert second == read_anew(pipeline, [("Is one odd?", []), ("Is two odd?", [])], [first], **options)


def test_pieces_hold_back_what_the_next_token_may_change():
    texts = {1: " a", 2: " a \ufffd", 3: " a \u00e9 ", 4: " a \u00e9 \ufffd"}
    pieces = []
    stream = module._Stream(lambda ids: texts[len(ids)], pieces.append)
    for length in texts:
        stream([0] * length, finished=length == 4)
    assert pieces == ["a", " \u00e9", " \ufffd"]
