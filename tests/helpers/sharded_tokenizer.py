"""A program that prints, as JSON, two steps of a tokenizer and its discriminator on one, two and four CPU devices."""

import json
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # compilation takes most of the time

import jax
import numpy as np

from configs.vq16 import vq_config
from janus_jax.batches import ImageBatch
from janus_jax.models import layers
from janus_jax.models.params import flatten, init_params
from janus_jax.models.presets import PRESETS
from janus_jax.training.loss_networks import initial_discriminator
from janus_jax.training.plan import make_plan
from tests.helpers.tiny_runs import MICRO_VQ

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 8, 3), np.uint8)


def two_steps(data, fsdp, statistics="global", micro_batches=1, of_all_images=True):
    """Metrics of two steps, and the parameters and statistics after them.

    Args:
        of_all_images: has the terms that are computed from all images of a micro-batch together.
    """
    config = vq_config("micro_vq")
    config.dtype, config.train.batch_size, config.train.micro_batches = "float32", 8, micro_batches
    config.train.update(learning_rate=1e-3, eps=1e-3)  # so that a gradient that is only rounding makes no step
    config.mesh.update(data=data, fsdp=fsdp)
    config.loss.update(adversarial_weight=0.5, discriminator_start=2, discriminator_layers=1, discriminator_channels=4)
    config.loss.update(adaptive_weight=of_all_images, entropy_weight=0.1 * of_all_images, batch_statistics=statistics)
    plan = make_plan(config, jax.devices()[: data * fsdp])
    discriminator = initial_discriminator(plan.two_networks.adversarial.discriminator, "", 0, plan.mesh)[0]
    params = init_params(MICRO_VQ, 0, plan.shardings.trainable)
    state, step = plan.new_state(params, discriminator), plan.make_step()
    result = {}
    for number, pixels in enumerate(IMAGES):
        state, metrics = jax.block_until_ready(step(state, jax.device_put(ImageBatch(pixels), plan.rows)))
        for name, (total, weight) in metrics.items():
            result[f"{name} of step {number}"] = np.asarray(total / weight, np.float64).tolist()
    trees = {"tokenizer": state.trainable, "discriminator": state.adversary.params}
    for name, tree in trees.items():
        result |= {f"{name}/{path}": np.asarray(leaf).tolist() for path, leaf in flatten(tree).items()}
    for norm, (mean, variance) in state.adversary.statistics.items():
        result |= {f"{norm}/mean": np.asarray(mean).tolist(), f"{norm}/variance": np.asarray(variance).tolist()}
    divided = sum(not leaf.is_fully_replicated for leaf in jax.tree.leaves(state.trainable))
    return {"values": result, "divided": divided}


def main():
    PRESETS["micro_vq"] = MICRO_VQ
    layers.LARGE = 256  # so that the filters of the small model are divided too
    runs = {
        "one": two_steps(1, 1),
        "two": two_steps(2, 1),
        "four": two_steps(2, 2),
        "own_statistics": two_steps(2, 1, statistics="device", of_all_images=False),
        "micro_batches": two_steps(1, 1, micro_batches=2, of_all_images=False),
    }
    print(json.dumps(runs))


if __name__ == "__main__":
    main()
