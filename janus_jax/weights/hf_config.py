"""config.json of transformers' JanusForConditionalGeneration <-> `JanusConfig`.

A missing field has the default of the class that reads the file in transformers. A value that our code does not compute
is refused by name rather than computed differently.
"""

import math
from collections.abc import Mapping
from typing import Any

from janus_jax.models.config import JanusConfig, SiglipConfig
from janus_jax.weights.json_fields import Fields
from janus_jax.weights.layout_limits import check_expressible, vq_config
from janus_jax.weights.llama_config import LLAMA_DEFAULTS, llama_fields, read_llama

# Our names -> theirs.
_VISION_SIZES = {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
}
_VQ_SIZES = {
    "base_channels": "base_channels",
    "num_res_blocks": "num_res_blocks",
    "z_channels": "latent_channels",
    "code_dim": "embed_dim",
    "num_codes": "num_embeddings",
}
# The only values that our code computes.
_VISION_FIXED = {
    "model_type": "janus_vision_model",
    "num_channels": 3,
    "hidden_act": "gelu",
    "attention_bias": True,
    "use_qk_norm": False,
}
_HF_VQ_FIXED = {
    "model_type": "janus_vqgan",
    "in_channels": 3,
    "out_channels": 3,
    "double_latent": False,
    "hidden_act": "gelu",
}
# Defaults of transformers' JanusVisionConfig and JanusVQVAEConfig.
_VISION_DEFAULTS = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 16,
    "mlp_ratio": 4.0,
    "layer_norm_eps": 1e-6,
    "projection_dim": 2048,
    "num_image_tokens": 576,
    "depth": 2,
}
_VQ_DEFAULTS = {
    "embed_dim": 8,
    "num_embeddings": 16384,
    "latent_channels": 256,
    "base_channels": 128,
    "channel_multiplier": [1, 1, 2, 2, 4],
    "num_res_blocks": 2,
    "projection_dim": 2048,
    "image_token_embed_dim": 2048,
    "num_hidden_layers": 2,
}


def read_hf_config(top: Fields, prompt_style: str) -> JanusConfig:
    """The architecture in a whole config.json.

    Args:
        prompt_style: of the result; config.json does not contain it.

    Raises:
        UserError: a damaged field, or an architecture that our code cannot represent.
    """
    llama = read_llama(top.object("text_config", LLAMA_DEFAULTS))
    vision, vq = top.object("vision_config", _VISION_DEFAULTS), top.object("vq_config", _VQ_DEFAULTS)
    sizes = vision.integers(_VISION_SIZES)
    mlp_dim = int(sizes["width"] * vision.number("mlp_ratio"))
    siglip = SiglipConfig(**sizes, mlp_dim=mlp_dim, norm_eps=vision.number("layer_norm_eps"))
    vision.only(**_VISION_FIXED, projection_dim=llama.width, num_image_tokens=siglip.num_tokens)
    vq.only(**_HF_VQ_FIXED, projection_dim=llama.width, image_token_embed_dim=llama.width)
    levels = {"channel_multipliers": tuple(vq.integer_list("channel_multiplier"))}
    return JanusConfig(
        llama=llama,
        siglip=siglip,
        vq=vq_config(siglip, vq.integers(_VQ_SIZES) | levels),
        aligner_depth=vision.integer("depth"),
        gen_aligner_depth=vq.integer("num_hidden_layers"),
        image_head_width=llama.width,
        prompt_style=prompt_style,
    )


def hf_config(config: JanusConfig, dtype_name: str, tokenizer_ids: Mapping[str, int]) -> dict[str, Any]:
    """The content of config.json for transformers, 5.x and 4.5x.

    Args:
        dtype_name: name of the dtype of the tensors, e.g. "bfloat16".
        tokenizer_ids: ids of the tokens "bos", "eos", "pad" and "image" (the placeholder).

    Raises:
        UserError: the layout cannot express the architecture.
    """
    siglip, vq, width = config.siglip, config.vq, config.llama.width
    check_expressible(config, "hf", {"image_head_width": (config.image_head_width, width)})
    return {
        "architectures": ["JanusForConditionalGeneration"],
        "model_type": "janus",
        "torch_dtype": dtype_name,
        "image_token_id": tokenizer_ids["image"],
        "tie_word_embeddings": False,
        "text_config": {
            **llama_fields(config.llama),
            **{f"{token}_token_id": tokenizer_ids[token] for token in ("bos", "eos", "pad")},
        },
        "vision_config": {
            **_VISION_FIXED,
            **{theirs: getattr(siglip, ours) for ours, theirs in _VISION_SIZES.items()},
            "mlp_ratio": _mlp_ratio(siglip),
            "layer_norm_eps": siglip.norm_eps,
            "depth": config.aligner_depth,
            "projection_dim": width,
            "num_image_tokens": siglip.num_tokens,
            "initializer_range": 0.02,
            **dict.fromkeys(("attention_dropout", "hidden_dropout_rate", "projection_dropout"), 0.0),
        },
        "vq_config": {
            **_HF_VQ_FIXED,
            **{theirs: getattr(vq, ours) for ours, theirs in _VQ_SIZES.items()},
            "channel_multiplier": list(vq.channel_multipliers),
            "num_patches": vq.grid,
            "num_hidden_layers": config.gen_aligner_depth,
            "projection_dim": width,
            "image_token_embed_dim": width,
            "initializer_range": 0.02,
            "dropout": 0.0,
        },
    }


def _mlp_ratio(siglip: SiglipConfig) -> float:
    """The ratio with which transformers' `int(width * ratio)` gives the width of the MLP in spite of rounding."""
    ratio = siglip.mlp_dim / siglip.width
    return ratio if int(siglip.width * ratio) == siglip.mlp_dim else math.nextafter(ratio, math.inf)
