"""How far the predictions of a quantised model are from those of the same model in full precision, token by token.

Both models read the same tokens: the answers and the images that the full model generates. So one early difference does
not change what is compared after it. Letters: B rows, C classes (text tokens or image codes).
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.batches import Modality
from janus_jax.data.prompts import STYLES, generation_prompt
from janus_jax.inference.janus import JanusPipeline
from janus_jax.inference.padding import PaddedPrompts
from janus_jax.inference.requests import Image
from janus_jax.inference.validation import user_message
from janus_jax.models.janus import Janus
from janus_jax.models.params import Params, bind


class Agreement(NamedTuple):
    """How much two models agree on a number of tokens."""

    divergence: float  # mean Kullback-Leibler divergence of the quantised model from the full one, in nats per token
    greedy: float  # share of tokens for which both models find the same class most probable
    tokens: int  # number of tokens compared


def weight_bytes(model: JanusPipeline) -> int:
    """Size of all weights as the model holds them."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))


def text_agreement(
    full: JanusPipeline,
    quantized: JanusPipeline,
    images: Sequence[Sequence[Image]],
    questions: Sequence[str],
    max_new_tokens: int = 16,
) -> Agreement:
    """Agreement on the tokens of the full model's greedy answers, the end-of-sentence token included.

    Args:
        images: the images of each question, as for `chat`.
    """
    conversations = [[user_message(text, len(attached))] for text, attached in zip(questions, images, strict=True)]
    answers = full.answer(conversations, images, max_new_tokens=max_new_tokens)
    ended = [[*answer.token_ids, full.tokenizer.eos_id][:max_new_tokens] for answer in answers]
    rows = [[*answer.prompt_token_ids, *tokens] for answer, tokens in zip(answers, ended, strict=True)]
    count = max(map(len, ended))
    counted = np.array([[False] * (count - len(tokens)) + [True] * len(tokens) for tokens in ended])
    return _compare(full, quantized, full.engine.pad(rows), full.engine.pixels(images), "text_logits", counted)


def image_agreement(full: JanusPipeline, quantized: JanusPipeline, prompts: Sequence[str], **options: Any) -> Agreement:
    """Agreement on the codes of one image per prompt that the full model generates.

    The comparison itself is without guidance.

    Args:
        options: options of `generate_codes` for the full model.
    """
    codes = full.generate_codes(prompts, 1, **options)
    style, count = STYLES[full.config.prompt_style], codes.shape[1]
    ids = [full.tokenizer.encode(generation_prompt(prompt, style)) for prompt in prompts]
    padded = full.engine.pad([[*prompt, *image] for prompt, image in zip(ids, codes.tolist(), strict=True)])
    padded.modality[:, -count:] = Modality.GENERATION_IMAGE
    return _compare(full, quantized, padded, None, "image_logits", np.ones(codes.shape, bool))


def _compare(
    full: JanusPipeline,
    quantized: JanusPipeline,
    rows: PaddedPrompts,
    pixels: jax.Array | None,
    head: str,
    counted: np.ndarray,
) -> Agreement:
    """Agreement on the last tokens of the rows.

    Args:
        head: name of the model's method that turns hidden states into logits.
        counted: [B, count] bool, which of the last `count` tokens of each row are compared.
    """
    ours, theirs = (
        np.asarray(
            _log_probabilities(model.engine.model, model.params, rows, pixels, head=head, count=counted.shape[1])
        )
        for model in (full, quantized)
    )
    ours, theirs = ours[counted].astype(np.float64), theirs[counted].astype(np.float64)
    divergence = np.sum(np.exp(ours) * (ours - theirs), axis=-1)
    same = ours.argmax(-1) == theirs.argmax(-1)
    return Agreement(float(divergence.mean()), float(same.mean()), len(same))


@functools.partial(jax.jit, static_argnames=("model", "head", "count"))
def _log_probabilities(
    model: Janus, params: Params, rows: PaddedPrompts, pixels: jax.Array | None, *, head: str, count: int
) -> jax.Array:
    """[B, count, C] log-probabilities for the last `count` tokens of each row, each given the tokens before it."""
    apply = bind(model, params)
    x = apply(rows.tokens, rows.modality, pixels, method="embed")
    hidden, _ = apply(x, rows.positions, rows.segment_ids)
    logits = apply(hidden[:, -count - 1 : -1], method=head)
    return jax.nn.log_softmax(logits.astype(jnp.float32))
