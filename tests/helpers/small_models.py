"""Small models with parameters that let mistakes show; fresh ones give nearly flat outputs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.models.config import JanusConfig, JanusFlowConfig, LlamaConfig, SiglipConfig, UViTConfig, VQConfig
from janus_jax.models.params import abstract_params, flatten, unflatten
from janus_jax.models.scan_layers import is_stacked

SMALL_VQ = VQConfig(
    image_size=8,
    base_channels=4,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    z_channels=6,
    code_dim=4,
    num_codes=32,
    norm_groups=2,
    norm_eps=1e-6,
    commitment=0.25,
)
SMALL = JanusConfig(
    llama=LlamaConfig(
        vocab_size=40,
        width=24,
        depth=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        mlp_dim=40,
        max_length=64,
        rope_theta=100.0,
        norm_eps=1e-6,
        init_std=0.02,
    ),
    siglip=SiglipConfig(image_size=16, patch_size=8, width=16, depth=2, num_heads=2, mlp_dim=32, norm_eps=1e-6),
    vq=dataclasses.replace(SMALL_VQ, image_size=4),  # two by two codes, as many as SigLIP tokens
    aligner_depth=2,
    gen_aligner_depth=2,
    image_head_width=24,
    prompt_style="janus_pro",
)
SMALL_FLOW = JanusFlowConfig(
    llama=SMALL.llama,
    siglip=SMALL.siglip,  # four tokens an image
    uvit=UViTConfig(
        latent_size=4,
        latent_channels=3,
        patch_size=2,
        width=8,
        time_width=24,
        encoder_depth=1,
        decoder_depth=1,
        norm_eps=1e-6,
    ),
    prompt_style="janus",
)
# Decodes text and images: 4 SigLIP tokens and 16 codes an image; 2 of 4 heads have keys and values of their own.
DECODED = JanusConfig(
    llama=LlamaConfig(
        vocab_size=384,
        width=32,
        depth=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        mlp_dim=48,
        max_length=128,
        rope_theta=10000.0,
        norm_eps=1e-6,
        init_std=0.02,
    ),
    siglip=SiglipConfig(image_size=16, patch_size=8, width=16, depth=2, num_heads=2, mlp_dim=32, norm_eps=1e-6),
    vq=VQConfig(
        image_size=16,
        base_channels=32,
        channel_multipliers=(1, 1, 1),
        num_res_blocks=1,
        z_channels=8,
        num_codes=64,
        code_dim=4,
        norm_groups=32,
        norm_eps=1e-6,
        commitment=0.25,
    ),
    aligner_depth=2,
    gen_aligner_depth=2,
    image_head_width=32,
    prompt_style="janus_pro_tiny",
)

# The sizes of `DECODED` for transformers.
_TEXT = {
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
_VISION = {
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
_VQ = {
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
DECODED_TORCH = _TEXT, _VISION, _VQ


@functools.cache
def random_params(config, seed=0):
    """Matrices scaled by 1/sqrt(fan_in), tables by 0.5, norm scales around 1."""
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        values = rng.standard_normal(shape)
        if path.endswith("/scale"):
            values = 1 + 0.1 * values
        elif path.endswith("/bias"):
            values *= 0.1
        elif path.endswith("/kernel"):
            values /= np.sqrt(np.prod(shape[int(is_stacked(path)) : -1]))
        else:
            values *= 0.5
        return jax.device_put(values.astype(np.float32))

    return unflatten({path: draw(path, leaf.shape) for path, leaf in flatten(abstract_params(config)).items()})


def random_array(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)
