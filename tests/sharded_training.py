"""Runs as a process of its own: two steps of a tiny Janus on one CPU device and on four; prints both as JSON."""

import functools
import json
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # compiling takes nearly all of the time

import jax
import numpy as np
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from janus_jax.batch import Modality, PackedBatch
from janus_jax.models.config import Execution, JanusConfig, LlamaConfig, SiglipConfig, VQConfig
from janus_jax.models.parameters import flatten, init_params
from janus_jax.sharding import BATCH_SPEC, make_mesh, param_shardings
from janus_jax.training.objectives import make_loss

CONFIG = JanusConfig(
    llama=LlamaConfig(
        vocab_size=32,
        width=16,
        depth=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        mlp_dim=24,
        max_length=64,
        rope_theta=10000.0,
        norm_eps=1e-6,
        init_std=0.2,
    ),
    siglip=SiglipConfig(image_size=8, patch_size=4, width=8, depth=2, num_heads=2, mlp_dim=16, norm_eps=1e-6),
    vq=VQConfig(
        image_size=4,
        base_channels=4,
        channel_multipliers=(1, 2),
        num_res_blocks=1,
        z_channels=4,
        code_dim=2,
        num_codes=16,
        norm_groups=2,
        norm_eps=1e-6,
        commitment=0.25,
    ),
    aligner_depth=2,
    gen_aligner_depth=2,
    image_head_width=16,
    prompt_style="janus_pro",
)


def make_batch(rows=4):
    """Each row: text with an understanding image of four tokens, then a caption with a drawing of four codes."""
    rng = np.random.default_rng(0)
    text, seen, drawn = Modality.TEXT, Modality.UNDERSTANDING_IMAGE, Modality.GENERATION_IMAGE
    modality = np.array([text] + [seen] * 4 + [text] * 3 + [text] * 2 + [drawn] * 4, np.int8)
    segments = np.array([1] * 8 + [2] * 6)
    positions = np.array([*range(8), *range(6)])
    text_weights, image_weights = np.zeros(14, np.float32), np.zeros(14, np.float32)
    text_weights[5:7], image_weights[9:13] = 1, 1

    def repeat(row):
        return np.tile(row, (rows, 1))

    return PackedBatch(
        tokens=rng.integers(0, 32, (rows, 14)) * repeat(modality == text),
        modality=repeat(modality),
        segment_ids=repeat(segments),
        positions=repeat(positions),
        targets=rng.integers(0, 32, (rows, 14)),
        text_weights=repeat(text_weights),
        image_weights=repeat(image_weights),
        und_pixels=rng.integers(0, 256, (rows, 1, 8, 8, 3), np.uint8),
        gen_pixels=rng.integers(0, 256, (rows, 1, 4, 4, 3), np.uint8),
    )


def two_steps(params, batch, shardings=None):
    """Losses of two steps of plain gradient descent, and the gradients of the second."""
    loss = make_loss(CONFIG, Execution(), ConfigDict({"normalization": "tokens", "chunk_size": 16}))

    @functools.partial(jax.jit, out_shardings=(None, shardings, shardings))
    def step(params, batch):
        (value, _), gradients = jax.value_and_grad(loss, has_aux=True)(params, batch)
        return value, gradients, jax.tree.map(lambda leaf, gradient: leaf - 0.1 * gradient, params, gradients)

    losses = []
    params, batch = jax.block_until_ready((params, batch))
    for _ in range(2):
        value, gradients, params = jax.block_until_ready(step(params, batch))
        losses.append(float(value))
    return losses, {path: np.asarray(gradient) for path, gradient in flatten(gradients).items()}


def main():
    mesh = make_mesh({"data": 1, "fsdp": 2, "tensor": 2})
    shardings = param_shardings(CONFIG, mesh)
    batch = make_batch()
    loss_alone, alone = two_steps(init_params(CONFIG, seed=0), batch)
    sharded_params = init_params(CONFIG, seed=0, shardings=shardings)
    sharded_batch = jax.device_put(batch, NamedSharding(mesh, BATCH_SPEC))
    loss_sharded, sharded = two_steps(sharded_params, sharded_batch, shardings)
    result = {
        "devices": len(jax.devices()),
        "sharded_leaves": sum(not leaf.is_fully_replicated for leaf in jax.tree.leaves(sharded_params)),
        "loss_alone": loss_alone,
        "loss_sharded": loss_sharded,
        "gradient_difference": {path: float(np.abs(sharded[path] - value).max()) for path, value in alone.items()},
        "gradient_scale": max(float(np.abs(value).max()) for value in alone.values()),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
