"""How the next token is drawn, as an argument of compiled programs: its numbers change, what is computed does not."""

import dataclasses

import jax
import numpy as np

from janus_jax.ops.sampling import sample_tokens

MIN_TOP_P = float(np.finfo(np.float32).tiny)  # less would keep no token at all


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampling:
    """Greedy without a temperature.

    Another temperature or top_p takes the same program; greedy or not, whether there is a top_p, and top_k do not.
    """

    temperature: jax.Array | np.float32 | None = None
    top_p: jax.Array | np.float32 | None = None  # None keeps all
    top_k: int = dataclasses.field(default=0, metadata={"static": True})  # 0 keeps all

    @classmethod
    def of(cls, temperature: float, top_p: float = 1.0, top_k: int = 0) -> "Sampling":
        """Of the options of a request: temperature 0 is greedy, whatever the others are; a top_p of 1 keeps all."""
        if temperature == 0:
            return cls()
        return cls(np.float32(temperature), None if top_p == 1 else np.float32(max(top_p, MIN_TOP_P)), top_k)

    def __call__(self, keys: jax.Array, step: jax.Array, logits: jax.Array) -> jax.Array:
        """Tokens [B] of logits [B, V]; keys [B]."""
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, step)
        return sample_tokens(keys, logits, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)
