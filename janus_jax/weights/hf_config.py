"""config.json of transformers' ("hf") and DeepSeek's original layout ("deepseek") <-> `JanusConfig`; `flow_config` has
JanusFlow's.

A missing field has the default of the class that would read the file there. What our code does not compute is refused
by name and value rather than computed differently. The original file does not tell the sizes of SigLIP and VQ (code
behind their names does), so they are read off the tensors.
"""

import math
from collections.abc import Mapping
from typing import Any

from etils import epath

from janus_jax.errors import UserError
from janus_jax.models.config import FamilyConfig, JanusConfig, SiglipConfig, VQConfig
from janus_jax.models.presets import JANUS_PRO_1B, JANUSFLOW_1P3B
from janus_jax.weights.infer_sizes import (
    SIGLIP_NORM_EPS,
    TOWER_DEFAULTS,
    measure_siglip,
    measure_vq,
    tower_fields,
)
from janus_jax.weights.janusflow_config import is_flow, read_flow_config
from janus_jax.weights.json_fields import Fields, read_fields
from janus_jax.weights.llama_config import LLAMA_DEFAULTS, llama_fields, read_llama
from janus_jax.weights.name_map import Shape, their_shapes

FILE_NAME = "config.json"
_VQ_FIXED: dict[str, Any] = {"norm_groups": 32, "norm_eps": 1e-6, "commitment": 0.25}  # in the code of both layouts

# Ours -> theirs.
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
# Of transformers' JanusVisionConfig and JanusVQVAEConfig, and of the original MlpProjector.
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
_PROJECTOR_DEFAULTS = {"depth": 1}


def read_config(
    folder: epath.PathLike, shapes: Mapping[str, Shape] | None = None, *, prompt_style: str = "janus_pro"
) -> tuple[str, FamilyConfig]:
    """Layout ("hf" or "deepseek") and architecture of a folder, from its config.json.

    Args:
        shapes: name -> shape of the folder's tensors; the deepseek layout needs them for SigLIP and VQ of other sizes
            than released. `tables.match_names` compares the rest.
        prompt_style: of the result; config.json does not tell it.

    Raises:
        UserError: no readable config.json, not a Janus model, or one that our code cannot represent.
    """
    top = read_fields(epath.Path(folder) / FILE_NAME)
    kind = top.values.get("model_type")
    if kind not in ("janus", "multi_modality"):
        raise top.wrong("model_type", '"janus" (transformers) or "multi_modality" (DeepSeek)')
    if is_flow(top):
        shapes = their_shapes(JANUSFLOW_1P3B, "janusflow") if shapes is None else shapes
        return "deepseek", read_flow_config(top, shapes, prompt_style)
    try:
        if kind == "janus":
            return "hf", _read_hf(top, prompt_style)
        shapes = their_shapes(JANUS_PRO_1B, "deepseek") if shapes is None else shapes
        return "deepseek", _read_deepseek(top, shapes, prompt_style)
    except UserError:
        raise
    except ValueError as error:  # sizes that do not go together, from the config classes
        raise UserError(f"{top.path}: {error}") from error


def hf_config(config: JanusConfig, dtype_name: str, tokenizer_ids: Mapping[str, int]) -> dict[str, Any]:
    """config.json for transformers, 5.x and 4.5x.

    Args:
        dtype_name: of the tensors, e.g. "bfloat16".
        tokenizer_ids: ids of "bos", "eos", "pad" and "image" (the placeholder).

    Raises:
        UserError: the layout cannot express the architecture.
    """
    siglip, vq, width = config.siglip, config.vq, config.llama.width
    _check_writable(config, "hf", {"image_head_width": (config.image_head_width, width)})
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


def deepseek_config(config: JanusConfig, dtype_name: str) -> dict[str, Any]:
    """config.json for the original code, which itself builds only the released SigLIP and VQ.

    Raises:
        UserError: the layout cannot express the architecture.
    """
    siglip, vq, width = config.siglip, config.vq, config.llama.width
    _check_writable(config, "deepseek", {"siglip.norm_eps": (siglip.norm_eps, SIGLIP_NORM_EPS)})

    def part(kind: str, cls: str, **params: Any) -> dict[str, Any]:
        return {"model_type": kind, "cls": cls, "params": params}

    def projector(kind: str, depth: int, input_dim: int) -> dict[str, Any]:
        return part(kind, "MlpProjector", depth=depth, input_dim=input_dim, n_embed=width, projector_type="mlp_gelu")

    head = {"image_token_embed": config.image_head_width, "image_token_size": vq.num_codes, "n_embed": width}
    return {
        "architectures": ["MultiModalityCausalLM"],
        "model_type": "multi_modality",
        "torch_dtype": dtype_name,
        "vision_config": part("vision", "CLIPVisionTower", **tower_fields(siglip)),
        "aligner_config": projector("aligner", config.aligner_depth, siglip.width),
        "gen_vision_config": part("gen_vision", "VQ-16", image_token_size=vq.num_codes, n_embed=vq.code_dim),
        "gen_aligner_config": projector("gen_aligner", config.gen_aligner_depth, vq.code_dim),
        "gen_head_config": part("gen_head", "vision_head", **head),
        "language_config": {**llama_fields(config.llama), "torch_dtype": dtype_name},
    }


def _read_hf(top: Fields, prompt_style: str) -> JanusConfig:
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
        vq=_vq_config(siglip, vq.integers(_VQ_SIZES) | levels),
        aligner_depth=vision.integer("depth"),
        gen_aligner_depth=vq.integer("num_hidden_layers"),
        image_head_width=llama.width,
        prompt_style=prompt_style,
    )


def _read_deepseek(top: Fields, shapes: Mapping[str, Shape], prompt_style: str) -> JanusConfig:
    def params(part: str, cls: str, defaults: Mapping[str, Any] | None = None) -> Fields:
        section = top.object(part)
        section.only(cls=cls)
        return section.object("params", defaults)

    llama = read_llama(top.object("language_config", LLAMA_DEFAULTS))
    siglip = measure_siglip(params("vision_config", "CLIPVisionTower", TOWER_DEFAULTS), shapes)
    vq = _vq_config(siglip, measure_vq(top, shapes))
    aligner = params("aligner_config", "MlpProjector", _PROJECTOR_DEFAULTS)
    gen_aligner = params("gen_aligner_config", "MlpProjector", _PROJECTOR_DEFAULTS)
    head = params("gen_head_config", "vision_head")
    aligner.only(projector_type="mlp_gelu", input_dim=siglip.width, n_embed=llama.width)
    gen_aligner.only(projector_type="mlp_gelu", input_dim=vq.code_dim, n_embed=llama.width)
    head.only(image_token_size=vq.num_codes, n_embed=llama.width)
    params("gen_vision_config", "VQ-16").only(image_token_size=vq.num_codes, n_embed=vq.code_dim)
    return JanusConfig(
        llama=llama,
        siglip=siglip,
        vq=vq,
        aligner_depth=aligner.integer("depth"),
        gen_aligner_depth=gen_aligner.integer("depth"),
        image_head_width=head.integer("image_token_embed"),
        prompt_style=prompt_style,
    )


def _vq_config(siglip: SiglipConfig, sizes: Mapping[str, Any]) -> VQConfig:
    """Both layouts draw as many image tokens as SigLIP has; that tells the image size of the VQ."""
    grid = siglip.image_size // siglip.patch_size
    image_size = grid * 2 ** (len(sizes["channel_multipliers"]) - 1)
    return VQConfig(**sizes, **_VQ_FIXED, image_size=image_size)


def _mlp_ratio(siglip: SiglipConfig) -> float:
    """The ratio from which `int(width * ratio)`, as transformers computes it, gives the width of the MLP."""
    ratio = siglip.mlp_dim / siglip.width
    return ratio if int(siglip.width * ratio) == siglip.mlp_dim else math.nextafter(ratio, math.inf)


def _check_writable(config: JanusConfig, layout: str, fixed: Mapping[str, tuple[Any, Any]]) -> None:
    """Raises UserError for the first field that the layout has at another value; `fixed` is {field: (ours, theirs)}."""
    fixed = {f"vq.{name}": (getattr(config.vq, name), value) for name, value in _VQ_FIXED.items()} | dict(fixed)
    fixed["tokens per generated image"] = (config.vq.num_tokens, config.siglip.num_tokens)
    for name, (ours, theirs) in fixed.items():
        if ours != theirs:
            raise UserError(f"{name}={ours} cannot be written in the {layout} layout, which has {theirs}")
