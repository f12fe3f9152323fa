"""From an experiment's ConfigDict to typed objects, once, at the edge."""

import math
import operator

import jax.numpy as jnp
from ml_collections import ConfigDict

from janus_jax.data.pipeline import Stream, packed_rows, square_images, task_sources
from janus_jax.data.prompts import STYLES
from janus_jax.data.samples import DropCounter, SampleBuilder, check_supervision
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.errors import UserError
from janus_jax.models.config import PRESETS, Execution, JanusConfig, ModelConfig
from janus_jax.models.stack import REMAT_POLICIES

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
COUNTS = (
    "train.batch_size",
    "train.num_steps",
    "data.row_length",
    "data.num_shards",
    "data.packing_bins",
    "checkpoint.every_steps",
    "checkpoint.keep",
    "log_every",
)


def check_numbers(config: ConfigDict) -> None:
    """Raises UserError for a number that cannot work, before it ends in a division by zero or an endless wait."""
    for field in COUNTS:
        value = operator.attrgetter(field)(config)
        if value < 1:
            raise UserError(f"config.{field}={value}, expected at least 1")
    ratio = config.data.ratio.to_dict()
    if not all(0 <= share < math.inf for share in ratio.values()) or not any(ratio.values()):
        raise UserError(f"config.data.ratio={ratio}: expected shares of 0 or more, at least one of them above 0")
    for field in ("data.drop_condition", "data.max_drop_rate"):
        value = operator.attrgetter(field)(config)
        if not 0 <= value <= 1:
            raise UserError(f"config.{field}={value}, expected a probability")


def model_config(config: ConfigDict) -> ModelConfig:
    """The architecture that `config.model` names."""
    if config.model not in PRESETS:
        raise UserError(f"config.model={config.model!r} is not one of {sorted(PRESETS)}")
    return PRESETS[config.model]


def execution(config: ConfigDict) -> Execution:
    """How the training step runs the model."""
    if config.dtype not in DTYPES:
        raise UserError(f"config.dtype={config.dtype!r} is not one of {sorted(DTYPES)}")
    if config.remat not in REMAT_POLICIES:
        raise UserError(f"config.remat={config.remat!r} is not one of {sorted(REMAT_POLICIES)}")
    return Execution(dtype=DTYPES[config.dtype], remat=config.remat)


def open_tokenizer(config: ConfigDict, architecture: ModelConfig) -> Tokenizer | None:
    """The text tokenizer of a Janus run; None for image tokenizers."""
    if not isinstance(architecture, JanusConfig):
        return None
    if not config.data.tokenizer:
        raise UserError("config.data.tokenizer is empty, expected the path of a tokenizer.json")
    tokenizer = Tokenizer.from_file(config.data.tokenizer)
    if tokenizer.vocab_size > architecture.llama.vocab_size:
        raise UserError(
            f"config.data.tokenizer={config.data.tokenizer!r}: {tokenizer.vocab_size} tokens, "
            f"but {config.model} embeds only {architecture.llama.vocab_size}"
        )
    return tokenizer


def open_stream(config: ConfigDict, architecture: ModelConfig, tokenizer: Tokenizer | None) -> Stream:
    """The endless training stream."""
    data, seed = config.data, config.seed
    drops = DropCounter(data.max_drop_rate)
    if not isinstance(architecture, JanusConfig):
        source = task_sources(data.sources, {"generate": 1})["generate"]
        return square_images(
            source,
            size=architecture.image_size,
            batch_size=config.train.batch_size,
            num_shards=data.num_shards,
            seed=seed,
            drops=drops,
        )
    assert tokenizer is not None
    builder = SampleBuilder(
        tokenizer=tokenizer,
        style=STYLES[architecture.prompt_style],
        understanding_size=architecture.siglip.image_size,
        understanding_tokens=architecture.siglip.num_tokens,
        generation_size=architecture.vq.image_size,
        generation_tokens=architecture.image_tokens,
        row_length=data.row_length,
        understanding_slots=data.und_slots,
        generation_slots=data.gen_slots,
        supervision=check_supervision(data.supervision),
        drop_condition=data.drop_condition,
        drops=drops,
    )
    return packed_rows(
        task_sources(data.sources, data.ratio),
        data.ratio,
        builder,
        batch_size=config.train.batch_size,
        num_shards=data.num_shards,
        packing_bins=data.packing_bins,
        seed=seed,
    )
