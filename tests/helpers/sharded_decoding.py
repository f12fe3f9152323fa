"""Runs as a process of its own: a tiny Janus answers and draws on one CPU device and on meshes of four, as JSON."""

import json
import os
import sys
from unittest import mock

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # compiling takes nearly all of the time

import numpy as np
import PIL.Image

from examples.digits import data as digits
from janus_jax.inference import janusflow, pipeline
from janus_jax.inference.decoding import decode_pixels
from janus_jax.inference.flow_sampling import sample_latents
from janus_jax.inference.janusflow import JanusFlowPipeline
from janus_jax.inference.pipeline import JanusPipeline
from janus_jax.models.config import JanusConfig, JanusFlowConfig, LlamaConfig, SiglipConfig, UViTConfig, VQConfig
from janus_jax.models.params import flatten, init_params
from janus_jax.models.scan_layers import unstack_layers
from janus_jax.sharding import MESH_AXES, make_mesh
from janus_jax.weights.quantization import quantize_params

CONFIG = JanusConfig(
    llama=LlamaConfig(
        vocab_size=384,
        width=32,
        depth=2,
        num_heads=4,
        num_kv_heads=4,
        head_dim=8,
        mlp_dim=48,
        max_length=128,
        rope_theta=10000.0,
        norm_eps=1e-6,
        init_std=0.3,
    ),
    siglip=SiglipConfig(image_size=16, patch_size=8, width=16, depth=1, num_heads=4, mlp_dim=32, norm_eps=1e-6),
    vq=VQConfig(
        image_size=16,
        base_channels=32,
        channel_multipliers=(1, 1),
        num_res_blocks=1,
        z_channels=8,
        num_codes=64,
        code_dim=4,
        norm_groups=8,
        norm_eps=1e-6,
        commitment=0.25,
    ),
    aligner_depth=2,
    gen_aligner_depth=2,
    image_head_width=32,
    prompt_style="janus_pro_tiny",
)
FLOW = JanusFlowConfig(
    llama=CONFIG.llama,
    siglip=CONFIG.siglip,
    uvit=UViTConfig(
        latent_size=8,
        latent_channels=4,
        patch_size=2,
        width=16,
        time_width=32,
        encoder_depth=1,
        decoder_depth=1,
        norm_eps=1e-6,
    ),
    prompt_style="janus_pro_tiny",
)
PICTURE = PIL.Image.new("RGB", (25, 20), (250, 10, 10))
PROMPTS = ["one", "a larger two"]


def run(model, short):
    """Rows and images that four devices cannot share equally, and a conversation of one row."""
    asked = model.chat([[PICTURE], [], []], ["Which digit?", "Is one odd?", "And two?"], max_new_tokens=5)
    codes = model.generate_codes(PROMPTS, 3, temperature=1.0, seed=4)
    with mock.patch.object(pipeline, "decode_pixels", counting := Counting(decode_pixels)):
        pixels = [list(image.tobytes()) for image in model.draw(codes[:5])]
    result = {
        "asked": asked,
        "codes": codes.tolist(),
        "pixels": pixels,
        "pixel_parts": counting.parts,
        "shares": {path: number_of_parts(leaf) for path, leaf in flatten(model.params).items()},
        "images_drawn": images_drawn(model),
    }
    if short:
        return result
    conversation = model.conversation()
    turns = [conversation.ask(text, max_new_tokens=4).token_ids for text in ("Is one odd?", "Why?")]
    return result | {"turns": turns, "cache": number_of_parts(conversation._cache.k[0])}


def run_flow(model):
    """Images that four devices cannot share equally, drawn for the prompts together and for each apart."""
    options = {"cfg_weight": 2.0, "num_steps": 2, "seed": 4}
    with mock.patch.object(janusflow, "sample_latents", counting := Counting(sample_latents)):
        latents = model.generate_latents(PROMPTS, 3, **options)
        apart = [model.generate_latents(PROMPTS[i : i + 1], 3, **options).tolist() for i in range(2)]
    return {"latents": latents.tolist(), "apart": [*apart[0], *apart[1]], "latent_parts": counting.parts}


class Counting:
    """A function, and in how many parts its results were."""

    def __init__(self, function):
        self._function, self.parts = function, []

    def __call__(self, *args, **options):
        result = self._function(*args, **options)
        self.parts.append(number_of_parts(result))
        return result


def images_drawn(model):
    """For 2 prompts of 1, 2 and 3 images, 5 of 1 and 1 of 3."""
    drawn = []

    def decode(*args, sampling, on_codes):
        keys = args[5]
        drawn.append(keys.size)
        return np.zeros((*keys.shape, 64), np.int32)

    with mock.patch.object(pipeline, "decode_image_codes", decode):
        for prompts, images in ((2, 1), (2, 2), (2, 3), (5, 1), (1, 3)):
            assert len(model.generate_codes(["one"] * prompts, images)) == prompts * images
    return drawn


def number_of_parts(leaf):
    return len(set(map(str, leaf.sharding.devices_indices_map(leaf.shape).values())))


def main(precision, *meshes):
    tokenizer = digits.build_tokenizer(digits.text_records(), CONFIG.llama.vocab_size, CONFIG.prompt_style)
    params = init_params(CONFIG, seed=1)
    if precision == "int8":
        params = quantize_params(unstack_layers(params))
    flow_params = init_params(FLOW, seed=2)
    results = {}
    for sizes in meshes:
        shape = dict(zip(MESH_AXES, map(int, sizes.split(",")), strict=True))
        mesh = None if sizes == "1,1,1" else make_mesh(shape)
        results[sizes] = run(JanusPipeline(CONFIG, params, tokenizer, mesh=mesh), precision == "short")
        results[sizes] |= run_flow(JanusFlowPipeline(FLOW, flow_params, tokenizer, mesh=mesh))
    print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
