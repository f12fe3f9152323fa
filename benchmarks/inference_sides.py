"""The two sides of the suite `inference`: our pipeline and transformers' model, with the same random weights."""

import contextlib
import dataclasses
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from janus_jax.data.prompts import STYLES
from janus_jax.data.tokenizer import train_tokenizer
from janus_jax.errors import UserError
from janus_jax.inference.janus import JanusPipeline
from janus_jax.inference.loading import load
from janus_jax.models.config import JanusConfig
from janus_jax.models.params import init_params
from janus_jax.models.presets import JANUS_PRO_1B
from janus_jax.weights.reader import model_in_memory

# Number of codes per side of an image on a CPU. Released models have 24; with 12 the suite ends in minutes.
CODES_PER_SIDE = 12


class Sides(NamedTuple):
    """The same model twice, on the same device."""

    pipeline: JanusPipeline
    peer: Any  # transformers' model
    name: str  # size and dtype, for the table
    exact: bool  # whether greedy tokens of both sides must be equal
    bandwidth: float  # bytes per second that a copy in the device's memory reads and writes


def tiny() -> JanusConfig:
    """2 layers of width 256, so small that a step is mostly the cost of dispatching it."""
    config = small(width=256, mlp_dim=688)
    return dataclasses.replace(config, llama=dataclasses.replace(config.llama, depth=2))


def width_512() -> JanusConfig:
    """8 layers of width 512."""
    return small(width=512, mlp_dim=1376)


def width_2048() -> JanusConfig:
    """8 layers of width 2048, a third of the layers of Janus-Pro-1B."""
    return small(width=2048, mlp_dim=5632)


def small(width: int, mlp_dim: int) -> JanusConfig:
    """A model of 8 layers of this width."""
    big, image_size = JANUS_PRO_1B, 16 * CODES_PER_SIDE
    llama = dataclasses.replace(
        big.llama, vocab_size=16384, width=width, depth=8, num_heads=width // 128, num_kv_heads=width // 128
    )
    return dataclasses.replace(
        big,
        llama=dataclasses.replace(llama, mlp_dim=mlp_dim, max_length=2048, init_std=1 / math.sqrt(width)),
        siglip=dataclasses.replace(big.siglip, image_size=image_size, depth=6),
        vq=dataclasses.replace(big.vq, image_size=image_size, base_channels=64),
        image_head_width=width,
    )


def peer_device() -> str:
    """torch's name for the kind of JAX's default device. Raises UserError where the peer cannot run on it."""
    import torch

    backend = jax.default_backend()
    if backend not in ("cpu", "gpu"):
        raise UserError(f"--suite=inference: the peer does not run on a {backend}; JAX_PLATFORMS=cpu measures the CPU")
    if backend == "gpu" and not torch.cuda.is_available():
        raise UserError("--suite=inference: JAX has a GPU but torch has no CUDA; JAX_PLATFORMS=cpu measures the CPU")
    return {"cpu": "cpu", "gpu": "cuda"}[backend]


def random_pipeline(config: JanusConfig, dtype: str, stored: str) -> JanusPipeline:
    """Our side: a model with random weights on JAX's default device.

    Args:
        dtype: precision of the computation.
        stored: dtype that the weights are rounded to before they are loaded.
    """
    style = STYLES[config.prompt_style]
    roles = [style.user, style.assistant]
    tokenizer = train_tokenizer(["a few words"], config.llama.vocab_size, extra_special_tokens=roles)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):  # the largest model in float32 would fill a GPU
        params = jax.tree.map(lambda leaf: leaf.astype(stored), init_params(config, seed=0))
    pipeline = load(model_in_memory(config, params, tokenizer), dtype)
    assert isinstance(pipeline, JanusPipeline)
    return pipeline


@contextlib.contextmanager
def open_sides(
    name: str, config: JanusConfig, dtype: str, bandwidth: float, stored: str | None = None
) -> Iterator[Sides]:
    """Both sides. The peer gets our weights through the Hugging Face folder that we export.

    Args:
        stored: dtype that the weights are rounded to before both sides load them, as the released weights are stored in
            bfloat16. None means the dtype of the computation.
    """
    pipeline = random_pipeline(config, dtype, stored or dtype)
    title = f"{name} {dtype}" + (f", weights stored in {stored}" if stored else "")
    yield Sides(pipeline, their_model(pipeline, dtype), title, dtype == "float32", bandwidth)


def their_model(pipeline: JanusPipeline, dtype: str) -> Any:
    """transformers' model with the weights of a pipeline, on the device of `peer_device`."""
    import torch
    from transformers import JanusForConditionalGeneration

    with tempfile.TemporaryDirectory() as folder:
        pipeline.save_pretrained(Path(folder) / "model", format="hf")
        peer: Any = JanusForConditionalGeneration.from_pretrained(Path(folder) / "model", dtype=getattr(torch, dtype))
    return peer.to(peer_device()).eval()
