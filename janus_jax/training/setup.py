"""Turns the ConfigDict of an experiment into typed objects: architecture, execution, tokenizer and data stream."""

import functools
import math
import operator
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from etils import epath
from ml_collections import ConfigDict

from janus_jax.data.images import CENTRE, Crop
from janus_jax.data.mixture import Mixture, Schedule, WeightedRecords, check_schedule, ever_positive
from janus_jax.data.packed_rows import packed_rows
from janus_jax.data.prompts import STYLES
from janus_jax.data.record_reader import RecordSource, open_records
from janus_jax.data.sample_builder import SampleBuilder, check_supervision
from janus_jax.data.square_images import square_images
from janus_jax.data.stream import Stream, StreamOptions
from janus_jax.data.system_limits import require_open_files
from janus_jax.data.tokenizer import FILE_NAME, Tokenizer
from janus_jax.errors import UserError
from janus_jax.models.config import (
    CodeModelConfig,
    FamilyConfig,
    ImageTokenizerConfig,
    JanusConfig,
    JanusFlowConfig,
    JanusVariantConfig,
    ModelConfig,
    SemanticTokenizerConfig,
)
from janus_jax.models.execution import Execution
from janus_jax.models.scan_layers import REMAT_POLICIES
from janus_jax.ops.attention import BACKENDS
from janus_jax.ops.tpu.flash_attention import flash_fits
from janus_jax.sharding import AUTO
from janus_jax.training.architecture import model_name
from janus_jax.weights.tokenizer_files import check_vocabulary

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# Field -> smallest and largest value. Some models do not have all fields.
RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),
    "train.batch_size": (1, 2**20),
    "train.micro_batches": (1, 2**20),
    "train.num_steps": (1, 2**31 - 1),
    "train.learning_rate": (0, 1e3),
    "train.final_fraction": (0, 1),
    "train.warmup_steps": (0, 2**31 - 1),
    "train.weight_decay": (0, 1e3),
    "train.b1": (0, 0.999999),
    "train.b2": (0, 0.999999),
    "train.eps": (1e-30, 1),
    "train.clip_norm": (1e-9, 1e9),
    "train.ema": (0, 0.999999),
    "lora.dropout": (0, 0.9),
    "loss.chunk_size": (1, 2**30),
    "loss.z_loss": (0, 1e3),
    "loss.pixel_weight": (0, 1e6),
    "loss.perceptual_weight": (0, 1e6),
    "loss.adversarial_weight": (0, 1e6),
    "loss.discriminator_start": (0, 2**31 - 1),
    "loss.discriminator_channels": (1, 4096),
    "loss.discriminator_layers": (1, 10),
    "loss.semantic_weight": (0, 1e6),
    "loss.entropy_weight": (0, 1e6),
    "loss.entropy_temperature": (1e-6, 1e6),
    "loss.min_code_usage": (0, 1),
    "loss.alignment_weight": (0, 1e6),
    "loss.alignment_width": (1, 2**20),
    "loss.time_location": (-100, 100),
    "loss.time_scale": (1e-6, 100),
    "data.image_size": (0, 2**14),
    "data.row_length": (2, 2**20),
    "data.und_slots": (0, 1024),
    "data.gen_slots": (0, 1024),
    "data.num_shards": (1, 2**16),
    "data.packing_bins": (1, 2**16),
    "data.drop_condition": (0, 1),
    "data.drop_condition_codes": (0, 1),
    "data.first_sentence": (0, 1),
    "data.max_drop_rate": (0, 0.99),  # at 1, a source without a good sample would be read for ever
    "data.crop.max_zoom": (1, 16),
    "data.held_out": (0, 2**31 - 1),
    "data.workers": (0, 1024),
    "checkpoint.every_steps": (1, 2**31 - 1),
    "checkpoint.keep": (1, 2**20),
    "log_every": (1, 2**31 - 1),
    "validate.every_steps": (0, 2**31 - 1),
    "validate.num_rows": (1, 2**20),
    "sample.every_steps": (0, 2**31 - 1),
    "sample.num_images": (1, 1024),
    "benchmarks.every_steps": (0, 2**31 - 1),
    "benchmarks.limit": (1, 2**31 - 1),
    "benchmarks.rows": (1, 2**20),
    "profile.first_step": (0, 2**31 - 1),
    "profile.steps": (0, 1000),
}
AUTO_FIELDS = ("data.num_shards", "data.workers")  # they may be "auto" instead of a number
MOST_SHARDS = 128  # logical shards that "auto" makes at most: hosts that the run may move to


def check_config(config: ConfigDict, architecture: ModelConfig) -> None:
    """Raises UserError for a value that cannot work and would otherwise end in a traceback or an endless wait.

    Args:
        architecture: `model_config(config)`.
    """
    for field, (low, high) in RANGES.items():
        *groups, name = field.split(".")
        value = functools.reduce(operator.getitem, groups, config).get(name, low)
        if field in AUTO_FIELDS and (value == AUTO or type(value) is not int):
            if value != AUTO:
                raise UserError(f"config.{field}={value!r}, expected {low:.10g} to {high:.10g}, or {AUTO!r}")
        elif not low <= value <= high:  # also NaN
            raise UserError(f"config.{field}={value}, expected {low:.10g} to {high:.10g}")
    for rule in config.trainable:
        if not (isinstance(rule, Sequence) and [type(part) for part in rule] == [str, bool]):
            raise UserError(f"config.trainable: {rule!r}, expected (regular expression, True or False)")
    for prompt in config.sample.prompts:
        if not isinstance(prompt, str):
            raise UserError(f"config.sample.prompts: {prompt!r}, expected a tuple of captions")
    for pattern in (config.train.decay_pattern, *(pattern for pattern, _ in config.trainable)):
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"config: {pattern!r} is not a regular expression ({error})") from error
    if isinstance(architecture, FamilyConfig) and config.data.row_length > architecture.llama.max_length:
        raise UserError(
            f"config.data.row_length={config.data.row_length}, but the model ({model_name(config)}) has a context of "
            f"{architecture.llama.max_length} tokens"
        )
    if isinstance(architecture, JanusVariantConfig):
        _check_tasks(config, architecture)
    if config.data.condition_images and not isinstance(architecture, JanusConfig):
        raise UserError(
            f"config.data.condition_images=True, but the model ({model_name(config)}) is no Janus or Janus-Pro, which "
            "alone read the codes of images"
        )
    if isinstance(architecture, JanusFlowConfig):
        room = config.data.row_length // architecture.image_tokens
        if config.data.gen_slots > room:
            raise UserError(f"config.data.gen_slots={config.data.gen_slots}, but a row has room for {room} images")


def _check_tasks(config: ConfigDict, architecture: JanusVariantConfig) -> None:
    """Raises UserError where the data have a task that the model does not have."""
    for task, has_task in (("understand", architecture.understands), ("generate", architecture.generates)):
        share = config.data.ratio[task]
        if not has_task and ever_positive(check_schedule(f"data.ratio.{task}", share)):
            raise UserError(
                f"config.data.ratio.{task}={share}, but the model ({model_name(config)}) has {task}s=False: expected 0"
            )


def execution(config: ConfigDict, architecture: ModelConfig, platform: str) -> Execution:
    """How the training step runs the model on devices of a platform: "cpu", "gpu" or "tpu"."""
    if config.dtype not in DTYPES:
        raise UserError(f"config.dtype={config.dtype!r} is not one of {sorted(DTYPES)}")
    remat = "full" if config.remat == AUTO else config.remat
    if remat not in REMAT_POLICIES:
        raise UserError(f"config.remat={config.remat!r} is not {AUTO!r} or one of {sorted(REMAT_POLICIES)}")
    attention = config.attention
    if attention == "auto":
        heads_fit = isinstance(architecture, FamilyConfig) and flash_fits(
            config.data.row_length, architecture.llama.head_dim
        )
        attention = "flash" if platform == "tpu" and heads_fit else "xla"
    if attention not in BACKENDS:
        raise UserError(f"config.attention={config.attention!r} is not 'auto' or one of {sorted(BACKENDS)}")
    return Execution(
        dtype=DTYPES[config.dtype],
        # In unrolled layers XLA:CPU merges what remat recomputes with what it was computed from, so that every policy
        # takes the memory of "none" (jaxlib 0.10.2: 613 instead of 144 MB of temporaries for 8 layers of width 256).
        unroll_scan=platform == "cpu" and remat == "none",
        remat=remat,
        attention=attention,
        fusion_barriers=platform == "tpu",
    )


def num_shards(config: ConfigDict) -> int:
    """Number of logical shards of the stream: `data.num_shards`, by default the most that any slice can share.

    It depends on the rows of a step alone, so that a run has the same rows wherever it goes on.
    """
    given = config.data.num_shards
    return math.gcd(config.train.batch_size, MOST_SHARDS) if given == AUTO else given


def num_workers(config: ConfigDict, process_count: int, platform: str) -> int:
    """Number of processes of a host that decode and pack: `data.workers`, by default from the cores of this host.

    That is half of the cores beside an accelerator, and a quarter where the step itself runs on them, but no more than
    the process has logical shards, which the workers share equally.
    """
    if config.data.workers != AUTO:
        return config.data.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shards = num_shards(config) // process_count
    most = min(shards, cores // (4 if platform == "cpu" else 2))
    return max((count for count in range(1, most + 1) if shards % count == 0), default=0)


def open_tokenizer(config: ConfigDict, architecture: ModelConfig) -> Tokenizer | None:
    """The text tokenizer of a Janus or JanusFlow run; None for a run that trains an image tokenizer.

    It is that of `config.data.tokenizer`, or where the field is empty, that of the model in `config.init.checkpoint`.
    """
    if not isinstance(architecture, FamilyConfig):
        return None
    path = config.data.tokenizer
    if not path and config.init.checkpoint:
        path = str(epath.Path(config.init.checkpoint) / FILE_NAME)
    if not path:
        raise UserError(
            "config.data.tokenizer is empty, expected the path of a tokenizer.json, or a model in "
            "config.init.checkpoint, whose tokenizer is then taken"
        )
    tokenizer = Tokenizer.from_file(path)
    check_vocabulary(f"config.data.tokenizer={path!r}", tokenizer, architecture)
    tokenizer.check_roles(STYLES[architecture.prompt_style])
    return tokenizer


def open_stream(
    config: ConfigDict,
    architecture: ModelConfig,
    tokenizer: Tokenizer | None,
    *,
    validation: bool = False,
    process_index: int = 0,
    process_count: int = 1,
    platform: str = "cpu",
) -> Stream:
    """The endless stream of the rows of one process: training data, or what `data.held_out` keeps apart.

    Args:
        platform: of the devices that read it, see `num_workers`.
    """
    data = config.data
    ratio = {task: check_schedule(f"data.ratio.{task}", share) for task, share in data.ratio.items()}
    if not isinstance(architecture, FamilyConfig):
        ratio = {"generate": 1.0}
    elif not any(ever_positive(share) for share in ratio.values()):
        raise UserError(f"data.ratio={data.ratio.to_dict()}: expected a share above 0")
    entries = {
        task: open_sources(data.sources[task], f"data.sources.{task}", data.held_out, validation)
        for task in ratio
        if ever_positive(ratio[task])
    }
    files = sum(source.num_files for pairs in entries.values() for source, _ in pairs)
    require_open_files(2 * files if data.held_out else files)
    crop = Crop(**data.crop)
    options = StreamOptions(
        batch_size=config.train.batch_size,
        num_shards=num_shards(config),
        seed=config.seed,
        max_drop_rate=data.max_drop_rate,
        settings=_settings(config, tokenizer, entries),
        workers=num_workers(config, process_count, platform),
        shared_memory=data.shared_memory,
        process_index=process_index,
        process_count=process_count,
    )
    if isinstance(architecture, ImageTokenizerConfig):
        size = data.image_size or architecture.image_size
        if isinstance(architecture, SemanticTokenizerConfig) and size != architecture.image_size:
            raise UserError(
                f"data.image_size={size}, but the teacher of {config.model} has features of images of "
                f"{architecture.image_size} pixels: expected that or 0"
            )
        if size % architecture.downsampling:
            raise UserError(f"data.image_size={size} is not a multiple of {architecture.downsampling}")
        return square_images([records for records, _ in entries["generate"]], size, crop, options)
    assert isinstance(architecture, FamilyConfig) and tokenizer is not None
    flow = isinstance(architecture, JanusFlowConfig)
    if flow and data.stored_codes:
        raise UserError("data.stored_codes=True, but JanusFlow learns latents")
    if data.stored_codes and crop != CENTRE:
        raise UserError(f"data.crop={data.crop.to_dict()}: data.stored_codes are of the centre, expected {CENTRE}")
    slots = {"understand": data.und_slots, "text": 1, "generate": data.gen_slots}
    for task in entries:
        if not slots[task]:
            raise UserError(f"data.ratio.{task}={data.ratio[task]}, but its rows have no image slot of this kind")
    builder = SampleBuilder(
        tokenizer=tokenizer,
        style=STYLES[architecture.prompt_style],
        understanding_size=architecture.understanding.image_size,
        understanding_tokens=architecture.understanding.num_tokens,
        generation_size=generation_size(architecture),
        generation_tokens=architecture.image_tokens,
        num_codes=num_codes(architecture),
        row_length=data.row_length,
        understanding_slots=data.und_slots,
        generation_slots=data.gen_slots,
        supervision=check_supervision(data.supervision),
        drop_condition=data.drop_condition,
        first_sentence=data.first_sentence,
        crop=crop,
        condition_images=data.condition_images,
        drop_condition_codes=data.drop_condition_codes,
        stored_codes=data.stored_codes,
        flow=flow,
    )
    mixture = Mixture(
        sources={task: [WeightedRecords(*pair) for pair in pairs] for task, pairs in entries.items()},
        ratio={task: ratio[task] for task in entries},
        ratio_unit=data.ratio_unit,
    )
    return packed_rows(mixture, builder, data.packing_bins, options)


def generation_size(architecture: FamilyConfig) -> int:
    """Side of a generation image in pixels. JanusFlow generates images of the size that it understands."""
    codes = architecture.vq if isinstance(architecture, CodeModelConfig) else None
    return codes.image_size if codes else architecture.understanding.image_size


def num_codes(architecture: FamilyConfig) -> int:
    """Number of codes of the image tokenizer; 0 for a model without one."""
    codes = architecture.vq if isinstance(architecture, CodeModelConfig) else None
    return codes.num_codes if codes else 0


def open_sources(
    entries: Sequence[Any], field: str, held_out: int, validation: bool
) -> list[tuple[RecordSource, Schedule]]:
    """Sources and weights of one task. An entry is (glob, weight), or a glob, whose weight is its number of records.

    Args:
        field: Config field of the entries, for messages.
        held_out: Number of records at the end of each source that are never trained on.
        validation: Whether to open the held-out records instead of the others.
    """
    patterns = [_entry(field, entry) for entry in entries]
    if not patterns:
        raise UserError(f"{field} is empty, expected globs of ArrayRecord shards, since data.ratio has its task")
    if not any(weight is None or ever_positive(weight) for _, weight in patterns):
        raise UserError(f"{field}={tuple(entries)!r}: expected a weight above 0, since data.ratio has its task")
    sources = [open_records(pattern, field, held_out, validation) for pattern, _ in patterns]
    return [
        (source, float(len(source)) if weight is None else weight)
        for source, (_, weight) in zip(sources, patterns, strict=True)
    ]


def _entry(field: str, entry: Any) -> tuple[str, Schedule | None]:
    """Glob and weight or None of an entry.

    Raises UserError for anything else, e.g. for the entries of ("a-*", 2.0), which should be (("a-*", 2.0),).
    """
    if isinstance(entry, str):
        return entry, None
    if isinstance(entry, Sequence) and len(entry) == 2 and isinstance(entry[0], str) and not isinstance(entry[1], str):
        return entry[0], check_schedule(field, entry[1])
    raise UserError(f"{field}: {entry!r}, expected a tuple of globs or of (glob, weight)")


def _settings(
    config: ConfigDict,
    tokenizer: Tokenizer | None,
    entries: Mapping[str, Sequence[tuple[RecordSource, Schedule]]],
) -> dict[str, Any]:
    """Everything that the rows of the stream depend on, by the name of its field."""
    data = config.data.to_dict()
    for field in ("workers", "shared_memory", "max_drop_rate", "sources", "tokenizer"):
        del data[field]
    if not data["crop"].get("halving", False):
        data["crop"].pop("halving", None)  # checkpoints from before this field existed continue
    if not data["condition_images"]:  # so do those from before these fields
        del data["condition_images"], data["drop_condition_codes"]
    settings = {f"data.{name}": value for name, value in data.items()}
    settings["data.num_shards"] = num_shards(config)
    settings |= {"model": config.model, "seed": config.seed, "train.batch_size": config.train.batch_size}
    if tokenizer is not None:
        settings["data.tokenizer"] = tokenizer.fingerprint()
    for task, pairs in entries.items():
        settings[f"data.sources.{task}"] = [[source.fingerprint(), weight] for source, weight in pairs]
    return settings
