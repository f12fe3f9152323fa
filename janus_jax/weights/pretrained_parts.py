"""Pretrained parts to start training from, as the papers do (Janus, section 3.2): SigLIP, a Llama, LlamaGen's VQ-16.

siglip    a transformers SiglipVisionModel or SiglipModel folder
llm       a transformers LlamaForCausalLM folder, e.g. DeepSeek-LLM; its vocabulary may be smaller than ours
vq        LlamaGen's `vq_ds16` file or folder, or an image tokenizer trained here
"""

import dataclasses
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from janus_jax.errors import UserError
from janus_jax.models.config import FamilyConfig, JanusConfig, JanusFlowConfig, ModelConfig, VQConfig
from janus_jax.models.params import abstract_params, flatten
from janus_jax.weights.hf_config import FILE_NAME as CONFIG_FILE
from janus_jax.weights.json_fields import read_fields
from janus_jax.weights.llama_config import LLAMA_DEFAULTS, read_llama
from janus_jax.weights.name_map import links, match_names
from janus_jax.weights.native import load_params, read_architecture
from janus_jax.weights.open_model import block_of
from janus_jax.weights.safetensors_io import open_tensors

PARTS = ("siglip", "llm", "vq")
# Of transformers' SiglipVisionConfig.
_TANH_GELU = "gelu_pytorch_tanh"
_SIGLIP_DEFAULTS = {"num_attention_heads": 12, "layer_norm_eps": 1e-6, "hidden_act": _TANH_GELU}
_LLAMA_MATHS = ("num_heads", "num_kv_heads", "head_dim", "rope_theta", "norm_eps")  # what no shape tells


def load_part(part: str, location: epath.PathLike, config: FamilyConfig) -> dict[str, np.ndarray]:
    """The parameters of a part by their path in the whole model, layers stacked, as saved.

    Embeddings and text head of a Llama with a smaller vocabulary have fewer rows (columns) than ours.

    Raises:
        UserError: not such a part, or one of another architecture than `config`'s.
    """
    location = epath.Path(location)
    if part == "vq" and isinstance(config, JanusConfig) and (location / "model.json").exists():
        return _own_tokenizer(location, config)
    _check_config(part, location, config)
    tensors = open_tensors(location)
    found = {name: entry.shape for name, entry in tensors.shapes.items()}
    names = match_names(found, config, part, str(location), any_vocabulary=part == "llm")
    shapes = {path: leaf.shape for path, leaf in flatten(abstract_params(config)).items()}
    values: dict[str, Any] = {}
    for link in links(config, part):
        piece = block_of(tensors.read(names[link.name]), link)
        if link.layer is None:
            values[link.path] = piece
        else:
            stacked = values.setdefault(link.path, np.empty(shapes[link.path], piece.dtype))
            stacked[link.layer] = piece
    rows, limit = values.get("llm/embed_tokens", np.empty((0,))).shape[0], config.llama.vocab_size
    if rows > limit:
        raise UserError(f"{location}: embeds {rows} tokens, more than the {limit} of the config")
    return values


def same_function(saved: ModelConfig, wanted: ModelConfig) -> ModelConfig:
    """`saved` with the fields of `wanted` that change nothing in what given parameters compute.

    These are how they were drawn and trained: the scale of fresh ones, the longest sequence (RoPE knows none), the
    weight of a loss, and the image size of the tokenizer, which is convolutional.
    """
    if isinstance(saved, VQConfig) and isinstance(wanted, VQConfig):
        return dataclasses.replace(saved, commitment=wanted.commitment, image_size=wanted.image_size)
    if isinstance(saved, JanusConfig) and isinstance(wanted, JanusConfig):
        llama, ours = saved.llama, wanted.llama
        llama = dataclasses.replace(llama, init_std=ours.init_std, max_length=ours.max_length)
        vq = dataclasses.replace(saved.vq, commitment=wanted.vq.commitment)  # its image size tells the tokens to draw
        return dataclasses.replace(saved, llama=llama, vq=vq)
    if isinstance(saved, JanusFlowConfig) and isinstance(wanted, JanusFlowConfig):
        llama, ours = saved.llama, wanted.llama
        llama = dataclasses.replace(llama, init_std=ours.init_std, max_length=ours.max_length)
        if not saved.alignment or not wanted.alignment:  # a projector that is new, or no longer used
            return dataclasses.replace(saved, llama=llama, alignment=wanted.alignment)
        alignment = dataclasses.replace(saved.alignment, layer=wanted.alignment.layer)
        return dataclasses.replace(saved, llama=llama, alignment=alignment)
    return saved


def _own_tokenizer(location: epath.Path, config: JanusConfig) -> dict[str, np.ndarray]:
    saved = read_architecture(location)
    if same_function(saved, config.vq) != config.vq:
        raise UserError(f"{location}: holds another architecture than the config's image tokenizer")
    return {f"vq/{path}": np.asarray(leaf) for path, leaf in flatten(load_params(location, saved)).items()}


def _check_config(part: str, location: epath.Path, config: FamilyConfig) -> None:
    """Compares what the shapes of the tensors do not tell. LlamaGen's file has no config."""
    if part == "llm":
        theirs = read_llama(read_fields(location / CONFIG_FILE).filled(LLAMA_DEFAULTS))
        for field in _LLAMA_MATHS:
            saved, wanted = getattr(theirs, field), getattr(config.llama, field)
            if saved != wanted:
                raise UserError(f"{location}: its {field} is {saved}, the config's is {wanted}")
    elif part == "siglip":
        fields = read_fields(location / CONFIG_FILE)
        fields = fields.object("vision_config") if "vision_config" in fields.values else fields
        fields = fields.filled(_SIGLIP_DEFAULTS)
        fields.only(num_attention_heads=config.siglip.num_heads, layer_norm_eps=config.siglip.norm_eps)
        if fields.values["hidden_act"] == _TANH_GELU:
            logging.warning(
                "%s: %shidden_act=%r, but Janus computes the exact GELU: features differ slightly from this SigLIP's, "
                "and equal those of Janus' own code",
                fields.path,
                fields.prefix,
                _TANH_GELU,
            )
        else:
            fields.only(hidden_act="gelu")
