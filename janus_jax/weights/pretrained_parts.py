"""Pretrained parts from which training can start, as in the papers (Janus, section 3.2).

siglip    a transformers SiglipVisionModel or SiglipModel folder, or a model of ours that has a SigLIP
llm       a transformers LlamaForCausalLM folder, e.g. DeepSeek-LLM; its vocabulary may be smaller than ours
vq        LlamaGen's `vq_ds16` file or its folder, or an image tokenizer trained here; a model with a semantic decoder
          takes a semantic tokenizer trained here
"""

import dataclasses

from absl import logging
from etils import epath

from janus_jax.errors import UserError
from janus_jax.models.config import (
    CodeModelConfig,
    FamilyConfig,
    JanusConfig,
    JanusFlowConfig,
    JanusVariantConfig,
    LlamaConfig,
    ModelConfig,
    SemanticDecoderConfig,
    SemanticTokenizerConfig,
    SiglipConfig,
    VQConfig,
)
from janus_jax.models.presets import JANUS_PRO_TINY
from janus_jax.weights.foreign import ForeignTensors
from janus_jax.weights.json_fields import CONFIG_FILE, read_fields
from janus_jax.weights.llama_config import LLAMA_DEFAULTS, read_llama
from janus_jax.weights.locations import existing_path
from janus_jax.weights.native import ARCHITECTURE_FILE, open_params, read_architecture
from janus_jax.weights.open_model import open_model
from janus_jax.weights.reader import PrefixedTensors, SelectedTensors, TensorReader, UnprefixedTensors
from janus_jax.weights.tensor_files import open_tensors

PARTS = ("siglip", "llm", "vq")
_TANH_GELU = "gelu_pytorch_tanh"
# Defaults of transformers' SiglipVisionConfig.
_SIGLIP_DEFAULTS = {"num_attention_heads": 12, "layer_norm_eps": 1e-6, "hidden_act": _TANH_GELU}
_LLAMA_MATHS = ("num_heads", "num_kv_heads", "head_dim", "rope_theta", "norm_eps")  # which no shape of a tensor tells


def open_part(part: str, location: epath.PathLike, config: FamilyConfig) -> TensorReader:
    """Opens a part of a model; its parameters have their paths in the whole model.

    Embeddings and text head of a language model with a smaller vocabulary have fewer rows (columns) than ours.

    Args:
        part: one of `PARTS`.
        location: the folder or file of the part.
        config: the architecture of the whole model.

    Raises:
        UserError: there is no such part, or it has another architecture than in `config`.
    """
    location = existing_path(location)
    ours = (location / ARCHITECTURE_FILE).exists()
    if part == "vq" and isinstance(config, CodeModelConfig) and (ours or _semantic(config)):
        return _open_tokenizer(location, config)
    whole = _janus_with_parts(part, config) if isinstance(config, JanusVariantConfig) else config
    if part == "siglip" and ours:
        return PrefixedTensors(open_siglip(location, whole.siglip), "siglip/")
    _check_config(part, location, whole)
    tensors = ForeignTensors(open_tensors(location), whole, part, location, any_vocabulary=part == "llm")
    if part == "llm":
        rows, limit = tensors.parameters["llm/embed_tokens"].shape[0], whole.llama.vocab_size
        if rows > limit:
            raise UserError(f"{location}: embeds {rows} tokens, more than the {limit} of the config")
    return tensors


def _open_tokenizer(location: epath.Path, config: CodeModelConfig) -> TensorReader:
    """An image tokenizer of ours: `vq/`, and `semantic/` where the model has a semantic decoder."""
    if config.vq is None:
        raise UserError("the model has no image tokenizer")
    saved, semantic = read_architecture(location), _semantic(config)
    tensors: TensorReader = open_params(location, saved)
    if isinstance(saved, SemanticTokenizerConfig):
        decoder, saved = saved.decoder, saved.vq
        tensors = SelectedTensors(tensors, ("vq/", "semantic/") if semantic else ("vq/",))
    else:
        decoder, tensors = None, PrefixedTensors(tensors, "vq/")
    if semantic not in (None, decoder):
        raise UserError(f"{location}: its semantic decoder is {decoder}, expected {semantic}")
    if same_function(saved, config.vq) != config.vq:
        raise UserError(f"{location}: holds another architecture than the config's image tokenizer")
    return tensors


def _semantic(config: CodeModelConfig) -> SemanticDecoderConfig | None:
    return config.semantic if isinstance(config, JanusVariantConfig) else None


def _janus_with_parts(part: str, config: JanusVariantConfig) -> JanusConfig:
    """A Janus with the parts of a variant, since the tables of names are those of whole models."""
    siglip = config.encoder if isinstance(config.encoder, SiglipConfig) else None
    if (part == "siglip" and siglip is None) or (part == "vq" and config.vq is None):
        raise UserError("the model has no such part")
    return dataclasses.replace(
        JANUS_PRO_TINY,
        llama=config.llama,
        siglip=siglip or JANUS_PRO_TINY.siglip,
        vq=config.vq or JANUS_PRO_TINY.vq,
    )


def open_siglip(location: epath.PathLike, config: SiglipConfig) -> TensorReader:
    """Opens an understanding encoder on its own: transformers' folder of a SigLIP, or a Janus model of any layout.

    Raises:
        UserError: nothing is there, or it has another architecture than `config`.
    """
    location = existing_path(location)
    if (location / ARCHITECTURE_FILE).exists():
        model = open_model(location)
        if model.config.understanding != config:
            raise UserError(f"{location}: its SigLIP has another architecture than the one that is expected, {config}")
        return UnprefixedTensors(model, "siglip/")
    return UnprefixedTensors(open_part("siglip", location, whole_model(config)), "siglip/")


def open_llamagen_vq(file: epath.PathLike, config: VQConfig) -> TensorReader:
    """Opens LlamaGen's file of an image tokenizer as a model of its own.

    Raises:
        UserError: nothing is there, or its tensors are not those of `config`.
    """
    file = existing_path(file)
    return UnprefixedTensors(ForeignTensors(open_tensors(file), whole_model(config), "vq", file), "vq/")


def whole_model(part: VQConfig | SiglipConfig) -> JanusConfig:
    """A whole model with this part, since the tables of names are those of whole models."""
    if isinstance(part, VQConfig):
        return dataclasses.replace(JANUS_PRO_TINY, vq=part)
    return dataclasses.replace(JANUS_PRO_TINY, siglip=part)


def same_function(saved: ModelConfig, wanted: ModelConfig) -> ModelConfig:
    """`saved`, with the values of `wanted` for all fields on which the output for given parameters does not depend.

    These fields say how parameters were initialised and trained: the scale of fresh ones, the longest sequence (RoPE
    has no such limit), the weight of a loss, and the image size of an image tokenizer, which is convolutional.
    """
    if isinstance(saved, VQConfig) and isinstance(wanted, VQConfig):
        return dataclasses.replace(saved, commitment=wanted.commitment, image_size=wanted.image_size)
    if isinstance(saved, SemanticTokenizerConfig) and isinstance(wanted, SemanticTokenizerConfig):
        vq = dataclasses.replace(saved.vq, commitment=wanted.vq.commitment)
        return dataclasses.replace(saved, vq=vq)
    if isinstance(saved, JanusConfig) and isinstance(wanted, JanusConfig):
        # The image size of this VQ stays: it tells how many tokens the model generates.
        vq = dataclasses.replace(saved.vq, commitment=wanted.vq.commitment)
        return dataclasses.replace(saved, llama=_same_llama(saved.llama, wanted.llama), vq=vq)
    if isinstance(saved, JanusVariantConfig) and isinstance(wanted, JanusVariantConfig):
        same_vq = saved.vq and wanted.vq and dataclasses.replace(saved.vq, commitment=wanted.vq.commitment)
        return dataclasses.replace(saved, llama=_same_llama(saved.llama, wanted.llama), vq=same_vq)
    if isinstance(saved, JanusFlowConfig) and isinstance(wanted, JanusFlowConfig):
        alignment = wanted.alignment
        if saved.alignment and wanted.alignment:  # otherwise its projector is new, or no longer used
            alignment = dataclasses.replace(saved.alignment, layer=wanted.alignment.layer)
        return dataclasses.replace(saved, llama=_same_llama(saved.llama, wanted.llama), alignment=alignment)
    return saved


def _same_llama(saved: LlamaConfig, wanted: LlamaConfig) -> LlamaConfig:
    return dataclasses.replace(saved, init_std=wanted.init_std, max_length=wanted.max_length)


def _check_config(part: str, location: epath.Path, config: JanusConfig | JanusFlowConfig) -> None:
    """Compares the fields of config.json that no shape of a tensor tells. LlamaGen's file has no config."""
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
