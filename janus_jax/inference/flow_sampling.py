"""Drawing by rectified flow: one compiled program from prompts and noise to latents (JanusFlow, section 3.1).

Letters: B images, P prompt length, N latent tokens per image, D width, H W latents, Z their channels.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from janus_jax.inference.prompt import Prompts
from janus_jax.models.janusflow import JanusFlow
from janus_jax.models.llama import KVCache, init_cache
from janus_jax.models.parameters import Params, bind
from janus_jax.models.sdxl_vae import VAE
from janus_jax.ops.flow import TIME_SCALE, integrate
from janus_jax.ops.sampling import guide


class Prefix(NamedTuple):
    """The prompts of 2B rows, seen once: what follows never changes them, since attention is causal."""

    cache: KVCache  # conditional rows, then unconditional ones; with room for the tokens of an image
    lengths: jax.Array  # [2B] tokens in each prompt, which is the position of its time token


def run_prefix(model: JanusFlow, params: Params, prompts: Prompts) -> Prefix:
    """Runs the LLM over both halves of the guidance.

    The unconditional half sees of its prompt only BOS. All positions stay as they are: renumbering changes the result.

    Args:
        prompts: without the last token, whose place the time token takes.
    """
    apply = bind(model, params)
    batch, length = prompts.tokens.shape
    tokens, modality, positions = (
        jnp.concatenate([x, x]) for x in (prompts.tokens, prompts.modality, prompts.positions)
    )
    only_bos = prompts.segment_ids * (prompts.positions == 0)
    segment_ids = jnp.concatenate([prompts.segment_ids, only_bos])
    cache = init_cache(model.config.llama, model.execution, 2 * batch, length + model.config.image_tokens)
    _, cache = apply(apply(tokens, modality, method="embed"), positions, segment_ids, cache)
    assert cache is not None
    return Prefix(cache, jnp.tile(prompts.segment_ids.sum(axis=1), 2))


def velocities(
    model: JanusFlow, params: Params, prefix: Prefix, latents: jax.Array, time: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Conditional and unconditional velocity, each [B, H, W, Z] float32.

    Args:
        latents: [B, H, W, Z] at `time`.
        time: scalar in [0, 1000).
    """
    apply = bind(model, params)
    encoded = apply(latents, jnp.full(len(latents), time), method="encode_latents")
    # Both halves have the same latents and time, and differ only in what the LLM sees before them.
    encoded = jax.tree.map(lambda x: jnp.concatenate([x, x]), encoded)
    x = apply(encoded, method="embed_latents")
    positions = prefix.lengths[:, None] + jnp.arange(x.shape[1])
    hidden, _ = apply(x, positions, jnp.ones_like(positions), prefix.cache)
    velocity = apply(hidden[:, 1:], encoded, method="velocity")  # without the time token
    conditional, unconditional = jnp.split(velocity, 2)
    return conditional, unconditional


@functools.partial(jax.jit, static_argnames=("model", "num_steps", "solver"))
def sample_latents(
    model: JanusFlow,
    params: Params,
    prompts: Prompts,
    noise: jax.Array,
    cfg_weight: jax.Array,
    *,
    num_steps: int,
    solver: str,
) -> jax.Array:
    """Latents [B, H, W, Z] float32 from noise of the same shape, by guided velocities.

    Args:
        prompts: without the last token, whose place the time token takes.
        noise: standard normal.
        cfg_weight: 1 is purely conditional, 0 unconditional.
        num_steps: of the solver; each costs one pass through the model, two with "heun".
        solver: a key of `ops.flow.SOLVERS`.
    """
    prefix = run_prefix(model, params, prompts)

    def velocity(latents: jax.Array, time: jax.Array) -> jax.Array:
        return guide(*velocities(model, params, prefix, latents, TIME_SCALE * time), cfg_weight)

    return integrate(velocity, noise, num_steps, solver)


@functools.partial(jax.jit, static_argnames="model")
def decode_latents(model: VAE, params: Params, latents: jax.Array) -> jax.Array:
    """Latents [B, H, W, Z] -> pixels [B, image, image, 3], nominally in [-1, 1]."""
    return bind(model, params)(latents, method="decode").astype(jnp.float32)
