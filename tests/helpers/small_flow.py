"""A small JanusFlow with a small VAE, both untrained."""

import dataclasses

from janus_jax.models.config import JanusFlowConfig, SiglipConfig, UViTConfig, VAEConfig
from tests.helpers.small_models import SMALL

VAE = VAEConfig(
    base_channels=4,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    latent_channels=3,
    norm_groups=2,
    norm_eps=1e-6,
    scaling_factor=0.5,
)
CONFIG = JanusFlowConfig(
    llama=dataclasses.replace(SMALL.llama, vocab_size=384, max_length=60),
    siglip=SiglipConfig(image_size=16, patch_size=4, width=16, depth=1, num_heads=2, mlp_dim=16, norm_eps=1e-6),
    uvit=UViTConfig(
        latent_size=8,
        latent_channels=3,
        patch_size=2,
        width=12,
        time_width=24,
        encoder_depth=1,
        decoder_depth=1,
        norm_eps=1e-6,
    ),
    prompt_style="janus_pro_tiny",
)
