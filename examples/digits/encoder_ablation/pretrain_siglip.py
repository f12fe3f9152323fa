"""Pretrains a tiny SigLIP on captions of mosaics with the sigmoid loss (SigLIP, arXiv 2303.15343, section 3.2).

It is the teacher of the semantic tokenizer and the understanding encoder of two arms. It sees training images only, and
their captions, never a question. The text tower is the sum of a learned vector per digit and place, since the captions
have no other content.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from janus_jax.models.config import SiglipConfig
from janus_jax.models.params import Params, bind, build, init_params
from janus_jax.ops.pixels import normalize

WIDTH = 64  # of the common space of images and captions
BATCH, LEARNING_RATE = 64, 1e-3


def pretrain_siglip(
    config: SiglipConfig, images: np.ndarray, labels: np.ndarray, steps: int, seed: int
) -> tuple[Params, list[float]]:
    """Parameters of the SigLIP after the last step, and the loss of every step.

    Args:
        images: [n, size, size, 3] uint8.
        labels: [n, places] class at each place of an image.
    """
    rng = np.random.default_rng(seed)
    classes = int(labels.max()) + 1
    params = {
        "siglip": init_params(config, seed),
        "image_head": rng.normal(0, config.width**-0.5, (config.width, WIDTH)).astype(np.float32),
        "words": rng.normal(0, 0.5, (labels.shape[1], classes, WIDTH)).astype(np.float32),
        "scale": np.float32(np.log(10)),  # start of scale and bias: section 3.2 of the paper
        "bias": np.float32(-10),
    }
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, max(steps // 20, 1), steps))
    model = build(config)

    def loss(params: Params, pixels: jax.Array, labels: jax.Array) -> jax.Array:
        features = bind(model, params["siglip"])(normalize(pixels, jnp.float32)).mean(axis=1)  # [B, E]
        places = jnp.arange(labels.shape[1])
        texts = params["words"][places, labels].sum(axis=1)  # [B, WIDTH]
        return sigmoid_loss(features @ params["image_head"], texts, labels, params["scale"], params["bias"])

    @jax.jit
    def step(params: Params, state: optax.OptState, pixels: jax.Array, labels: jax.Array):
        value, gradient = jax.value_and_grad(loss)(params, pixels, labels)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    params = jax.tree.map(jnp.asarray, params)
    state, losses = optimizer.init(params), []
    for _ in range(steps):
        chosen = rng.integers(len(images), size=BATCH)
        params, state, value = step(params, state, images[chosen], labels[chosen])
        losses.append(float(value))
    return params["siglip"], losses


def sigmoid_loss(
    images: jax.Array, texts: jax.Array, labels: jax.Array, scale: jax.Array, bias: jax.Array
) -> jax.Array:
    """Mean over images of the sum over texts of -log sigmoid(z (exp(scale) <image, text> + bias)).

    z is 1 where image and text have the same labels, and -1 elsewhere.

    Args:
        images, texts: [B, WIDTH], normalised here.
        labels: [B, places].
    """
    images, texts = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (images, texts))
    logits = jnp.exp(scale) * images @ texts.T + bias
    same = jnp.all(labels[:, None] == labels, axis=-1)
    return -jnp.mean(jnp.sum(jax.nn.log_sigmoid(jnp.where(same, logits, -logits)), axis=1))
