"""config.json of DeepSeek's original Janus <-> `JanusConfig`.

A missing field has the default of the class that reads the file in the original code. A value that our code does not
compute is refused by name rather than computed differently. The file does not contain the sizes of SigLIP and of the VQ
(the code behind their names does), so they are read from the shapes of the tensors.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from janus_jax.models.config import JanusConfig
from janus_jax.models.presets import VQ_16
from janus_jax.weights.infer_sizes import TOWER_DEFAULTS, measure_siglip, measure_vq, tower_fields
from janus_jax.weights.json_fields import Fields
from janus_jax.weights.layout_limits import check_expressible, vq_config
from janus_jax.weights.llama_config import LLAMA_DEFAULTS, llama_fields, read_llama
from janus_jax.weights.name_map import Shape

_PROJECTOR_DEFAULTS = {"depth": 1}  # default of the original MlpProjector


def read_deepseek_config(top: Fields, shapes: Mapping[str, Shape], prompt_style: str) -> JanusConfig:
    """The architecture in a whole config.json.

    Args:
        shapes: name -> shape of the folder's tensors, from which the sizes of SigLIP and of the VQ are read.
        prompt_style: of the result; config.json does not contain it.

    Raises:
        UserError: a damaged field, or an architecture that our code cannot represent.
    """
    llama = read_llama(top.object("language_config", LLAMA_DEFAULTS))
    siglip = measure_siglip(read_section(top, "vision_config", "CLIPVisionTower", TOWER_DEFAULTS), shapes)
    vq = vq_config(siglip, measure_vq(top, shapes))
    aligner = read_section(top, "aligner_config", "MlpProjector", _PROJECTOR_DEFAULTS)
    gen_aligner = read_section(top, "gen_aligner_config", "MlpProjector", _PROJECTOR_DEFAULTS)
    head = read_section(top, "gen_head_config", "vision_head")
    aligner.only(projector_type="mlp_gelu", input_dim=siglip.width, n_embed=llama.width)
    gen_aligner.only(projector_type="mlp_gelu", input_dim=vq.code_dim, n_embed=llama.width)
    head.only(image_token_size=vq.num_codes, n_embed=llama.width)
    read_section(top, "gen_vision_config", "VQ-16").only(image_token_size=vq.num_codes, n_embed=vq.code_dim)
    return JanusConfig(
        llama=llama,
        siglip=siglip,
        vq=vq,
        aligner_depth=aligner.integer("depth"),
        gen_aligner_depth=gen_aligner.integer("depth"),
        image_head_width=head.integer("image_token_embed"),
        prompt_style=prompt_style,
    )


def deepseek_config(config: JanusConfig, dtype_name: str) -> dict[str, Any]:
    """The content of config.json for the original code, which can build the towers of `TOWERS` and VQ-16 only.

    Args:
        dtype_name: name of the dtype of the tensors, e.g. "bfloat16".

    Raises:
        UserError: the original code cannot build the architecture; names the first field.
    """
    siglip, vq, width = config.siglip, config.vq, config.llama.width
    sizes = [field.name for field in dataclasses.fields(VQ_16) if field.name != "image_size"]  # it is convolutional
    check_expressible(config, "deepseek", {f"vq.{name}": (getattr(vq, name), getattr(VQ_16, name)) for name in sizes})

    def projector(kind: str, depth: int, input_dim: int) -> dict[str, Any]:
        return section(kind, "MlpProjector", depth=depth, input_dim=input_dim, n_embed=width, projector_type="mlp_gelu")

    head = {"image_token_embed": config.image_head_width, "image_token_size": vq.num_codes, "n_embed": width}
    return {
        "architectures": ["MultiModalityCausalLM"],
        "model_type": "multi_modality",
        "torch_dtype": dtype_name,
        "vision_config": section("vision", "CLIPVisionTower", **tower_fields(siglip)),
        "aligner_config": projector("aligner", config.aligner_depth, siglip.width),
        "gen_vision_config": section("gen_vision", "VQ-16", image_token_size=vq.num_codes, n_embed=vq.code_dim),
        "gen_aligner_config": projector("gen_aligner", config.gen_aligner_depth, vq.code_dim),
        "gen_head_config": section("gen_head", "vision_head", **head),
        "language_config": {**llama_fields(config.llama), "torch_dtype": dtype_name},
    }


def read_section(top: Fields, name: str, cls: str, defaults: Mapping[str, Any] | None = None) -> Fields:
    """The `params` of a section of config.json. Raises UserError when the section asks for another class than `cls`."""
    section = top.object(name)
    section.only(cls=cls)
    return section.object("params", defaults)


def section(kind: str, cls: str, **params: Any) -> dict[str, Any]:
    """A section of config.json, as `read_section` reads it."""
    return {"model_type": kind, "cls": cls, "params": params}
