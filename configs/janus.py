"""The three stages that Janus and Janus-Pro share; `janus_1p3b.py`, `janus_pro_1b.py`, ... fill in the numbers."""

from ml_collections import ConfigDict

from configs.common import base_config, lock
from janus_jax.errors import UserError

STAGES = ("stage1", "stage2", "stage3")

# What each stage trains (Janus, section 3.2 and figure 3). The first matching rule decides. Whether `gen_embed`, the
# code embeddings in front of the generation adaptor, is trained is not stated: we train it in all stages.
TRAINABLE = {
    "stage1": (("(aligner|gen_aligner|gen_head)/.*", True), ("gen_embed", True), (".*", False)),
    "stage2": (("(siglip|vq)/.*", False), (".*", True)),
    "stage3": (("vq/.*", False), (".*", True)),
}


def stage_config(model: str, stage: str, numbers: dict[str, dict]) -> ConfigDict:
    """A locked config: `numbers[stage]` holds `train` fields and `ratio`, understanding : text : generation."""
    if stage not in STAGES:
        raise UserError(f"configs/{model}.py:{stage}: expected one of {', '.join(STAGES)}")
    config = base_config(f"{model} {stage}", model)
    config.trainable = TRAINABLE[stage]
    train = dict(numbers[stage])
    config.data.ratio = dict(zip(("understand", "text", "generate"), map(float, train.pop("ratio")), strict=True))
    config.train.update(train)
    config.data.first_sentence = 0.25 if stage == "stage2" else 0.0  # Janus, section 4.2
    config.data.supervision = "answers" if stage == "stage3" else "all"  # Janus, section 3.2
    return lock(config)
