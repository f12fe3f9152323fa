"""Sampling of images by rectified flow: one compiled program from prompts and noise to latents (JanusFlow, 3.1).

On a mesh (`jax.set_mesh`) images and heads of the caches are divided over its devices.

Letters: B prompts, P prompt length, G images per prompt, N latent tokens per image, D width, H W height and width of
the latents, Z their channels.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from janus_jax.inference.compiled_programs import Program
from janus_jax.inference.padding import PaddedPrompts
from janus_jax.models.janusflow import JanusFlow
from janus_jax.models.llama import KVCache, init_cache
from janus_jax.models.params import Params, bind
from janus_jax.models.sdxl_vae import VAE
from janus_jax.ops.flow import TIME_SCALE, integrate
from janus_jax.ops.sampling import guide
from janus_jax.sharding import spread_cache, spread_rows


class PromptCache(NamedTuple):
    """The prompts, read once. The images after them never change them, since attention is causal."""

    cache: KVCache  # 2B rows of P slots: conditional, then unconditional
    lengths: jax.Array  # [B] number of tokens of each prompt, which is the position of its time token


def read_prompts(model: JanusFlow, params: Params, prompts: PaddedPrompts) -> PromptCache:
    """Runs the LLM over the prompts, and over BOS, which is all that the unconditional half of the guidance sees.

    BOS keeps its position, and so do the tokens after it: renumbering them would change the result.

    Args:
        prompts: without their last token, `<begin_of_image>`, whose place the time token takes.
    """
    apply = bind(model, params)
    batch, length = prompts.tokens.shape
    tokens, modality, positions = (
        jnp.concatenate([x, x[:1]]) for x in (prompts.tokens, prompts.modality, prompts.positions)
    )
    only_bos = prompts.segment_ids[:1] * (prompts.positions[:1] == 0)
    segment_ids = jnp.concatenate([prompts.segment_ids, only_bos])
    cache = spread_cache(init_cache(model.config.llama, model.execution, batch + 1, length))
    _, cache = apply(apply(tokens, modality, method="embed"), positions, segment_ids, cache)
    assert cache is not None
    # From a single unconditional row to one for each prompt.
    halves = jnp.concatenate([jnp.arange(batch), jnp.full(batch, batch)])
    axis = 1 if model.execution.scan_layers else 0
    k, v = jax.tree.map(lambda leaf: jnp.take(leaf, halves, axis), (cache.k, cache.v))
    cache = cache._replace(k=k, v=v, positions=positions[halves], segment_ids=segment_ids[halves])
    return PromptCache(spread_cache(cache), jnp.asarray(prompts.segment_ids).sum(axis=1))


def velocities(
    model: JanusFlow, params: Params, prompts: PromptCache, latents: jax.Array, time: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Conditional and unconditional velocity, each [B G, H, W, Z] float32.

    Args:
        latents: [B G, H, W, Z] at `time`, the images of a prompt together.
        time: scalar in [0, 1000).
    """
    apply = bind(model, params)
    encoded = apply(latents, jnp.full(len(latents), time), method="encode_latents")
    # Both halves have the same latents and time, and differ only in what the LLM sees before them.
    encoded = jax.tree.map(lambda x: jnp.concatenate([x, x]), encoded)
    x = apply(encoded, method="embed_latents")
    rows, length, _ = x.shape
    lengths = jnp.tile(jnp.repeat(prompts.lengths, len(latents) // len(prompts.lengths)), 2)
    positions = lengths[:, None] + jnp.arange(length)
    cache = spread_cache(init_cache(model.config.llama, model.execution, rows, length))
    hidden, _ = apply(spread_rows(x), positions, jnp.ones_like(positions), cache, prompts.cache)
    velocity = apply(hidden[:, 1:], encoded, method="velocity")  # without the time token
    conditional, unconditional = jnp.split(velocity, 2)
    return conditional, unconditional


@Program.of("latents", static_argnames=("model", "solver"))
def sample_latents(
    model: JanusFlow,
    params: Params,
    prompts: PaddedPrompts,
    noise: jax.Array,
    cfg_weight: jax.Array,
    *,
    num_steps: jax.Array,
    solver: str,
) -> jax.Array:
    """Latents [B G, H, W, Z] float32 from noise of the same shape, by guided velocities.

    The keys and values of a prompt are computed once and held once for its G images.

    Args:
        prompts: without their last token, `<begin_of_image>`, whose place the time token takes.
        noise: standard normal, the noise of the images of a prompt together.
        cfg_weight: weight of the guidance; 1 is purely conditional, 0 unconditional.
        num_steps: number of steps of the solver; each costs one pass through the model, two with "heun". Another
            number takes the same program.
        solver: a key of `ops.flow.SOLVERS`.
    """
    prompt_cache = read_prompts(model, params, prompts)

    def velocity(latents: jax.Array, time: jax.Array) -> jax.Array:
        both = velocities(model, params, prompt_cache, spread_rows(latents), TIME_SCALE * time)
        return guide(*both, cfg_weight)

    return integrate(velocity, noise, num_steps, solver)


@Program.of("latent pixels", static_argnames=("model",))
def decode_latents(model: VAE, params: Params, latents: jax.Array) -> jax.Array:
    """Latents [B, H, W, Z] -> pixels [B, image, image, 3], nominally in [-1, 1]."""
    return bind(model, params)(latents, method="decode").astype(jnp.float32)
