"""A model with random weights, sampled slice by slice, so that a folder of any size can be written for rehearsals.

Its tokenizer has the special tokens of the family and few others. What such a model says or generates is noise.
"""

import numpy as np

from janus_jax.data.images import JANUS_NORMALIZATION
from janus_jax.data.prompts import STYLES, SYSTEM_PROMPT
from janus_jax.data.tokenizer import train_tokenizer
from janus_jax.models.config import FamilyConfig
from janus_jax.models.params import abstract_params, flatten, fresh_slice
from janus_jax.weights.reader import ModelReader, TensorInfo, TensorSlice

_MAX_TOKENS = 1024  # more than the merges that the system prompt gives


class RandomTensors:
    """A reader of fresh parameters, each sampled when it is read. Implements `weights.reader.TensorReader`."""

    def __init__(self, config: FamilyConfig, seed: int):
        self._config, self._seed = config, seed
        leaves = flatten(abstract_params(config))
        self.parameters = {path: TensorInfo(leaf.shape, np.dtype(leaf.dtype)) for path, leaf in leaves.items()}

    def read(self, part: TensorSlice) -> np.ndarray:
        return fresh_slice(self._config, self._seed, part.path, part.layer)

    def origin(self, part: TensorSlice) -> str:
        return f"random {part}"


def random_model(config: FamilyConfig, seed: int) -> ModelReader:
    """A model of an architecture with random weights and a small byte-level tokenizer.

    Args:
        seed: The same seed gives the same weights.
    """
    style = STYLES[config.prompt_style]
    roles = [role for role in (style.user, style.assistant) if role.startswith("<|")]
    tokenizer = train_tokenizer([SYSTEM_PROMPT], min(config.llama.vocab_size, _MAX_TOKENS), roles)
    return ModelReader("random", config, tokenizer, JANUS_NORMALIZATION, RandomTensors(config, seed))
