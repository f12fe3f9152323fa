"""Encoders of understanding images that a model may have (`JanusVariantConfig.encoder`).

An encoder is a module that turns pixels in [-1, 1] [B, image, image, 3] into features [B, N, E]. Its config says
`image_size` and `num_tokens`, which is N. docs/extending.md shows how to add one.
"""

from typing import NamedTuple

import flax.linen as nn

from janus_jax.models.config import EncoderConfig, SiglipConfig
from janus_jax.models.execution import Execution
from janus_jax.models.siglip import Siglip


class Encoder(NamedTuple):
    """One kind of encoder."""

    config: type
    module: type[nn.Module]


ENCODERS = {"siglip": Encoder(SiglipConfig, Siglip)}  # name of its parameters in the model, and in model.json


def encoder_name(config: EncoderConfig) -> str:
    """The name of an encoder's kind."""
    return next(name for name, encoder in ENCODERS.items() if encoder.config is type(config))


def build_encoder(config: EncoderConfig, execution: Execution) -> nn.Module:
    """The module of an encoder."""
    return ENCODERS[encoder_name(config)].module(config, execution)
