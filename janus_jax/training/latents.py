"""Prepares batches for JanusFlow: encodes images to latents, and samples the noise and times of the loss.

This is a separate program before the training step. So the VAE, which never changes, is no part of the training state,
and the loss is a pure function of parameters and batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from janus_jax.batches import FlowBatch, PackedBatch
from janus_jax.errors import UserError
from janus_jax.models.config import JanusFlowConfig, ModelConfig, VAEConfig
from janus_jax.models.execution import Execution
from janus_jax.models.params import Params, bind, build
from janus_jax.ops.flow import logit_normal_time
from janus_jax.ops.pixels import normalize
from janus_jax.sharding import BATCH_SPEC, param_shardings, to_devices
from janus_jax.weights.vae import VAE_FOLDER, load_vae, require_vae

Preparation = Callable[[Any, int], Any]  # (batch of the stream, step) -> batch of the objective


def open_vae(
    config: ConfigDict, architecture: ModelConfig, workdir: epath.Path | None
) -> tuple[VAEConfig, Params] | None:
    """The VAE of a JanusFlow run: that in its workdir, which an earlier start wrote, otherwise `config.init.vae`.

    None for models without a VAE.

    Args:
        workdir: The folder of a run that continues; None for one that begins.

    Raises:
        UserError: No VAE is given where one is needed, or it does not fit the model.
    """
    if not isinstance(architecture, JanusFlowConfig) or architecture.latents_are_pixels:
        return None
    saved = None if workdir is None else workdir / VAE_FOLDER
    folder = saved if saved is not None and saved.exists() else config.init.vae
    if not folder:
        raise UserError("config.init.vae is empty, expected the folder of the VAE whose latents are learned")
    vae = load_vae(folder, jnp.float32)
    require_vae(architecture, vae[0])
    return vae


def make_preparation(
    config: ConfigDict, architecture: ModelConfig, mesh: Mesh, vae: tuple[VAEConfig, Params] | None
) -> Preparation:
    """The function that is applied to each batch before its step. Models other than JanusFlow need nothing."""
    if not isinstance(architecture, JanusFlowConfig):
        return lambda batch, step: batch
    prepare = _make_flow_preparation(architecture, config, mesh, vae[0] if vae else None)
    params = {} if vae is None else jax.tree.map(to_devices, vae[1], param_shardings(vae[0], mesh))
    return lambda batch, step: prepare(params, batch, np.int32(step))


def _make_flow_preparation(
    architecture: JanusFlowConfig, config: ConfigDict, mesh: Mesh, vae: VAEConfig | None
) -> Callable[[Params, PackedBatch, Any], FlowBatch]:
    """The compiled preparation."""
    shardings = NamedSharding(mesh, BATCH_SPEC)
    replicated = NamedSharding(mesh, PartitionSpec())
    vae_shardings = param_shardings(vae, mesh) if vae else {}
    prepare = flow_preparation(architecture, config, vae)
    return jax.jit(prepare, in_shardings=(vae_shardings, shardings, replicated), out_shardings=shardings)


def flow_preparation(
    architecture: JanusFlowConfig, config: ConfigDict, vae: VAEConfig | None
) -> Callable[[Params, PackedBatch, Any], FlowBatch]:
    """The preparation as a pure function of (parameters of the VAE, rows, step).

    Samples depend on seed, step and place in the batch, not on the number of devices.
    """
    uvit, seed, loss = architecture.uvit, config.seed, config.loss
    encoder = build(vae, Execution(dtype=jnp.float32)) if vae else None  # float16 overflows, bfloat16 loses detail

    def prepare(params: Params, rows: PackedBatch, step: jax.Array) -> FlowBatch:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), step), 3)
        images = rows.gen_pixels.shape[:2]  # [B, G]
        shape = (*images, uvit.latent_size, uvit.latent_size, uvit.latent_channels)
        pixels = normalize(rows.gen_pixels.reshape(-1, *rows.gen_pixels.shape[2:]), jnp.float32)
        latents = pixels
        if encoder is not None:
            posterior = jax.random.normal(keys[2], (len(pixels), *shape[2:]))
            latents = bind(encoder, params)(pixels, posterior, method="encode")
        return FlowBatch(
            rows=rows,
            latents=latents.reshape(shape),
            noise=jax.random.normal(keys[1], shape),
            time=logit_normal_time(keys[0], images, loss.time_location, loss.time_scale),
        )

    return prepare
