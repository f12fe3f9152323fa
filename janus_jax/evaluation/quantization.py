"""How far a quantised model is from the same model in full precision: token by token, and in reading and drawing.

Token by token both read the same: answers and drawings of the full model. Letters: B rows, P row length, C classes.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from examples.digits import data as digits
from examples.digits.benchmark import Judge, evaluate_generation, evaluate_understanding
from janus_jax.batches import Modality
from janus_jax.data.prompts import STYLES, generation_prompt
from janus_jax.inference.janus import JanusPipeline
from janus_jax.inference.padding import PaddedPrompts
from janus_jax.inference.requests import Image
from janus_jax.inference.validation import user_message
from janus_jax.models.janus import Janus
from janus_jax.models.params import Params, bind

CFG_WEIGHT = 2.5  # of the quickstart
QUESTIONS = 120  # of the agreement; reading is measured on all held-out digits


class Agreement(NamedTuple):
    divergence: float  # mean Kullback-Leibler divergence of the quantised model from the full one, nats per token
    greedy: float  # share of tokens where both find the same one most probable
    tokens: int  # that this was measured on


def compare(full: JanusPipeline, quantized: JanusPipeline, images_per_class: int) -> dict[str, float]:
    """All figures by name, of models of the quickstart. Needs the extra [quickstart]."""
    training, held_out = digits.load_digits()
    pictures = [[digits.to_image(intensities)] for intensities in held_out.intensities[:QUESTIONS]]
    questions = [digits.QUESTIONS[i % len(digits.QUESTIONS)] for i in range(len(pictures))]
    captions = [digits.CAPTIONS[0].format(name) for name in digits.NAMES]
    report: dict[str, float] = {}
    for kind, agreement in (
        ("text", text_agreement(full, quantized, pictures, questions)),
        ("image", image_agreement(full, quantized, captions, cfg_weight=CFG_WEIGHT)),
    ):
        report |= {f"{kind}_{name}": value for name, value in agreement._asdict().items()}
    judge = Judge(training)
    for kind, model in (("full", full), ("quantized", quantized)):
        report[f"{kind}_megabytes"] = weight_bytes(model) / 1e6
        report[f"{kind}_reading_accuracy"] = evaluate_understanding(model, held_out).accuracy
        drawn = evaluate_generation(
            model, judge, training, images_per_class=images_per_class, cfg_weight=CFG_WEIGHT, seed=0
        )
        report[f"{kind}_drawing_accuracy"] = drawn.accuracy
        report[f"{kind}_diversity"] = drawn.diversity
    return report


def weight_bytes(model: JanusPipeline) -> int:
    """Of all weights, as they are held."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))


def text_agreement(
    full: JanusPipeline,
    quantized: JanusPipeline,
    images: Sequence[Sequence[Image]],
    questions: Sequence[str],
    max_new_tokens: int = 16,
) -> Agreement:
    """At the tokens of the full model's greedy answers, end-of-sentence included; arguments of `chat`."""
    conversations = [[user_message(text, len(own))] for text, own in zip(questions, images, strict=True)]
    answers = full.answer(conversations, images, max_new_tokens=max_new_tokens)
    ended = [[*answer.token_ids, full.tokenizer.eos_id][:max_new_tokens] for answer in answers]
    rows = [[*answer.prompt_token_ids, *own] for answer, own in zip(answers, ended, strict=True)]
    count = max(map(len, ended))
    counted = np.array([[False] * (count - len(own)) + [True] * len(own) for own in ended])
    return _compare(full, quantized, full.engine.pad(rows), full.engine.pixels(images), "text_logits", counted)


def image_agreement(full: JanusPipeline, quantized: JanusPipeline, prompts: Sequence[str], **options: Any) -> Agreement:
    """At the codes of an image of each prompt that the full model draws, without guidance in the comparison.

    Args:
        options: of `generate_codes`.
    """
    codes = full.generate_codes(prompts, 1, **options)
    style, count = STYLES[full.config.prompt_style], codes.shape[1]
    ids = [full.tokenizer.encode(generation_prompt(prompt, style)) for prompt in prompts]
    padded = full.engine.pad([[*own, *drawn] for own, drawn in zip(ids, codes.tolist(), strict=True)])
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
    """At the last tokens of the rows, where `counted`."""
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
    """[B, count, C] of the last `count` tokens of each row, given those before them."""
    apply = bind(model, params)
    x = apply(rows.tokens, rows.modality, pixels, method="embed")
    hidden, _ = apply(x, rows.positions, rows.segment_ids)
    logits = apply(hidden[:, -count - 1 : -1], method=head)
    return jax.nn.log_softmax(logits.astype(jnp.float32))
