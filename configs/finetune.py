"""Fine-tuning of a model on your own answers and images: stage III with a lower learning rate.

    python -m launch.train --config=configs/finetune.py:checkpoint --config.init.checkpoint=Janus-Pro-1B \\
        --workdir=runs/finetune --config.data.sources.understand='("mine/answers-*.array_record",)' \\
        --config.data.sources.text='("mine/text-*.array_record",)' \\
        --config.data.sources.generate='("mine/images-*.array_record",)'

`checkpoint` takes the architecture and the tokenizer of `init.checkpoint`, any folder that the other commands read. The
name of a released model, such as `janus_pro_1b`, requires that `init.checkpoint` has that architecture. Without text or
images, set `--config.data.ratio.text=0.0` or `--config.data.ratio.generate=0.0`.
"""

import importlib

from ml_collections import ConfigDict

from configs import janus_pro_1b
from configs.base import lock
from configs.janus import stage_config
from configs.janusflow import add_flow_fields
from janus_jax.errors import UserError

CHECKPOINT = "checkpoint"
MODELS = (CHECKPOINT, "janus_1p3b", "janus_pro_1b", "janus_pro_7b")


def get_config(model: str = CHECKPOINT) -> ConfigDict:
    name, _, variant = model.partition(":")
    if name not in MODELS:
        raise UserError(f"configs/finetune.py:{model}: expected one of {', '.join(MODELS)}, or one with :debug")
    stage = f"stage3:{variant}" if variant else "stage3"
    if name == CHECKPOINT:
        config = _of_checkpoint(stage, shrunk=bool(variant))
    else:
        config = importlib.import_module(f"configs.{name}").get_config(stage).unlock()
    config.name = f"{name} finetune"
    # No paper says how to fine-tune. We take few rows, the lowest learning rate of the papers' last stages, a warm-up
    # and a cosine.
    config.train.update(learning_rate=2e-5, schedule="cosine", final_fraction=0.1)
    if not variant:
        config.train.update(batch_size=16, warmup_steps=100, num_steps=2_000)
    config.checkpoint.every_steps = 500
    return lock(config)


def _of_checkpoint(stage: str, shrunk: bool) -> ConfigDict:
    """Stage III for whatever model is in `init.checkpoint`, Janus or JanusFlow."""
    config = stage_config(CHECKPOINT, stage, janus_pro_1b.NUMBERS).unlock()
    config.model = CHECKPOINT
    # Everything but an image tokenizer, which JanusFlow does not have. Every rule must match a parameter.
    config.trainable = (("(?!vq/).*", True), (".*", False))
    # Only JanusFlow reads these fields. The released model has no projector, so by default there is no alignment loss.
    normalization = config.loss.normalization
    add_flow_fields(config)
    config.loss.update(normalization=normalization, alignment_weight=0.0)
    if shrunk:
        config.data.row_length = 256  # has room for Janus' own system prompt
    return config
