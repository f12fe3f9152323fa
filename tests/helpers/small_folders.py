"""A small Janus that transformers wrote, with sizes that differ wherever they can, shared by the tests of folders."""

import dataclasses
from pathlib import Path

import torch
from safetensors import safe_open

from examples.digits import data as digits
from janus_jax.weights.tokenizer_files import write_hf_files

TEXT = {
    "vocab_size": 384,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 1024,
}
VISION = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "image_size": 32,
    "patch_size": 8,
    "mlp_ratio": 1.5,
    "projection_dim": 24,
    "depth": 3,
    "num_image_tokens": 16,
}
VQ = {
    "embed_dim": 4,
    "num_embeddings": 64,
    "latent_channels": 8,
    "base_channels": 32,
    "channel_multiplier": [1, 2],
    "num_res_blocks": 1,
    "projection_dim": 24,
    "num_hidden_layers": 1,
    "image_token_embed_dim": 24,
}


def make_small(text=TEXT, vision=VISION, vq=VQ, seed=3):
    """(torch model, our architecture, our parameters, tokenizer)."""
    from tests.helpers.torch_weights import make_pair

    model, config, params = make_pair(text, vision, vq, seed)
    grid = vision["image_size"] // vision["patch_size"]
    image_size = grid * 2 ** (len(vq["channel_multiplier"]) - 1)
    config = dataclasses.replace(config, vq=dataclasses.replace(config.vq, image_size=image_size))
    tokenizer = digits.build_tokenizer(digits.text_records(), config.llama.vocab_size, config.prompt_style)
    model.config.image_token_id = tokenizer.image_id
    return model, config, params, tokenizer


def save_small(folder, model, config, tokenizer):
    """The folder as a user would get it: weights and config by transformers, the rest beside them."""
    folder.mkdir()
    write_hf_files(folder, config, tokenizer)
    model.save_pretrained(folder)
    return folder


def read_tensors(folder):
    """Name -> (dtype, shape, bytes) of every safetensors file, by the library."""
    tensors = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                tensor = file.get_tensor(name)
                values = tensor.reshape(-1).view(torch.uint8).numpy()
                tensors[name] = (tensor.dtype, tuple(tensor.shape), values.tobytes())
    return tensors
