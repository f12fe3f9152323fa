"""Whether rounding may decide between two image codes: a reference that reads all codes of an image at once.

Letters: R images, P tokens of a prompt, N codes per image, C number of codes.
"""

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.models.execution import Execution
from janus_jax.models.params import bind, build

NEAR = 1e-4  # Difference of two perturbed logits, or probabilities, that rounding in float32 may turn around.


def code_logits(apply, prompt, codes):
    """Logits [R, N, C] of all codes [R, N] of images of one prompt [P], without a cache."""
    text = apply(jnp.tile(jnp.asarray(prompt), (len(codes), 1)), method="embed_text")
    x = jnp.concatenate([text, apply(codes[:, :-1], method="embed_codes")], axis=1)
    positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
    hidden, _ = apply(x, positions, jnp.ones_like(positions))
    return apply(hidden[:, len(prompt) - 1 :], method="image_logits")


def guided_logits(config, params, prompt, unconditional, codes, weight):
    """`code_logits` with guidance.

    Args:
        prompt, unconditional: P ids each.
        codes: [R, N].
    """
    apply = bind(build(config, Execution()), params)
    conditional, without = (np.float64(code_logits(apply, ids, jnp.asarray(codes))) for ids in (prompt, unconditional))
    return without + weight * (conditional - without)


def possible_choices(logits, key, place, *, temperature=1.0, top_k=0, top_p=1.0):
    """The codes that can be sampled from logits [C] at a place of an image if every number may be off by NEAR."""
    logits = np.float64(logits)
    if temperature == 0:
        return set(np.flatnonzero(logits >= logits.max() - NEAR))
    logits = logits / temperature
    certain = possible = np.ones(len(logits), bool)
    if top_k:
        threshold = np.sort(logits)[-top_k]
        certain, possible = logits > threshold + NEAR, logits >= threshold - NEAR
        certain |= possible & (possible.sum() <= top_k)  # without a rival, the last of them is kept as well
    if top_p < 1:
        probabilities = np.where(possible, np.exp(logits - logits.max()), 0.0)
        probabilities /= probabilities.sum()
        before = np.array([probabilities[logits > logit].sum() for logit in logits])
        certain, possible = certain & (before < top_p - NEAR), possible & (before < top_p + NEAR)
    noise = np.float64(jax.random.gumbel(jax.random.fold_in(key, place), logits.shape, jnp.float32))
    perturbed = logits + noise
    best = np.max(perturbed[certain], initial=-np.inf)
    return set(np.flatnonzero(possible & (perturbed >= best - NEAR)))
