"""One small model for all tests of decoding, with the same weights in transformers, and real tokens and images."""

import dataclasses
from typing import NamedTuple

import PIL.Image
import pytest

from examples.digits import data as digits
from janus_jax.inference.pipeline import JanusPipeline

# 4 SigLIP tokens and 16 codes an image; 2 of 4 heads have keys and values of their own.
TEXT = {
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "mlp_ratio": 2.0,
    "projection_dim": 32,
    "depth": 2,
    "num_image_tokens": 16,
}
VQ = {
    "embed_dim": 4,
    "num_embeddings": 64,
    "latent_channels": 8,
    "base_channels": 32,
    "channel_multiplier": [1, 1, 1],
    "num_res_blocks": 1,
    "projection_dim": 32,
    "num_hidden_layers": 2,
    "image_token_embed_dim": 32,
}


class Small(NamedTuple):
    pipeline: JanusPipeline
    torch_model: object  # transformers.JanusForConditionalGeneration


@pytest.fixture(scope="session")
def small():
    from tests.helpers.torch_weights import make_pair

    torch_model, config, params = make_pair(TEXT, VISION, VQ, seed=5)
    config = dataclasses.replace(config, prompt_style="janus_pro_tiny")
    tokenizer = digits.build_tokenizer(digits.text_records(), config.llama.vocab_size, config.prompt_style)
    return Small(JanusPipeline(config, params, tokenizer), torch_model)


@pytest.fixture(scope="session")
def pipeline(small):
    return small.pipeline


@pytest.fixture(scope="session")
def pictures():
    """Three images of different colours and sizes, none of them square."""
    colours = [(20, (250, 10, 10)), (30, (10, 10, 240)), (40, (240, 240, 20))]
    return [PIL.Image.new("RGB", (25, height), colour) for height, colour in colours]
