"""A conversation of several turns whose key-value cache is kept, so that a turn reads only its new tokens."""

from collections.abc import Callable, Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.data.prompts import Message
from janus_jax.inference.engine import Engine
from janus_jax.inference.prompt_pieces import longest, total_length
from janus_jax.inference.requests import Answer, Image, TextRequest, TurnOptions
from janus_jax.inference.sampling import Sampling, answer_keys
from janus_jax.inference.validation import user_message
from janus_jax.models.llama import KVCache
from janus_jax.sharding import to_host

STREAMED = 8  # number of tokens between two pieces of a streamed text


class Conversation:
    """Answers questions with the same answers as `Pipeline.answer` gives to all messages so far.

    A turn's prompt number is the number of the turn, 0 for the first question (see `sampling.sample_keys`).
    """

    def __init__(self, engine: Engine):
        self._engine = engine
        self._messages: list[Message] = []
        self._images: list[Image] = []
        self._cache: KVCache | None = None
        self._cached: list[int] = []  # the tokens in the cache
        self._slots: list[int] = []  # the slot of the cache that holds each of them

    @property
    def messages(self) -> tuple[Message, ...]:
        """All turns so far."""
        return tuple(self._messages)

    @property
    def cache(self) -> KVCache | None:
        """The keys and values of the turns so far; None before the first one."""
        return self._cache

    def ask(
        self,
        question: str,
        images: Image | Sequence[Image] = (),
        *,
        on_text: Callable[[str], Any] | None = None,
        **options: Unpack[TurnOptions],
    ) -> Answer:
        """Answers the next question; errors are those of `Pipeline.answer`.

        After an error the conversation is as before.

        Args:
            images: those of this question: one, or a list.
            on_text: called with the answer piece by piece while it is written; the pieces joined are its text.
            options: max_new_tokens, temperature, top_p, top_k and seed; see `TurnOptions`.
        """
        attached: Sequence[Any] = images if isinstance(images, list | tuple) else [images]
        messages = [*self._messages, user_message(question, len(attached))]
        all_images = [*self._images, *attached]
        turn = len(self._messages) // 2
        requests, sampling = self._engine.reader.text([messages], [all_images], prompt_numbers=[turn], **options)
        tokens = self._decode(requests[0], sampling, on_text)
        answer = self._engine.to_answer(requests[0].prompt, tokens)
        self._images = all_images
        self._messages = [*messages, Message("assistant", answer.text)]
        return answer

    def _decode(self, request: TextRequest, sampling: Sampling, on_text: Callable[[str], Any] | None) -> list[int]:
        """Tokens of the answer to a request that repeats the conversation. What the cache holds is not read again."""
        engine, ids, limit = self._engine, request.prompt, request.max_new_tokens
        reused = self._reusable(ids)
        new = ids[reused:]
        num_new_images = new.count(engine.tokenizer.image_id) // engine.config.understanding.num_tokens
        pieces = engine.pieces([new], first=reused)
        pixels = engine.pixels_of(pieces, [request.images[len(request.images) - num_new_images :]])
        start = self._slots[reused - 1] + 1 if reused else 0  # the first slot of the new tokens
        end = start + total_length(pieces)
        needed = engine.slots(1, end + limit)
        length = max(needed, self._length) if start else needed
        engine.check_memory({"the conversation": (1, self._new_slots(start, length))}, (1, longest(pieces), length))
        cache, slots = self._cache_before(start, length), self._slots[:reused]
        self._cache, self._cached, self._slots = None, [], []  # decoding uses the old cache up
        keys = answer_keys([request])
        stream = TextStream(engine.tokenizer.decode, on_text)
        state = engine.prefill(pieces, pixels, keys, slots=length, sampling=sampling, cache=cache)
        step, finished = 0, False
        while not finished:
            until = limit if on_text is None else step + STREAMED
            state = engine.continue_(state, keys, [limit], until, sampling=sampling)
            step, finished = int(state.step), bool(to_host(state.finished)[0])
            tokens = np.asarray(state.tokens)[0, :step].tolist()
            stream(engine.until_end(tokens), finished)
        self._cache, self._cached = state.cache, [*ids, *tokens[:-1]]  # the last token has not been read
        read = start + np.flatnonzero(np.concatenate([piece.segment_ids[0] for piece in pieces]))
        self._slots = [*slots, *read.tolist(), *range(end, end + step - 1)]
        return tokens

    def _reusable(self, ids: Sequence[int]) -> int:
        """How many of the first tokens are in the cache; at least one is left, whose hidden state gives the next token.

        Text that was written as some tokens may be encoded as others when it is read. From the first difference on it
        is read again.
        """
        pairs = zip(self._cached, ids[:-1], strict=False)
        reused = next((i for i, (cached, token) in enumerate(pairs) if cached != token), None)
        if reused is None:
            reused = min(len(self._cached), len(ids) - 1)
        image_tokens = ids[reused:].count(self._engine.tokenizer.image_id)
        # The features of an image are read together: if a part of one is left, everything is read again.
        return 0 if image_tokens % self._engine.config.understanding.num_tokens else reused

    @property
    def _length(self) -> int:
        """Number of slots of the cache."""
        return 0 if self._cache is None else self._cache.segment_ids.shape[1]

    def _new_slots(self, start: int, length: int) -> int:
        """Number of slots that a turn allocates for a cache of `length`; 0 if the old cache is used."""
        return length if start == 0 or length > self._length else 0

    def _cache_before(self, start: int, length: int) -> KVCache | None:
        """The cache up to slot `start`, grown to `length` slots; None when nothing of it is used."""
        if start == 0 or self._cache is None:
            return None
        cache, more = self._cache, length - self._length

        def grow(leaf: jax.Array) -> jax.Array:
            """Appends zeros to the slots of keys or values."""
            return jnp.pad(leaf, [*[(0, 0)] * (leaf.ndim - 2), (0, more), (0, 0)]) if more else leaf

        # The tables are small: on the host their changes compile no program.
        tables: list[Any] = [cache.positions, cache.segment_ids, np.int32(start)]
        tables[:2] = (np.pad(to_host(leaf), ((0, 0), (0, more))) for leaf in tables[:2])
        tables[1][:, start:] = 0
        k, v = jax.tree.map(grow, (cache.k, cache.v))
        return KVCache(k, v, *tables)


class TextStream:
    """Gives out the text of a growing list of token ids, and holds back characters that the next token may change."""

    def __init__(self, decode: Callable[[list[int]], str], on_text: Callable[[str], Any] | None):
        self._decode, self._on_text = decode, on_text
        self._shown = 0  # number of characters given out

    def __call__(self, ids: list[int], finished: bool) -> None:
        """Gives out what is new.

        Args:
            finished: whether these are all tokens.
        """
        if self._on_text is None:
            return
        text = self._decode(ids).strip()
        if not finished:
            text = text.rstrip("\ufffd").rstrip()  # a character of which only the first bytes are there
        if len(text) > self._shown:
            self._on_text(text[self._shown :])
            self._shown = len(text)
