"""Runs as a process of its own: a tiny Janus answers and generates on one CPU device and on meshes of four, as JSON."""

import dataclasses
import json
import os
import sys
from unittest import mock

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # compiling takes nearly all of the time

import jax
import numpy as np
import PIL.Image

from examples.digits import data as digits
from janus_jax.inference import janus, janusflow
from janus_jax.inference.decode_image import decode_pixels
from janus_jax.inference.flow_sampling import decode_latents, sample_latents
from janus_jax.inference.janus import JanusPipeline
from janus_jax.inference.janusflow import JanusFlowPipeline
from janus_jax.inference.padding import Buckets
from janus_jax.models.params import flatten, init_params
from janus_jax.models.scan_layers import unstack_layers
from janus_jax.sharding import MESH_AXES, make_mesh, param_shardings
from tests.helpers import small_flow
from tests.helpers.quantized import quantize_params
from tests.helpers.small_models import DECODED, SMALL_FLOW, random_params

# Every head has keys and values of its own, so that heads can be divided into four; the image tokenizer halves once.
CONFIG = dataclasses.replace(
    DECODED,
    llama=dataclasses.replace(DECODED.llama, num_kv_heads=4, init_std=0.3),
    siglip=dataclasses.replace(DECODED.siglip, depth=1, num_heads=4),
    vq=dataclasses.replace(DECODED.vq, channel_multipliers=(1, 1), norm_groups=8),
)
FLOW = dataclasses.replace(
    SMALL_FLOW,
    llama=CONFIG.llama,
    siglip=CONFIG.siglip,
    uvit=dataclasses.replace(SMALL_FLOW.uvit, latent_size=8, latent_channels=4, width=16, time_width=32),
    prompt_style="janus_pro_tiny",
)
VAE = dataclasses.replace(small_flow.VAE, latent_channels=4)
BUCKETS = Buckets(prompt=32, answer=16)
PICTURE = PIL.Image.new("RGB", (25, 20), (250, 10, 10))
PROMPTS = ["one", "a larger two"]


def run(model, short):
    """Rows and images that four devices cannot share equally, and a conversation of one row."""
    asked = answers(model)
    codes = model.generate_codes(PROMPTS, 3, temperature=1.0, seed=4)
    with mock.patch.object(janus, "decode_pixels", counting := Counting(decode_pixels)):
        pixels = [list(image.tobytes()) for image in model.decode_codes(codes[:5])]
    result = {
        "asked": asked,
        "codes": codes.tolist(),
        "pixels": pixels,
        "pixel_parts": counting.parts,
        "shares": {path: number_of_parts(leaf) for path, leaf in flatten(model.params).items()},
    }
    if short:
        return result
    windowed = model.generate_codes(PROMPTS, 3, temperature=1.0, seed=4, window=4)
    result["windowed"] = windowed.tolist()
    conversation = model.conversation()
    turns = [conversation.ask(text, max_new_tokens=4).token_ids for text in ("Is one odd?", "Why?")]
    return result | {"turns": turns, "cache": number_of_parts(conversation.cache.k[0])}


def answers(model):
    """Sampled ones."""
    options = {"max_new_tokens": 5, "temperature": 1.0, "seed": 4}
    return model.chat([[PICTURE], [], []], ["Which digit?", "Is one odd?", "And two?"], **options)


def run_stacked(config, tokenizer, mesh, params, short):
    """As a training loop decodes: with its own parameters, layers stacked, in their own places on the mesh."""
    placed = jax.device_put(params, param_shardings(config, mesh))
    model = JanusPipeline(config, placed, tokenizer, buckets=BUCKETS, mesh=mesh, scan_layers=True)
    given = zip(jax.tree.leaves(model.params), jax.tree.leaves(placed), strict=True)
    result = {
        "codes": model.generate_codes(PROMPTS, 3, temperature=1.0, seed=4).tolist(),
        "copied": sum(ours is not theirs for ours, theirs in given),
    }
    return result if short else result | {"asked": answers(model)}


def run_flow(model, short):
    """Images that four devices cannot share equally, generated for the prompts together and for each alone, decoded."""
    options = {"cfg_weight": 2.0, "num_steps": 2, "seed": 4}
    with mock.patch.object(janusflow, "sample_latents", counting := Counting(sample_latents)):
        result = {"latents": model.generate_latents(PROMPTS, 3, **options).tolist()}
        if not short:
            alone = [model.generate_latents([PROMPTS[i]], 3, prompt_numbers=[i], **options) for i in range(2)]
            result["alone"] = np.concatenate(alone).tolist()
    with mock.patch.object(janusflow, "decode_latents", decoding := Counting(decode_latents)):
        latents = np.random.default_rng(3).standard_normal((5, *model.latent_shape)).astype(np.float32)
        result["flow_pixels"] = [list(image.tobytes()) for image in model.decode_latents(latents)]
    return result | {"latent_parts": counting.parts, "flow_pixel_parts": decoding.parts}


class Counting:
    """A function, and in how many parts its results were."""

    def __init__(self, function):
        self._function, self.parts = function, []

    def __call__(self, *args, **options):
        result = self._function(*args, **options)
        self.parts.append(number_of_parts(result))
        return result


def number_of_parts(leaf):
    return len(set(map(str, leaf.sharding.devices_indices_map(leaf.shape).values())))


def main(precision, *meshes):
    short = precision == "short"
    tokenizer = digits.build_tokenizer(digits.text_records(), CONFIG.llama.vocab_size, CONFIG.prompt_style)
    llama = dataclasses.replace(CONFIG.llama, depth=1 if short else 2)
    config, flow_config = (dataclasses.replace(each, llama=llama) for each in (CONFIG, FLOW))
    params, flow_params = init_params(config, seed=1), init_params(flow_config, seed=2)
    unrolled = quantize_params(unstack_layers(params)) if precision == "int8" else params
    results = {}
    for sizes in meshes:
        shape = dict(zip(MESH_AXES, map(int, sizes.split(",")), strict=True))
        mesh = None if sizes == "1,1,1" else make_mesh(shape)
        options = {"buckets": BUCKETS, "mesh": mesh}
        results[sizes] = run(JanusPipeline(config, unrolled, tokenizer, **options), short)
        vae = VAE, random_params(VAE)
        results[sizes] |= run_flow(JanusFlowPipeline(flow_config, flow_params, tokenizer, vae=vae, **options), short)
        if mesh is not None and precision != "int8":
            results[sizes]["stacked"] = run_stacked(config, tokenizer, mesh, params, short)
    print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
