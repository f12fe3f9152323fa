"""A program that prints, as JSON, two steps of a tiny Janus on one CPU device and on eight."""

import functools
import json
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # compilation takes most of the time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from janus_jax.batches import Modality, PackedBatch
from janus_jax.models.config import JanusConfig, LlamaConfig, SiglipConfig, VQConfig
from janus_jax.models.execution import Execution
from janus_jax.models.params import flatten, init_params
from janus_jax.sharding import BATCH_SPEC, GatheredWeights, make_mesh, param_shardings
from janus_jax.training.fsdp import sharded_gradient
from janus_jax.training.objectives.factory import make_objective
from janus_jax.training.train_state import TrainState

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


def make_batch(rows=8):
    """Rows that hold text with an understanding image of four tokens, then a caption with an image of four codes."""
    rng = np.random.default_rng(0)
    text, understood, generated = Modality.TEXT, Modality.UNDERSTANDING_IMAGE, Modality.GENERATION_IMAGE
    modality = np.array([text] + [understood] * 4 + [text] * 3 + [text] * 2 + [generated] * 4, np.int8)
    segments = np.array([1] * 8 + [2] * 6)
    positions = np.array([*range(8), *range(6)])
    text_weights, image_weights = np.zeros(14, np.float32), np.zeros(14, np.float32)
    text_weights[5:7], image_weights[9:13] = 1, 1

    def repeat(row):
        return np.tile(row, (rows, 1))

    # Rows, and so devices, differ in how many of their tokens carry loss: nearly none in the first, all in the last.
    supervised = rng.random((rows, 14)) < np.linspace(0.0, 1.0, rows)[:, None]

    return PackedBatch(
        tokens=rng.integers(0, 32, (rows, 14)) * repeat(modality == text),
        modality=repeat(modality),
        segment_ids=repeat(segments),
        positions=repeat(positions),
        targets=rng.integers(0, 32, (rows, 14)),
        text_weights=repeat(text_weights) * supervised,
        image_weights=repeat(image_weights) * supervised,
        und_pixels=rng.integers(0, 256, (rows, 1, 8, 8, 3), np.uint8),
        gen_pixels=rng.integers(0, 256, (rows, 1, 4, 4, 3), np.uint8),
    )


def two_steps(params, batch, mesh, micro_batches=1, skip=False, config=CONFIG, dtype=jnp.float32):
    """Losses of two steps of plain gradient descent, and the gradients of the second."""
    shardings = param_shardings(config, mesh)
    specs = {path: sharding.spec for path, sharding in flatten(shardings).items()}
    weights = GatheredWeights(dtype, specs) if mesh.shape["fsdp"] > 1 else None
    objective = make_objective(
        config,
        Execution(dtype=dtype, remat="full", weights=weights),
        ConfigDict({"normalization": "tokens", "chunk_size": 4, "z_loss": 0.01, "skip_unsupervised": skip}),
    )
    state = TrainState(None, shardings, {}, None)
    gradient = sharded_gradient(objective, state, mesh, weights, micro_batches)

    @functools.partial(jax.jit, out_shardings=(None, shardings, shardings))
    def step(params, batch):
        gradients, metrics = gradient(params, {}, batch)
        return metrics, gradients, jax.tree.map(lambda leaf, gradient: leaf - 0.1 * gradient, params, gradients)

    losses = []
    params = jax.device_put(params, shardings)
    params, batch = jax.block_until_ready((params, jax.device_put(batch, NamedSharding(mesh, BATCH_SPEC))))
    for _ in range(2):
        metrics, gradients, params = jax.block_until_ready(step(params, batch))
        losses.append({name: [float(part) for part in pair] for name, pair in metrics.items()})
    sharded = sum(not leaf.is_fully_replicated for leaf in jax.tree.leaves(params))
    return losses, {path: np.asarray(gradient) for path, gradient in flatten(gradients).items()}, sharded


def main():
    params, batch = init_params(CONFIG, seed=0), make_batch()
    losses, alone, _ = two_steps(params, batch, make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1]))
    result = {"alone": losses, "gradient_scale": max(float(np.abs(value).max()) for value in alone.values())}
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    # Devices skip different numbers of chunks.
    losses, gradients, sharded = two_steps(params, batch, mesh, micro_batches=2, skip=True)
    result |= {
        "devices": mesh.devices.size,
        "sharded_leaves": sharded,
        "sharded": losses,
        "gradient_difference": {path: float(np.abs(gradients[path] - x).max()) for path, x in alone.items()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
