"""Weights of networks that measure images, made from the names of their tensors by a recipe.

The golden features in `tests/data_files/evaluation` are those of these weights in the reference implementations
(pytorch-fid 0.3.0, clean-fid 0.1.35, transformers 5.24.0).
"""

import zlib
from pathlib import Path

import numpy as np
import tokenizers
from safetensors.numpy import save_file

from janus_jax.models.metric_config import InceptionConfig
from janus_jax.weights.clip import read_clip_config
from janus_jax.weights.name_map import their_shapes
from tests.helpers.golden_evaluation import GOLDEN

INCEPTION = InceptionConfig(num_classes=1008, norm_eps=1e-3, width_divisor=1)
SMALL_INCEPTION = InceptionConfig(num_classes=1008, norm_eps=1e-3, width_divisor=16)
_INCEPTION_SEED = 918273645
CLIP_SEEDS = {"clip": 640211, "clip_old_eos": 640212}
_LOGIT_SCALES = {"clip": np.log(64), "clip_old_eos": np.log(1 / 0.07)}


def inception_tensors(config=INCEPTION):
    """Name -> tensor, as pytorch-fid's file has them."""
    shapes = {**their_shapes(config, "inception"), "fc.bias": (config.num_classes,)}
    return {name: _inception_tensor(name, shape) for name, shape in shapes.items()}


def write_small_inception(path):
    """A file of a network with a sixteenth of the widths."""
    save_file(inception_tensors(SMALL_INCEPTION), path)
    return path


def clip_folder(name, folder, with_tokenizer=False):
    """A folder of transformers' CLIPModel: the configs of `tests/data_files/evaluation/<name>` and its weights.

    With a tokenizer the word of id 7 is "w7"; start and end have the ids in the config of "clip".
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for file in (GOLDEN / name).glob("*.json"):
        (folder / file.name).write_text(file.read_text())
    shapes = their_shapes(read_clip_config(folder), "clip")
    save_file({key: _clip_tensor(name, key, shape) for key, shape in shapes.items()}, folder / "model.safetensors")
    if with_tokenizer:
        vocabulary = {f"w{id}": id for id in range(120) if id not in (110, 118)}
        vocabulary |= {"<|endoftext|>": 110, "<|startoftext|>": 118}
        backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w0"))
        backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        backend.save(str(folder / "tokenizer.json"))
    return folder


def _inception_tensor(name, shape):
    rng = np.random.default_rng([_INCEPTION_SEED, zlib.crc32(name.encode())])
    if name.endswith(("running_var", "bn.weight")):
        return rng.uniform(0.7, 1.3, shape).astype(np.float32)
    scale = 1.0
    if name.endswith("conv.weight"):
        scale = np.sqrt(2 / np.prod(shape[1:]))
    elif ".bn." in name:
        scale = 0.2
    elif name == "fc.weight":
        scale = 0.05
    return (rng.normal(size=shape) * scale).astype(np.float32)


def _clip_tensor(folder, name, shape):
    if name == "logit_scale":
        return np.array(_LOGIT_SCALES[folder], np.float32)
    rng = np.random.default_rng([CLIP_SEEDS[folder], zlib.crc32(name.encode())])
    values = rng.normal(size=shape) * (0.3 if len(shape) < 2 else 1.5 / np.sqrt(np.prod(shape[1:])))
    return (values + (1 if "norm" in name and name.endswith("weight") else 0)).astype(np.float32)
