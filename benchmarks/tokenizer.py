"""The suite `tokenizer`: speed of the step of an image tokenizer and its discriminator, relative to PyTorch on a CPU.

Both sides start from the same random weights and take whole steps (pixel, perceptual, adversarial, codebook and
commitment term, two clippings, two Adam optimizers) in float32 on the same images. Their first losses and gradient
norms must agree. They are timed in turns. Needs the extra [test].
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks.result import Result
from benchmarks.training import Step, interleaved, torch_threads
from configs.vq16 import vq_config
from janus_jax.batches import ImageBatch
from janus_jax.models.config import LPIPSConfig, VQConfig
from janus_jax.models.params import Params, flatten, init_params
from janus_jax.models.presets import LOSS_NETWORKS, LPIPS, LPIPS_VGG, PRESETS, VQ_16, VQ_TINY
from janus_jax.training.loss_networks import initial_discriminator
from janus_jax.training.plan import Discriminator, Plan, make_plan
from janus_jax.weights import lpips
from janus_jax.weights.discriminator import to_llamagen
from janus_jax.weights.name_map import links
from janus_jax.weights.pretrained_parts import whole_model
from launch.cli.host_memory import keep_freed_memory

BATCHES = 4
# Relative. Rounding turns a ReLU of LPIPS now and then, and with it a thousandth of the gradient. Losses after the
# first step part where it does so or where a code of the other side wins: the second one in two of eight draws.
COMPARED, LOSS_TOLERANCE, GRADIENT_TOLERANCE = 2, 1e-5, 1e-3


def run() -> Iterator[Result]:
    """The results of all cases."""
    keep_freed_memory()  # as launch.train does
    tiny = dataclasses.replace(VQ_TINY, base_channels=32, channel_multipliers=(1, 1, 2, 2), norm_groups=32)
    yield from compare("tiny", tiny, LPIPSConfig(widths=(8, 16, 32, 64, 64)), channels=8, images=16, bar=1.0)
    wide = dataclasses.replace(VQ_16, image_size=64, base_channels=64, num_codes=1024)
    yield from compare("width 64, VGG-16", wide, LPIPS_VGG, channels=64, images=4)


def compare(
    case: str, vq: VQConfig, vgg: LPIPSConfig, channels: int, images: int, bar: float | None = None
) -> list[Result]:
    """How well the first steps agree, and the ratio of the times of a step.

    Args:
        channels: of the discriminator.
        images: of a batch.
    """
    with mock.patch.dict(PRESETS, {"benchmark_vq": vq}), mock.patch.dict(LOSS_NETWORKS, {LPIPS: vgg}):
        config = _config(vq, channels, images)
        ours, theirs = _sides(config)
        values = np.array([[list(map(float, step())) for _ in range(COMPARED)] for step in (ours, theirs)])
        errors = np.abs(values[0] / values[1] - 1)  # [step, loss and norms]
        our_seconds, their_seconds = interleaved(case, ours, theirs)
    return [
        Result(
            f"{case}: largest relative difference of {COMPARED} losses",
            float(errors[:, 0].max()),
            "",
            ("<=", LOSS_TOLERANCE),
        ),
        Result(
            f"{case}: larger relative difference of the two networks' first gradient norms",
            float(errors[0, 1:].max()),
            "",
            ("<=", GRADIENT_TOLERANCE),
        ),
        Result(
            f"{case}: steps of both networks per second",
            their_seconds / our_seconds,
            "x",
            (">=", bar) if bar else None,
            f"{1e3 * our_seconds:.1f} ms",
            f"{1e3 * their_seconds:.1f} ms, {torch_threads()} threads",
        ),
    ]


def _config(vq: VQConfig, channels: int, images: int) -> ConfigDict:
    config = vq_config("benchmark_vq")
    config.dtype, config.train.batch_size = "float32", images
    config.loss.update(perceptual_weight=1.0, adversarial_weight=0.5, discriminator_start=0)
    config.loss.update(discriminator_channels=channels, discriminator_layers=3 if vq.image_size >= 64 else 2)
    return config


def _sides(config: ConfigDict) -> tuple[Step, Step]:
    """Our training step and the peer's. Both return the loss and the gradient norms of both networks."""
    plan = make_plan(config, jax.devices()[:1])
    assert plan.two_networks is not None and isinstance(plan.architecture, VQConfig)
    size, rng = plan.architecture.image_size, np.random.default_rng(0)
    batches = [rng.integers(0, 256, (config.train.batch_size, size, size, 3), np.uint8) for _ in range(BATCHES)]
    params, networks = init_params(plan.architecture, 0), {LPIPS: init_params(LOSS_NETWORKS[LPIPS], 1)}
    discriminator = initial_discriminator(plan.two_networks.adversarial.discriminator, "", 0, plan.mesh)[0]
    theirs = _their_steps(config, plan, params, networks[LPIPS], discriminator, batches)
    state = plan.new_state(params, discriminator)
    state = jax.device_put(state._replace(loss_networks=networks), plan.shardings)
    compiled = plan.make_step()
    turns = itertools.cycle(jax.device_put([ImageBatch(pixels) for pixels in batches], plan.rows))

    def ours() -> list[jax.Array]:
        nonlocal state
        state, metrics = compiled(state, next(turns))
        totals = (metrics[name] for name in ("loss", "grad_norm", "grad_norm/discriminator"))
        return [total / weight for total, weight in totals]

    return ours, theirs


def _their_steps(
    config: ConfigDict,
    plan: Plan,
    params: Params,
    vgg: Params,
    discriminator: Discriminator,
    batches: Sequence[np.ndarray],
) -> Step:
    from benchmarks import tokenizer_peer  # imports torch

    assert plan.two_networks is not None and isinstance(plan.architecture, VQConfig)
    sizes = plan.two_networks.adversarial.discriminator
    peer = tokenizer_peer.Peer(
        _their_vq(plan.architecture, params),
        tokenizer_peer.Discriminator(sizes, to_llamagen(*discriminator, sizes)),
        tokenizer_peer.LPIPS(LOSS_NETWORKS[LPIPS], _named_lpips(vgg)),
        tokenizer_peer.Weights(1.0, config.loss.adversarial_weight, plan.architecture.commitment),
        config.train,
    )
    turns = itertools.cycle(tokenizer_peer.to_torch(batches))
    return lambda: peer.step(next(turns))


def _their_vq(config: VQConfig, params: Params) -> Any:
    """transformers' image tokenizer with our weights."""
    import torch
    from transformers import JanusVQVAE
    from transformers.models.janus.configuration_janus import JanusVQVAEConfig

    model = JanusVQVAE(
        JanusVQVAEConfig(
            embed_dim=config.code_dim,
            num_embeddings=config.num_codes,
            latent_channels=config.z_channels,
            base_channels=config.base_channels,
            channel_multiplier=list(config.channel_multipliers),
            num_res_blocks=config.num_res_blocks,
            num_patches=config.grid,
        )
    )
    flat = flatten(params)
    tensors = {
        link.name.removeprefix("model.vqmodel."): link.transform.to_theirs(np.asarray(flat[path]))
        for link in links(whole_model(config), "hf")
        if (path := link.path.removeprefix("vq/")) != link.path
    }
    model.load_state_dict({name: torch.tensor(np.ascontiguousarray(value)) for name, value in tensors.items()})
    return model.train()


def _named_lpips(params: Params) -> dict[str, np.ndarray]:
    """By the names and in the axes of torchvision and LPIPS."""
    named = {}
    for path, values in flatten(params).items():
        array = np.asarray(values)
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
        named[lpips.their_name(path)] = array.reshape(1, -1, 1, 1) if path.startswith("head_") else array
    return named
