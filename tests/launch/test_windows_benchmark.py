"""The suite `windows`: a wide model draws what the small one in it draws."""

import dataclasses

import numpy as np

from benchmarks import windows
from examples.digits import data as digits
from janus_jax.inference.loading import load
from janus_jax.models.params import flatten
from janus_jax.models.presets import JANUS_PRO_TINY
from janus_jax.weights.reader import model_in_memory
from tests.helpers.small_models import random_params

TINY = JANUS_PRO_TINY
LIKE = dataclasses.replace(
    TINY,
    llama=dataclasses.replace(
        TINY.llama, vocab_size=TINY.llama.vocab_size + 32, width=2 * TINY.llama.width, depth=3, mlp_dim=320
    ),
    vq=dataclasses.replace(TINY.vq, num_codes=TINY.vq.num_codes + 32),
    image_head_width=2 * TINY.image_head_width,
)


def codes(config, params):
    tokenizer = digits.build_tokenizer(digits.text_records(), TINY.llama.vocab_size, TINY.prompt_style)
    pipeline = load(model_in_memory(config, params, tokenizer), "float32")
    return pipeline.generate_codes(["a red square", "a blue circle"], 2, seed=3, cfg_weight=3.0)


def test_a_widened_model_draws_the_same_codes():
    params = random_params(TINY)
    wide = windows.widened_config(TINY, LIKE)
    small = {path: np.asarray(leaf) for path, leaf in flatten(params).items()}
    result = codes(wide, windows.widened(TINY, wide, small))
    np.testing.assert_array_equal(result, codes(TINY, params))
    assert len(np.unique(result)) > 10
