"""Weights of the PyTorch references in our layout, for parity tests. Every tensor of both sides must be used."""

import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import JanusConfig as TorchConfig
from transformers import JanusForConditionalGeneration

from janus_jax.models.config import JanusConfig, LlamaConfig, SiglipConfig, VQConfig
from janus_jax.models.params import abstract_params, flatten, unflatten
from janus_jax.models.scan_layers import is_stacked

# Module of transformers' Janus -> ours; `layers.0` and so on lose their number, because our layers are stacked.
_MODULES = [
    (r"model\.vision_model\.embeddings\.patch_embedding", "siglip/patch_embed"),
    (r"model\.vision_model\.embeddings\.position_embedding", "siglip/pos_embed"),
    (r"model\.vision_model\.encoder\.layers\.\d+\.layer_norm1", "siglip/layers/attention_norm"),
    (r"model\.vision_model\.encoder\.layers\.\d+\.layer_norm2", "siglip/layers/mlp_norm"),
    (r"model\.vision_model\.encoder\.layers\.\d+\.self_attn\.projection_layer", "siglip/layers/o_proj"),
    (r"model\.vision_model\.encoder\.layers\.\d+\.self_attn\.([qkv]_proj)", r"siglip/layers/\1"),
    (r"model\.vision_model\.encoder\.layers\.\d+\.mlp\.(fc[12])", r"siglip/layers/\1"),
    (r"model\.vision_model\.post_layernorm", "siglip/norm"),
    (r"model\.aligner\.fc1", "aligner/linear_0"),
    (r"model\.aligner\.hidden_layers\.(\d+)", lambda m: f"aligner/linear_{int(m[1]) + 1}"),
    (r"model\.generation_embeddings", "gen_embed"),
    (r"model\.generation_aligner\.fc1", "gen_aligner/linear_0"),
    (r"model\.generation_aligner\.hidden_layers\.(\d+)", lambda m: f"gen_aligner/linear_{int(m[1]) + 1}"),
    (r"model\.generation_head\.proj_out", "gen_head/proj"),
    (r"model\.generation_head\.vision_head", "gen_head/codes"),
    (r"model\.vqmodel\.quantize\.embedding", "vq/codebook"),
    (r"model\.vqmodel\.(quant_conv|post_quant_conv)", r"vq/\1"),
    (r"model\.vqmodel\.(\w+)\.(conv_in|conv_out|norm_out)", r"vq/\1/\2"),
    (r"model\.vqmodel\.(\w+)\.(up|down)\.(\d+)\.(upsample|downsample)\.conv", r"vq/\1/\2_\3_\4"),
    (r"model\.vqmodel\.(\w+)\.(up|down)\.(\d+)\.(block|attn)\.(\d+)\.nin_shortcut", r"vq/\1/\2_\3_\4_\5/shortcut"),
    (r"model\.vqmodel\.(\w+)\.(up|down)\.(\d+)\.(block|attn)\.(\d+)\.(\w+)", r"vq/\1/\2_\3_\4_\5/\6"),
    (r"model\.vqmodel\.(\w+)\.mid\.(\w+)\.(\w+)", r"vq/\1/mid/\2/\3"),
    (r"model\.language_model\.embed_tokens", "llm/embed_tokens"),
    (r"model\.language_model\.layers\.\d+\.self_attn\.([qkvo]_proj)", r"llm/decoder/layers/attention/\1"),
    (r"model\.language_model\.layers\.\d+\.mlp\.(\w+_proj)", r"llm/decoder/layers/mlp/\1"),
    (r"model\.language_model\.layers\.\d+\.input_layernorm", "llm/decoder/layers/input_norm"),
    (r"model\.language_model\.layers\.\d+\.post_attention_layernorm", "llm/decoder/layers/mlp_norm"),
    (r"model\.language_model\.norm", "llm/decoder/norm"),
    (r"lm_head", "llm/lm_head"),
]
_TABLES = {"siglip/pos_embed", "gen_embed", "vq/codebook", "llm/embed_tokens"}

# Original name inside the VQ model -> transformers' name.
_ORIGINAL_VQ = [
    (r"encoder\.conv_blocks", "encoder.down"),
    (r"decoder\.conv_blocks", "decoder.up"),
    (r"\.res\.", ".block."),
    (r"\.mid\.0\.", ".mid.block_1."),
    (r"\.mid\.1\.", ".mid.attn_1."),
    (r"\.mid\.2\.", ".mid.block_2."),
]


def our_path(name):
    """Torch tensor name -> our path."""
    module, kind = name.rsplit(".", 1)
    for pattern, replacement in _MODULES:
        match = re.fullmatch(pattern, module)
        if match:
            path = replacement(match) if callable(replacement) else match.expand(replacement)
            return path if path in _TABLES else f"{path}/{kind}"
    raise AssertionError(f"no rule for the torch tensor {name}")


def from_torch(state, config):
    """State dict of transformers -> parameters of `config`, transposed and stacked."""
    stacked = {}
    for name in sorted(state, key=lambda name: [int(part) if part.isdigit() else part for part in name.split(".")]):
        array, path = np.asarray(state[name], np.float32), our_path(name)
        if path not in _TABLES and path.endswith("weight"):
            leaf = "scale" if array.ndim == 1 else "kernel"
            path = f"{path.removesuffix('weight')}{leaf}"
            array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        stacked.setdefault(path, []).append(array)
    params = {}
    for path, arrays in stacked.items():
        assert is_stacked(path) or len(arrays) == 1, f"two torch tensors for {path}"
        params[path] = jax.device_put(np.stack(arrays) if is_stacked(path) else arrays[0])
    expected = {path: leaf.shape for path, leaf in flatten(abstract_params(config)).items()}
    assert {path: array.shape for path, array in params.items()} == expected
    return unflatten(params)


def original_vq_path(name, ndim):
    """Key of the original VQ model, without prefix -> our path in a `VQConfig`."""
    for pattern, replacement in _ORIGINAL_VQ:
        name = re.sub(pattern, replacement, name)
    path = our_path(f"model.vqmodel.{name}").removeprefix("vq/")
    return path.removesuffix("weight") + ("scale" if ndim == 1 else "kernel") if path.endswith("weight") else path


def from_original_vq(state, config):
    """Weights of the original VQ model, keys without prefix -> parameters of a `VQConfig`."""
    flat = {}
    for name, value in state.items():
        value = np.asarray(value)
        flat[original_vq_path(name, value.ndim)] = jnp.asarray(hwio(value))
    assert {p: v.shape for p, v in flat.items()} == {p: v.shape for p, v in flatten(abstract_params(config)).items()}
    return unflatten(flat)


def hwio(value):
    """A filter of PyTorch in our order of axes; other tensors as they are."""
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value


def rule_weights(keys, shapes):
    """Weights whose values follow from their names, so that no file has to hold them."""
    for key, shape in zip(keys, shapes, strict=True):
        a, b = 0.0, 1 / np.sqrt(np.prod(shape[1:]))
        if "channelwise_norm" in key:
            b = 0.5 if key.endswith("weight") else 0.1
        elif key.endswith("quantize.embedding.weight"):
            b = 1.0
        elif key.endswith(("embed_tokens.weight", "pos_embed", "beg_of_und_embed", "attn_pool.latent")):
            b = 0.5
        elif len(shape) == 1:
            a, b = float(key.endswith("weight")), 0.1
        yield key, np.float32(a + b * noise(key, shape))


def noise(name, shape):
    """float64 values that follow from a name."""
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape)


def refill(model, seed):
    """Replaces the flat default initialisation by values that let mistakes show."""
    generator = torch.Generator().manual_seed(seed)
    tables = ("embed_tokens", "position_embedding", "generation_embeddings", "quantize.embedding")
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            values = torch.randn(parameter.shape, generator=generator)
            if any(table in name for table in tables):
                values *= 0.5
            elif parameter.ndim > 1:
                values *= parameter[0].numel() ** -0.5
            else:
                values = 0.1 * values + (1 if name.endswith("weight") else 0)
            parameter.copy_(values)


def make_pair(text, vision, vq, seed):
    """transformers' model with refilled weights, our architecture, our parameters with the same weights."""
    torch_config = TorchConfig(
        text_config={"model_type": "llama", "tie_word_embeddings": False, **text},
        vision_config=vision,
        vq_config=vq,
        image_token_id=5,
        tie_word_embeddings=False,
    )
    model = JanusForConditionalGeneration(torch_config).eval()
    refill(model, seed)
    text, vision, vq = torch_config.text_config, torch_config.vision_config, torch_config.vq_config
    config = JanusConfig(
        llama=LlamaConfig(
            vocab_size=text.vocab_size,
            width=text.hidden_size,
            depth=text.num_hidden_layers,
            num_heads=text.num_attention_heads,
            num_kv_heads=text.num_key_value_heads,
            head_dim=text.head_dim,
            mlp_dim=text.intermediate_size,
            max_length=text.max_position_embeddings,
            rope_theta=text.rope_parameters["rope_theta"],
            norm_eps=text.rms_norm_eps,
            init_std=0.02,
        ),
        siglip=SiglipConfig(
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            width=vision.hidden_size,
            depth=vision.num_hidden_layers,
            num_heads=vision.num_attention_heads,
            mlp_dim=int(vision.hidden_size * vision.mlp_ratio),
            norm_eps=vision.layer_norm_eps,
        ),
        vq=VQConfig(
            image_size=vision.image_size,
            base_channels=vq.base_channels,
            channel_multipliers=tuple(vq.channel_multiplier),
            num_res_blocks=vq.num_res_blocks,
            z_channels=vq.latent_channels,
            code_dim=vq.embed_dim,
            num_codes=vq.num_embeddings,
            norm_groups=32,
            norm_eps=1e-6,
            commitment=0.25,
        ),
        aligner_depth=vision.depth,
        gen_aligner_depth=vq.num_hidden_layers,
        image_head_width=vq.projection_dim,
        prompt_style="janus_pro",
    )
    return model, config, from_torch(model.state_dict(), config)
