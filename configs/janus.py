"""The three stages that Janus and Janus-Pro share. `janus_1p3b.py`, `janus_pro_1b.py` and others give the numbers."""

from ml_collections import ConfigDict

from configs.base import base_config, lock, ratio
from janus_jax.errors import UserError

STAGES = ("stage1", "stage2", "stage3")
# Not a stage of the papers: trains only the LLM, on text, to compare with trainers of text models.
TEXT_ONLY = "text_only"

# Parameters that each stage trains (Janus, section 3.2 and figure 3). The first matching rule decides. The papers do
# not say whether `gen_embed`, the code embeddings in front of the generation adaptor, is trained. We train it in all
# stages.
TRAINABLE = {
    "stage1": (("(aligner|gen_aligner|gen_head)/.*", True), ("gen_embed", True), (".*", False)),
    "stage2": (("(siglip|vq)/.*", False), (".*", True)),
    "stage3": (("vq/.*", False), (".*", True)),
    TEXT_ONLY: (("llm/.*", True), (".*", False)),
}


def stage_config(model: str, stage: str, numbers: dict[str, dict]) -> ConfigDict:
    """A locked config of a stage.

    Args:
        stage: Name of the stage. "STAGE:debug" trains a tiny model in minutes on a laptop; "debug" is "stage1:debug".
        numbers: Per stage, the fields of `train`, and `ratio`: the shares of understanding, text and generation.
    """
    stage, _, variant = ("stage1:debug" if stage == "debug" else stage).partition(":")
    if stage not in TRAINABLE or variant not in ("", "debug"):
        given = f"{stage}:{variant}" if variant else stage
        raise UserError(f"configs/{model}.py:{given}: expected one of {', '.join(TRAINABLE)}, or one with :debug")
    config = base_config(f"{model} {stage}", model)
    config.trainable = TRAINABLE[stage]
    config.init.required = stage in ("stage2", "stage3") and not variant
    train = dict(numbers["stage2"] | {"ratio": (0, 1, 0)} if stage == TEXT_ONLY else numbers[stage])
    config.data.ratio = ratio(*map(float, train.pop("ratio")))
    config.train.update(train)
    config.data.first_sentence = 0.25 if stage == "stage2" else 0.0  # Janus, section 4.2
    config.data.supervision = "answers" if stage == "stage3" else "all"  # Janus, section 3.2
    if stage == TEXT_ONLY:
        config.data.update(und_slots=0, gen_slots=0)
    if variant:
        _shrink(config)
    return lock(config)


def _shrink(config: ConfigDict) -> None:
    """Makes a stage train a tiny model on a CPU in minutes, with a tokenizer of at most 512 tokens."""
    config.name = f"{config.name} debug"
    config.model = "janus_pro_tiny"
    config.dtype, config.remat = "float32", "none"
    config.train.update(batch_size=8, num_steps=100, warmup_steps=min(10, config.train.warmup_steps))
    slots = {"und_slots": min(2, config.data.und_slots), "gen_slots": min(2, config.data.gen_slots)}
    config.data.update(row_length=128, num_shards=1, packing_bins=8, workers=0, **slots)
    config.mesh.update(data=1, fsdp=1, tensor=1)
    config.checkpoint.every_steps = 50
    config.log_every = 10
    config.validate.every_steps = 50
    if config.data.gen_slots:
        config.sample.update(every_steps=50, prompts=("a photo of a cat",))
