"""Fine-tuning of a model on your own answers and images: stage III with a lower learning rate.

    python -m launch.train --config=configs/finetune.py:checkpoint --config.init.checkpoint=Janus-Pro-1B \\
        --workdir=runs/finetune --config.data.sources.understand='("mine/answers-*.array_record",)' \\
        --config.data.sources.text='("mine/text-*.array_record",)' \\
        --config.data.sources.generate='("mine/images-*.array_record",)'

`checkpoint` takes the architecture and the tokenizer of `init.checkpoint`, any folder that the other commands read. The
name of a released model, such as `janus_pro_1b`, requires that `init.checkpoint` has that architecture. Without text or
images, set `--config.data.ratio.text=0.0` or `--config.data.ratio.generate=0.0`.

`checkpoint:lora` trains adapters on all three tasks, `checkpoint:lora_understand` on answers about images alone and
`checkpoint:lora_generate` on images alone. `checkpoint:edit` and `checkpoint:lora_edit` learn to generate images from
other images, as Janus-4o does. `:debug` may follow.
"""

import importlib

from ml_collections import ConfigDict

from configs import janus_pro_1b
from configs.base import lock, ratio
from configs.janus import stage_config
from configs.janusflow import add_flow_fields
from janus_jax.errors import UserError

CHECKPOINT = "checkpoint"
MODELS = (CHECKPOINT, "janus_1p3b", "janus_pro_1b", "janus_pro_7b", "janusflow_1p3b")
# Rank and alpha as in recipes of others for models of this size; no paper of the family has any.
LLM_RULE = ("llm/.*_proj/kernel", 16, 32.0)
GENERATION_RULE = ("gen_(head|aligner|encoder|decoder).*/kernel", 16, 32.0)
IMAGES_ALONE = (0.0, 0.0, 1.0)
# Variant -> rules of the adapters, and shares of understanding, text and generation (None: those of stage III, which
# keep what training on images alone loses).
LORA = {
    "lora": ((LLM_RULE, GENERATION_RULE), None),
    "lora_understand": ((LLM_RULE,), (1.0, 0.0, 0.0)),
    "lora_generate": ((LLM_RULE, GENERATION_RULE), IMAGES_ALONE),
    "lora_edit": ((LLM_RULE, GENERATION_RULE), IMAGES_ALONE),
}
EDIT = "edit"
VARIANTS = (*LORA, EDIT)


def get_config(model: str = CHECKPOINT) -> ConfigDict:
    name, *variants = model.split(":")
    variant = variants.pop(0) if variants and variants[0] in VARIANTS else ""
    edits = variant.endswith(EDIT)
    debug = variants == ["debug"]
    impossible = name == "janusflow_1p3b" and (debug or edits)
    if name not in MODELS or variants not in ([], ["debug"]) or impossible:
        raise UserError(
            f"configs/finetune.py:{model}: expected one of {', '.join(MODELS)}, perhaps with :{', :'.join(VARIANTS)} "
            "and then perhaps with :debug; janusflow_1p3b has no edit, lora_edit and debug"
        )
    stage = "stage3:debug" if debug else "stage3"
    if name == CHECKPOINT:
        config = _of_checkpoint(stage, shrunk=debug)
    else:
        config = importlib.import_module(f"configs.{name}").get_config(stage).unlock()
    config.name = f"{name} finetune"
    if name == "janusflow_1p3b":
        config.loss.alignment_weight = 0.0  # the released model has no projector
    # No paper says how to fine-tune. We take few rows, the lowest learning rate of the papers' last stages, a warm-up
    # and a cosine.
    config.train.update(learning_rate=2e-5, schedule="cosine", final_fraction=0.1)
    if not debug:
        config.train.update(batch_size=16, warmup_steps=100, num_steps=2_000)
    config.checkpoint.every_steps = 500
    config.validate.at_start = True  # to see what is lost; it needs held-out records and `validate.every_steps`
    if edits:
        _add_condition_images(config)
    if variant in LORA:
        _add_adapters(config, *LORA[variant])
    return lock(config)


def _add_condition_images(config: ConfigDict) -> None:
    """Learns from pairs of images, with the numbers of Janus-4o's train_janus.py."""
    config.name += " on pairs of images"
    config.data.condition_images = True
    config.data.ratio = ratio(*IMAGES_ALONE)
    config.train.update(learning_rate=5e-6, final_fraction=0.15, weight_decay=0.1)


def _add_adapters(config: ConfigDict, rules: tuple, shares: tuple[float, float, float] | None) -> None:
    """Freezes the model below adapters, which take ten times the learning rate of full fine-tuning."""
    config.name += " with adapters"
    config.trainable = ((".*", False),)
    config.lora.rules = rules
    config.lora.base_dtype = config.dtype
    config.train.update(learning_rate=2e-4, schedule="constant", weight_decay=0.0)
    if shares:
        config.data.ratio = ratio(*shares)


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
