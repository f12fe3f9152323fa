"""Fine-tuning of a released model on your own answers and images: stage III with a lower learning rate.

    python -m launch.train --config=configs/finetune.py:janus_pro_1b --config.init.checkpoint=models/janus-pro-1b \\
        --config.data.tokenizer=models/janus-pro-1b/tokenizer.json --workdir=runs/finetune \\
        --config.data.sources.understand='("mine/answers-*.array_record",)' \\
        --config.data.sources.text='("mine/text-*.array_record",)' \\
        --config.data.sources.generate='("mine/images-*.array_record",)'

Without text or images, set `--config.data.ratio.text=0.0` or `--config.data.ratio.generate=0.0`.
"""

import importlib

from ml_collections import ConfigDict

from configs.base import lock
from janus_jax.errors import UserError

MODELS = ("janus_1p3b", "janus_pro_1b", "janus_pro_7b")


def get_config(model: str = "janus_pro_1b") -> ConfigDict:
    name, _, variant = model.partition(":")
    if name not in MODELS:
        raise UserError(f"configs/finetune.py:{model}: expected one of {', '.join(MODELS)}, or one with :debug")
    stage = f"stage3:{variant}" if variant else "stage3"
    config = importlib.import_module(f"configs.{name}").get_config(stage).unlock()
    config.name = f"{name} finetune"
    # No paper says how to fine-tune. We take few rows, the lowest learning rate of the papers' last stages, a warm-up
    # and a cosine.
    config.train.update(learning_rate=2e-5, schedule="cosine", final_fraction=0.1)
    if not variant:
        config.train.update(batch_size=16, warmup_steps=100, num_steps=2_000)
    config.checkpoint.every_steps = 500
    return lock(config)
