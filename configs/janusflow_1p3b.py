"""JanusFlow-1.3B: `stage1`, `stage2`, `stage3`. Numbers: JanusFlow, Table 1. `init.vae` must be the SDXL VAE."""

from typing import Any

from ml_collections import ConfigDict

from configs.base import base_config, lock, ratio
from configs.janusflow import add_flow_fields
from janus_jax.errors import UserError

# Ratios are understanding : text : generation. The table has the text last.
_NUMBERS: dict[str, dict[str, Any]] = {
    "stage1": {
        "learning_rate": 1e-4,
        "warmup_steps": 2000,
        "num_steps": 10_000,
        "batch_size": 512,
        "ratio": (50, 0, 50),
    },
    # A summary of an earlier version of the paper has no warm-up and 380,000 steps. The first 10,000 steps build
    # understanding (section 4.1).
    "stage2": {
        "learning_rate": 1e-4,
        "warmup_steps": 2000,
        "num_steps": 390_000,
        "batch_size": 512,
        "ratio": (
            ((0, 30.0), (10_000, 14.0)),
            ((0, 20.0), (10_000, 6.0)),
            ((0, 50.0), (10_000, 80.0)),
        ),
    },
    "stage3": {
        "learning_rate": 2e-5,
        "warmup_steps": 1000,
        "num_steps": 26_000,
        "batch_size": 256,
        "ratio": (21, 9, 70),
    },
}
# JanusFlow, section 3.3, lists the linear layers and the generation encoder and decoder. We take that to include the
# learned begin-of-image vector, the time embedding and the projector of the alignment loss from the first stage on.
_ADAPTERS = "(aligner|begin_of_understanding|gen_encoder|gen_aligner|gen_decoder_norm|gen_decoder_aligner|gen_decoder"
TRAINABLE = {
    "stage1": ((f"{_ADAPTERS}|alignment_head)(/.*)?", True), (".*", False)),
    "stage2": (("siglip/.*", False), (".*", True)),
    "stage3": ((".*", True),),
}


def get_config(stage: str = "stage1") -> ConfigDict:
    if stage not in _NUMBERS:
        raise UserError(f"configs/janusflow_1p3b.py:{stage}: expected one of {', '.join(_NUMBERS)}")
    config = base_config(f"janusflow_1p3b {stage}", "janusflow_1p3b")
    add_flow_fields(config)
    config.trainable = TRAINABLE[stage]
    config.init.required = stage != "stage1"
    train = dict(_NUMBERS[stage])
    shares = (float(share) if isinstance(share, int) else share for share in train.pop("ratio"))
    config.data.ratio = ratio(*shares)
    # The average is updated in every step. The next stage starts from the parameters, not from the average (paper: not
    # stated).
    config.train.update(train, weight_decay=0.0, schedule="constant", ema=0.99)
    config.data.crop.random = True  # section 4.2
    config.data.first_sentence = 0.25 if stage == "stage2" else 0.0  # appendix B
    config.data.supervision = "answers"  # section 3.4: response text
    return lock(config)
