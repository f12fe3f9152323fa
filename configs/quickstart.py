"""A tiny Janus-Pro on scikit-learn's handwritten digits: `tokenizer`, then `stage1`, `stage2`, `stage3`.

Data ratios are those of Janus-Pro (Table 2). The trained parameters differ from the paper in one point: no pretrained
SigLIP or LLM exists at this size, so stage I trains everything except the image tokenizer, and stage II keeps training
SigLIP. The stages read codes that the trained tokenizer stored. Learning rates and numbers of steps are chosen for
0.8 M parameters and minutes on a CPU.
"""

from ml_collections import ConfigDict

from configs.base import base_config, lock, ratio
from configs.vq16 import vq_config
from janus_jax.errors import UserError

PHASES = ("tokenizer", "stage1", "stage2", "stage3")
RATIOS = {"stage1": (1, 0, 3), "stage2": (2, 3, 5), "stage3": (5, 1, 4)}
STEPS = {"tokenizer": 400, "stage1": 30, "stage2": 60, "stage3": 1000}
LEARNING_RATE = 2e-3


def get_config(phase: str = "stage1") -> ConfigDict:
    if phase not in PHASES:
        raise UserError(f"configs/quickstart.py:{phase}: expected one of {', '.join(PHASES)}")
    if phase == "tokenizer":
        config = vq_config("vq_digits")
        config.train.batch_size, config.train.schedule = 32, "cosine"
    else:
        config = base_config(phase, "janus_pro_digits")
        config.trainable = (("vq/.*", False), (".*", True))
        config.data.ratio = ratio(*map(float, RATIOS[phase]))
        # The same shapes, learning rate and average in all stages: they share their compiled program.
        config.data.und_slots, config.data.gen_slots = 3, 3
        config.train.schedule, config.train.ema = "constant", 0.99
        config.data.stored_codes = True
        config.data.supervision = "answers"
        config.loss.normalization = "tasks"  # an answer has two tokens, an image sixteen
        config.loss.chunk_size = 128  # a step has 960 tokens, most of which have no loss on either head
        config.loss.skip_unsupervised = True
        config.train.batch_size = 10
    config.name = phase
    config.dtype = "float32"
    config.remat = "none"
    config.train.update(
        num_steps=STEPS[phase],
        learning_rate=LEARNING_RATE,
        warmup_steps=20,
        final_fraction=0.05,
    )
    config.data.update(row_length=96, num_shards=1, packing_bins=16, workers=0)
    config.mesh.fsdp = 1
    config.checkpoint.every_steps = STEPS[phase]
    config.log_every = STEPS[phase] // 20
    if phase not in ("stage1", "stage2"):  # these are short: compiling the validation would take longer
        config.validate.every_steps = STEPS[phase] // 4
    if phase == "tokenizer":  # compiling the generation beside stage III would take a tenth of its time
        config.sample.every_steps = STEPS[phase] // 2
    return lock(config)
