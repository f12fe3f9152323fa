"""A program that prints, as JSON, training and decoding of an arm with a semantic tokenizer on one CPU device and four.

It trains in float32 and, on one device, in bfloat16.
"""

from tests.helpers.sharded_training import CONFIG, make_batch, two_steps  # isort: skip  # the next one sets the devices
from tests.helpers import sharded_decoding  # isort: skip

import json

import jax
import jax.numpy as jnp
import numpy as np

from examples.digits import data as digits
from janus_jax.inference.janus import JanusPipeline
from janus_jax.models.config import SemanticDecoderConfig
from janus_jax.models.params import flatten, init_params
from janus_jax.models.presets import ablation_arms
from janus_jax.sharding import make_mesh

SEMANTIC = SemanticDecoderConfig(width=16, depth=2, num_heads=4, mlp_dim=24, norm_eps=1e-6)
ONE, FOUR = {"data": 1, "fsdp": 1, "tensor": 1}, {"data": 2, "fsdp": 2, "tensor": 1}
DECODING = {"data": 2, "fsdp": 1, "tensor": 2}


def train():
    config = ablation_arms(CONFIG, SEMANTIC)["b"]
    batch = make_batch()
    batch = batch._replace(und_pixels=batch.gen_pixels[::-1])  # both are read by the image tokenizer
    params, one = init_params(config, seed=0), make_mesh(ONE, jax.devices()[:1])
    alone, gradients, _ = two_steps(params, batch, one, config=config)
    sharded, of_four, number = two_steps(params, batch, make_mesh(FOUR), skip=True, config=config)
    rounded, _, _ = two_steps(params, batch, one, config=config, dtype=jnp.bfloat16)
    return {
        "losses": [[of_step["loss"][0] for of_step in run] for run in (alone, sharded, rounded)],
        "sharded_leaves": number,
        "gradient_scale": max(float(np.abs(gradient).max()) for gradient in gradients.values()),
        "semantic_gradient": max(float(np.abs(x).max()) for path, x in gradients.items() if "semantic" in path),
        "gradient_difference": max(float(np.abs(of_four[path] - x).max()) for path, x in gradients.items()),
    }


def decode():
    config = ablation_arms(sharded_decoding.CONFIG, SEMANTIC)["b"]
    tokenizer = digits.build_tokenizer(digits.text_records(), config.llama.vocab_size, config.prompt_style)
    params, results = init_params(config, seed=1), []
    for mesh in (None, make_mesh(DECODING)):
        model = JanusPipeline(config, params, tokenizer, buckets=sharded_decoding.BUCKETS, mesh=mesh)
        codes = model.generate_codes(sharded_decoding.PROMPTS, 3, temperature=1.0, seed=4)
        shares = {path: sharded_decoding.number_of_parts(leaf) for path, leaf in flatten(model.params).items()}
        results.append({"asked": sharded_decoding.answers(model), "codes": codes.tolist(), "shares": shares})
    return results


if __name__ == "__main__":
    print(json.dumps({"training": train(), "decoding": decode()}))
