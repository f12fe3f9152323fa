"""A conversation of several turns whose key-value cache is kept: a turn reads only what is new."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.data.prompts import Message
from janus_jax.inference.decoding import continue_text, start_text
from janus_jax.inference.padding import round_up
from janus_jax.inference.validation import user_message
from janus_jax.models.llama import KVCache

if TYPE_CHECKING:
    from janus_jax.inference.pipeline import Answer, Image, Pipeline

STREAMED = 8  # tokens between two pieces of a streamed text
CAPACITY = 512  # a cache that becomes too small grows to a multiple of this, which compiles other programs


class Conversation:
    """Made by `Pipeline.conversation`. Its answers are those of `Pipeline.answer` to all messages so far."""

    def __init__(self, pipeline: "Pipeline"):
        self._pipeline = pipeline
        self._messages: list[Message] = []
        self._images: list[Image] = []
        self._cache: KVCache | None = None
        self._known: list[int] = []  # the tokens in the cache
        self._slots: list[int] = []  # where in the cache each of them is

    @property
    def messages(self) -> tuple[Message, ...]:
        """All turns so far."""
        return tuple(self._messages)

    def ask(
        self,
        question: str,
        images: "Image | Sequence[Image]" = (),
        *,
        on_text: Callable[[str], Any] | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 0.95,
        top_k: int = 0,
        seed: int = 0,
    ) -> "Answer":
        """The next turn; options and errors of `Pipeline.answer`. After an error the conversation is as before.

        Args:
            images: of this question: one, or a list.
            on_text: given the answer piece by piece while it is written; the pieces joined are its text.
        """
        pipeline = self._pipeline
        asked: Sequence[Any] = images if isinstance(images, list | tuple) else [images]
        messages = [*self._messages, user_message(question, len(asked))]
        all_images = [*self._images, *asked]
        request = pipeline._requests.text(
            [messages],
            [all_images],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
        )
        ids, limit = request.prompts[0], request.max_new_tokens[0]
        kept = self._kept(ids)
        new = ids[kept:]
        new_images = new.count(pipeline.tokenizer.image_id) // pipeline.config.siglip.num_tokens
        pixels = pipeline._pixels([all_images[len(all_images) - new_images :]])
        padded = pipeline._pad([new])
        padded = padded._replace(positions=padded.positions + kept)
        answer_slots = round_up(limit, pipeline._buckets.answer)
        start = self._slots[kept - 1] + 1 if kept else 0  # the first slot of the new tokens
        end = start + padded.tokens.shape[1]
        caches = {"the conversation": (1, self._new_slots(start, end + answer_slots))}
        pipeline._check_memory(caches, (1, padded.tokens.shape[1], end + answer_slots))
        old, slots = self._prefix(start, end + answer_slots), self._slots[:kept]
        self._cache, self._known, self._slots = None, [], []  # decoding uses the old cache up
        keys = jax.random.fold_in(jax.random.key(seed), 0)[None]
        limits = jnp.full(1, limit, jnp.int32)
        shown = _Stream(lambda ids: pipeline.tokenizer.decode(ids), on_text)
        options = {"sampling": request.sampling, "eos_id": pipeline.tokenizer.eos_id}
        with pipeline._on_mesh():
            state = start_text(
                pipeline._model, pipeline.params, padded, pixels, old, keys, slots=answer_slots, **options
            )
            step, finished = 0, False
            while not finished:
                until = limit if on_text is None else step + STREAMED
                state = continue_text(pipeline._model, pipeline.params, state, keys, limits, until, **options)
                step, finished = int(state.step), bool(state.finished[0])
                row = np.asarray(state.tokens)[0, :step].tolist()
                shown(pipeline._until_end(row), finished)
        self._cache, self._known = state.cache, [*ids, *row[:-1]]  # the last token was not read
        self._slots = [*slots, *range(end - len(new), end + step - 1)]
        answer = pipeline._answer(ids, row)
        self._images = all_images
        self._messages = [*messages, Message("assistant", answer.text)]
        return answer

    def _kept(self, ids: Sequence[int]) -> int:
        """How many of the tokens are in the cache; at least one is not, whose hidden state says what comes next.

        An answer may have other tokens when it is read than when it was written: what follows is read again.
        """
        pairs = zip(self._known, ids[:-1], strict=False)
        kept = next((i for i, (known, token) in enumerate(pairs) if known != token), None)
        if kept is None:
            kept = min(len(self._known), len(ids) - 1)
        image_tokens = ids[kept:].count(self._pipeline.tokenizer.image_id)
        return 0 if image_tokens % self._pipeline.config.siglip.num_tokens else kept  # an image is read as a whole

    def _new_slots(self, start: int, needed: int) -> int:
        """Of the cache that a turn makes; the old one is in use until then, and used again where it is large enough."""
        if start == 0 or self._cache is None:
            return needed
        return round_up(needed, CAPACITY) if needed > self._cache.segment_ids.shape[1] else 0

    def _prefix(self, start: int, needed: int) -> KVCache | None:
        """The cache up to slot `start` with room for `needed` slots; None when nothing is kept."""
        if start == 0 or self._cache is None:
            return None
        cache = self._cache
        capacity = cache.segment_ids.shape[1]
        more = max(self._new_slots(start, needed) - capacity, 0)

        def grown(leaf: jax.Array, slots: int) -> jax.Array:
            """With more of its axis `slots`."""
            return jnp.pad(leaf, [(0, more if axis == slots else 0) for axis in range(leaf.ndim)]) if more else leaf

        segment_ids = jnp.where(jnp.arange(capacity) < start, cache.segment_ids, 0)
        return KVCache(
            k=tuple(grown(leaf, 2) for leaf in cache.k),
            v=tuple(grown(leaf, 2) for leaf in cache.v),
            positions=grown(cache.positions, 1),
            segment_ids=grown(segment_ids, 1),
            length=jnp.asarray(start, jnp.int32),
        )


class _Stream:
    """Gives out the text of growing token ids; what the next token may still change is held back."""

    def __init__(self, decode: Callable[[list[int]], str], on_text: Callable[[str], Any] | None):
        self._decode, self._on_text = decode, on_text
        self._shown = 0  # characters

    def __call__(self, ids: list[int], finished: bool) -> None:
        if self._on_text is None:
            return
        text = self._decode(ids).strip()
        if not finished:
            text = text.rstrip("\ufffd").rstrip()  # the first bytes of a character
        if len(text) > self._shown:
            self._on_text(text[self._shown :])
            self._shown = len(text)
