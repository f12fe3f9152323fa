"""A tiny JanusFlow on scikit-learn's handwritten digits: `stage1`, `stage2`, `stage3`; `ablation` for comparisons.

Latents are the pixels themselves, of images of 16 x 16, since a VAE would save nothing at this size. Data ratios are
those of the paper (Table 1; for stage II those after its beginning). The trained parameters are not: no pretrained
SigLIP or LLM exists at this size, so every stage trains everything. Learning rates and numbers of steps are chosen for
1.1 M parameters and minutes on a CPU: stage I, half of whose samples are questions, is where reading is learned.
`ablation` is stage 3 from fresh parameters.
"""

from ml_collections import ConfigDict

from configs.base import base_config, lock, ratio
from configs.janusflow import add_flow_fields
from janus_jax.errors import UserError

PHASES = ("stage1", "stage2", "stage3")
ABLATION = "ablation"
RATIOS = {"stage1": (50, 0, 50), "stage2": (14, 6, 80), "stage3": (21, 9, 70)}  # understanding, text, generation
RATIOS[ABLATION] = RATIOS["stage3"]
STEPS = {"stage1": 600, "stage2": 60, "stage3": 1000, ABLATION: 900}
LEARNING_RATE = {ABLATION: 1e-3}  # where it is not 2e-3


def get_config(phase: str = "stage1") -> ConfigDict:
    if phase not in STEPS:
        raise UserError(f"configs/quickstart_flow.py:{phase}: expected one of {', '.join(STEPS)}")
    config = base_config(phase, "janusflow_digits")
    add_flow_fields(config)
    # Neighbouring pixels are alike, so they can be recognised through more noise than the latents of a VAE. So more of
    # the sampled times are noisy ones.
    config.loss.update(alignment_layer=2, alignment_width=96, time_location=-1.0)
    config.loss.update(chunk_size=128, skip_unsupervised=True)  # most of the 960 tokens of a step have no text loss
    config.data.ratio = ratio(*map(float, RATIOS[phase]))
    config.dtype, config.remat = "float32", "none"
    config.train.update(
        batch_size=10,
        num_steps=STEPS[phase],
        # Constant in stages I and II, which share their compiled program. With a constant one in stage III the model
        # unlearned to read a little.
        learning_rate=LEARNING_RATE.get(phase, 2e-3),
        schedule="cosine" if phase == "stage3" else "constant",
        warmup_steps=20,
        final_fraction=0.05,
        ema=0.99,
    )
    config.data.update(
        row_length=96,
        und_slots=3,
        gen_slots=3,
        supervision="answers",
        num_shards=1,
        packing_bins=16,
        workers=0,
    )
    config.mesh.fsdp = 1
    config.checkpoint.every_steps = STEPS[phase]
    config.log_every = STEPS[phase] // 20
    if phase != "stage2":  # it is short: compiling the validation would take longer
        config.validate.every_steps = STEPS[phase] // 4
    return lock(config)
