"""CLIP, read from a folder of transformers: config.json, tensors, tokenizer.json and preprocessor_config.json."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers
from etils import epath

from janus_jax.data.images import Normalization
from janus_jax.data.tokenizer import FILE_NAME
from janus_jax.errors import UserError
from janus_jax.models.layers import ACTIVATIONS
from janus_jax.models.metric_config import ClipConfig, ClipTowerConfig
from janus_jax.models.params import Params
from janus_jax.weights import preprocessor
from janus_jax.weights.foreign import ForeignTensors
from janus_jax.weights.json_fields import CONFIG_FILE, Fields, checked_sizes, read_fields, read_optional_fields
from janus_jax.weights.load import load_params
from janus_jax.weights.tensor_files import open_tensors

_START, _END = "<|startoftext|>", "<|endoftext|>"
# Configs of OpenAI's own checkpoints say so, which is no token of theirs. It means that the largest id ends a text.
_UNKNOWN_END = 2
# Defaults of transformers' CLIPVisionConfig and CLIPTextConfig, which are the sizes of ViT-B/32.
_TOWER_DEFAULTS = {"num_hidden_layers": 12, "layer_norm_eps": 1e-5, "hidden_act": "quick_gelu"}
_VISION_DEFAULTS = {
    **_TOWER_DEFAULTS,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
}
_TEXT_DEFAULTS = {
    **_TOWER_DEFAULTS,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
}
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class ClipTokenizer:
    """Texts as the text tower reads them: start, tokens, end, then padding with the end."""

    backend: tokenizers.Tokenizer
    start_id: int
    end_id: int
    max_length: int

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, int]:
        """Ids [B, max_length] int32, and the number of texts that were too long and lost their last tokens."""
        limit = self.max_length - 2
        encoded = [self.backend.encode(text, add_special_tokens=False).ids for text in texts]
        ids = np.full((len(texts), self.max_length), self.end_id, np.int32)
        for row, tokens in zip(ids, encoded, strict=True):
            row[0] = self.start_id
            row[1 : 1 + min(len(tokens), limit)] = tokens[:limit]
        return ids, sum(len(tokens) > limit for tokens in encoded)


def load_clip(folder: epath.PathLike) -> tuple[ClipConfig, Params]:
    """The architecture and the float32 parameters of a CLIPModel folder.

    Raises:
        UserError: there is none, it is damaged, or its tensors are not those of its config.
    """
    folder = epath.Path(folder)
    if not (folder / CONFIG_FILE).exists():
        raise UserError(f"{folder}: not a CLIP folder of transformers (no {CONFIG_FILE})")
    config = read_clip_config(folder)
    with open_tensors(folder) as files:
        return config, load_params(ForeignTensors(files, config, "clip", folder), "float32")


def read_clip_config(folder: epath.PathLike) -> ClipConfig:
    """The architecture of a CLIPModel folder. Raises UserError for a missing config.json or another kind of model."""
    fields = read_fields(epath.Path(folder) / CONFIG_FILE)
    if fields.values.get("model_type") != "clip":
        raise fields.wrong("model_type", '"clip"')
    vision = fields.object("vision_config", _VISION_DEFAULTS)
    text = fields.object("text_config", _TEXT_DEFAULTS)
    vision.only(num_channels=3)
    end_id = text.integer("eos_token_id", least=0)
    with checked_sizes(fields.path):
        return ClipConfig(
            vision=_tower(vision),
            text=_tower(text),
            image_size=vision.integer("image_size"),
            patch_size=vision.integer("patch_size"),
            vocab_size=text.integer("vocab_size"),
            max_length=text.integer("max_position_embeddings", least=2),
            end_id=None if end_id == _UNKNOWN_END else end_id,
            embed_dim=fields.filled({"projection_dim": 512}).integer("projection_dim"),
        )


def read_clip_tokenizer(folder: epath.PathLike, config: ClipConfig) -> ClipTokenizer:
    """The tokenizer of a CLIP folder.

    Raises:
        UserError: tokenizer.json is missing or damaged, lacks CLIP's start or end, or has more tokens than the model.
    """
    path = epath.Path(folder) / FILE_NAME
    try:
        backend = tokenizers.Tokenizer.from_str(path.read_text())
    except Exception as error:  # the Rust library raises bare Exception
        raise UserError(f"{path}: not a readable tokenizer.json ({error})") from error
    backend.no_truncation()
    backend.no_padding()
    start, end = backend.token_to_id(_START), backend.token_to_id(_END)
    if start is None or end is None:
        raise UserError(f"{path}: the vocabulary lacks {_START if start is None else _END}, which CLIP needs")
    if config.end_id not in (None, end):
        raise UserError(f"{path}: {_END} has the id {end}, but the model ends a text with {config.end_id}")
    largest = max(backend.get_vocab().values())
    if largest >= config.vocab_size:
        raise UserError(f"{path}: has the id {largest}, but the model embeds only {config.vocab_size} tokens")
    return ClipTokenizer(backend, start, end, config.max_length)


def read_clip_preprocessor(folder: epath.PathLike, config: ClipConfig) -> Normalization:
    """How a CLIP folder normalises pixels. Its rule of resizing must be CLIP's; a missing file means all of CLIP's.

    Raises:
        UserError: another rule of resizing or another size than the model's.
    """
    fields = read_optional_fields(epath.Path(folder) / preprocessor.FILE_NAME)
    size = config.image_size
    steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
    fields.only(**dict.fromkeys(steps, True), resample=preprocessor.BICUBIC)
    for field, names in (("size", ("shortest_edge",)), ("crop_size", ("height", "width"))):
        if isinstance(fields.values.get(field), dict):
            fields.object(field).only(**dict.fromkeys(names, size))
        else:
            fields.only(**{field: size})
    fields = fields.filled({"image_mean": list(_MEAN), "image_std": list(_STD)})
    return Normalization(preprocessor.channels(fields, "image_mean"), preprocessor.channels(fields, "image_std"))


def _tower(fields: Fields) -> ClipTowerConfig:
    names: dict[str, Any] = {
        "width": "hidden_size",
        "depth": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "mlp_dim": "intermediate_size",
    }
    return ClipTowerConfig(
        **fields.integers(names),
        norm_eps=fields.number("layer_norm_eps"),
        activation=fields.choice("hidden_act", ACTIVATIONS),
    )
