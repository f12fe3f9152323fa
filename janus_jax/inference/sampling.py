"""How the next token is sampled, and the random key of each sample.

Letters: B rows, V vocabulary, G images per prompt, W steps.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.inference.requests import ImageRequest, TextRequest
from janus_jax.ops.sampling import sample_tokens

MIN_TOP_P = float(np.finfo(np.float32).tiny)  # a smaller one would keep no token at all


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampling:
    """Options of sampling, as an argument of compiled programs. Without a temperature it is greedy.

    Another temperature or `top_p` takes the same program. Another program is compiled for greedy, for the presence of
    `top_p`, and for each `top_k`.
    """

    temperature: jax.Array | np.float32 | None = None
    top_p: jax.Array | np.float32 | None = None  # None keeps all tokens
    top_k: int = dataclasses.field(default=0, metadata={"static": True})  # 0 keeps all tokens

    @classmethod
    def of(cls, temperature: float, top_p: float = 1.0, top_k: int = 0) -> "Sampling":
        """From a user's options. Temperature 0 is greedy, whatever the others are; `top_p` 1 keeps all tokens."""
        if temperature == 0:
            return cls()
        return cls(np.float32(temperature), None if top_p == 1 else np.float32(max(top_p, MIN_TOP_P)), top_k)

    def __call__(self, keys: jax.Array, step: jax.Array, logits: jax.Array) -> jax.Array:
        """Samples tokens [B] from logits [B, V] with keys [B], which are the same at every step."""
        return self._sample(jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, step), logits)

    def several_steps(self, keys: jax.Array, first: jax.Array, logits: jax.Array) -> jax.Array:
        """Samples tokens [B, W] of the W steps from `first` [B] on, each as a call would, from logits [B, W, V]."""
        steps = first[:, None] + jnp.arange(logits.shape[1])
        keys = jax.vmap(jax.vmap(jax.random.fold_in, in_axes=(None, 0)))(keys, steps)
        return self._sample(keys.reshape(-1), logits.reshape(-1, logits.shape[-1])).reshape(logits.shape[:2])

    def _sample(self, keys: jax.Array, logits: jax.Array) -> jax.Array:
        return sample_tokens(keys, logits, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)


def sample_keys(
    seeds: Sequence[int], prompt_numbers: Sequence[int], num_images: int, first_images: Sequence[int] | None = None
) -> jax.Array:
    """Random keys [B, G] by the rule fold_in(fold_in(key(seed), prompt number), image number).

    Every sample has a key of its own that does not depend on its batch, so one answer or image of many can be
    reproduced alone. The image number of an answer is 0.

    Args:
        seeds, prompt_numbers: one per row, from 0 to 2**32 - 1.
        first_images: number of the first image of each row; None is 0 for all.
    """
    return _flat_keys(seeds, prompt_numbers, num_images, first_images).reshape(len(seeds), num_images)


def answer_keys(requests: Sequence[TextRequest]) -> jax.Array:
    """Random keys [B] of the answers to requests."""
    return _flat_keys([row.seed for row in requests], [row.prompt_number for row in requests], 1, None)


def image_keys(requests: Sequence[ImageRequest], num_images: int) -> jax.Array:
    """Random keys [B G] of `num_images` images of each request, those of a request together."""
    seeds, numbers, first = zip(*[(row.seed, row.prompt_number, row.first_image) for row in requests], strict=True)
    return _flat_keys(seeds, numbers, num_images, first)


def _flat_keys(
    seeds: Sequence[int], prompt_numbers: Sequence[int], num_images: int, first_images: Sequence[int] | None
) -> jax.Array:
    first = np.zeros(len(seeds), np.uint32) if first_images is None else np.asarray(first_images, np.uint32)
    return _sample_keys(np.asarray(seeds, np.uint32), np.asarray(prompt_numbers, np.uint32), first, num_images)


@functools.partial(jax.jit, static_argnames="num_images")
def _sample_keys(seeds: jax.Array, prompt_numbers: jax.Array, first_images: jax.Array, num_images: int) -> jax.Array:
    def of_prompt(seed: jax.Array, prompt_number: jax.Array, first_image: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed), prompt_number)
        images = first_image + jnp.arange(num_images, dtype=jnp.uint32)
        return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, images)

    return jax.vmap(of_prompt)(seeds, prompt_numbers, first_images).reshape(-1)
