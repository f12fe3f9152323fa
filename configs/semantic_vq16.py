"""The semantic tokenizer of Janus (arXiv 2410.13848, appendix A), from which the paper's ablation reads and generates.

Stages: `imagenet` trains it from scratch for 40 epochs. `pretrain` is one epoch of 50 M images: the stage in which the
paper trains it on the images of its own pretraining. The paper states no resolution: it is that of the teacher.
"""

from ml_collections import ConfigDict

from configs.base import lock
from configs.vq16 import vq_config
from janus_jax.errors import UserError

STEPS = {"imagenet": 400_360, "pretrain": 390_625}  # pretrain: 50 M images in batches of 128 (derived)


def get_config(stage: str = "imagenet") -> ConfigDict:
    if stage not in STEPS:
        raise UserError(f"configs/semantic_vq16.py:{stage}: expected one of {', '.join(STEPS)}")
    config = vq_config("semantic_vq16")
    config.name = f"semantic_vq16_{stage}"
    config.data.crop.update(random=True, max_zoom=1.25, flip=True)
    config.train.num_steps = STEPS[stage]
    config.loss.update(perceptual_weight=1.0, adversarial_weight=0.5)
    add_semantic_fields(config)
    return lock(config)


def add_semantic_fields(config: ConfigDict) -> None:
    """Adds what a semantic tokenizer needs besides to an unlocked config of `vq_config`."""
    config.loss.semantic_weight = 0.25  # of 1 - cosine similarity to the teacher's features
    config.loss.teacher = ""  # folder of a SigLIP (the paper: SigLIP-L/16-384) or of a Janus model that has one
