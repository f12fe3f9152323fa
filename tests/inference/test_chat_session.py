"""Turns that keep the cache have the answers of a conversation that is read anew, and stream them."""

import dataclasses

import pytest

from janus_jax.data.prompts import Message
from janus_jax.errors import UserError
from janus_jax.inference.chat_session import TextStream
from janus_jax.inference.janus import JanusPipeline
from janus_jax.inference.padding import Buckets
from janus_jax.inference.validation import user_message
from tests.helpers.small_models import DECODED, random_params

OPTIONS = {"max_new_tokens": 6, "temperature": 1.0, "seed": 3}


@pytest.fixture
def recorded(tokenizer, monkeypatch):
    """A pipeline of one layer whose caches have two lengths, so that little is compiled, and what it was asked.

    The lists are the tokens that each turn reads, padding not counted, and the caches and scores of the memory check.
    """
    config = dataclasses.replace(DECODED, llama=dataclasses.replace(DECODED.llama, depth=1))
    pipeline = JanusPipeline(config, random_params(config, seed=12), tokenizer, buckets=Buckets(32, 16))
    monkeypatch.setattr("janus_jax.inference.engine.CONVERSATION", 64)
    lengths, checked, prefill = [], [], pipeline.engine.prefill

    def record(pieces, *args, **options):
        lengths.append(sum(int(piece.segment_ids.sum()) for piece in pieces))
        return prefill(pieces, *args, **options)

    monkeypatch.setattr(pipeline.engine, "prefill", record)
    monkeypatch.setattr(pipeline.engine, "check_memory", lambda *asked: checked.append(asked))
    return pipeline, lengths, checked


def read_anew(pipeline, turns, answers):
    messages, images = [], []
    for (text, attached), answer in zip(turns, [*answers, None], strict=True):
        messages.append(user_message(text, len(attached)))
        images += attached
        if answer is not None:
            messages.append(Message("assistant", answer.text))
    return pipeline.answer([messages], [images], prompt_numbers=[len(answers)], **OPTIONS)[0]


def test_turns_read_what_is_new_and_answer_as_if_all_was_read(recorded, pictures):
    """The cache of the first turn has room for the second, and grows for the third. Mistakes change nothing."""
    pipeline, lengths, checked = recorded
    turns = [("Which digit?", pictures[:1]), ("Is one odd?", []), ("And these?", pictures[1:])]
    conversation = pipeline.conversation()
    answers, capacities, read = [], [0], []
    for i, (text, attached) in enumerate(turns):
        for wrong, message in (("  ", "prompt is empty"), ("why " * 200, "exceed the context")):
            with pytest.raises(UserError, match=message):
                conversation.ask(wrong, **OPTIONS)
        pieces = []
        answer = conversation.ask(text, attached, on_text=pieces.append, **OPTIONS)
        read.append(lengths[-1])
        caches, (_, queries, keys) = checked[-1]
        (_, new_slots), capacity = caches["the conversation"], conversation.cache.segment_ids.shape[1]
        assert capacity == (new_slots or capacities[-1])  # memory is needed for a cache that grows
        assert queries <= keys <= capacity
        capacities.append(capacity)
        assert answer == read_anew(pipeline, turns[: i + 1], answers)
        assert "".join(pieces) == answer.text
        answers.append(answer)
    assert [message.role for message in conversation.messages] == ["user", "assistant"] * 3
    assert capacities[1:] == [128, 128, 320]
    whole = [len(answer.prompt_token_ids) for answer in answers]
    assert read[0] == whole[0]
    for turn, length, before in zip(read[1:], whole[1:], whole, strict=False):
        assert turn <= length - before + 2  # at most the last token and the last prompt's end are read again
    assert len({tuple(answer.token_ids) for answer in answers}) == 3


def test_pieces_hold_back_what_the_next_token_may_change():
    texts = {1: " a", 2: " a \ufffd", 3: " a \u00e9 ", 4: " a \u00e9 \ufffd"}
    pieces = []
    stream = TextStream(lambda ids: texts[len(ids)], pieces.append)
    for length in texts:
        stream([0] * length, finished=length == 4)
    assert pieces == ["a", " \u00e9", " \ufffd"]
