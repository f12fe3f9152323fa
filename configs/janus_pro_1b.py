"""Janus-Pro-1B. Numbers: Janus-Pro (arXiv 2501.17811), Table 2."""

from ml_collections import ConfigDict

from configs.janus import stage_config

NUMBERS = {
    "stage1": {
        "learning_rate": 1e-3,
        "warmup_steps": 600,
        "num_steps": 20_000,
        "batch_size": 256,
        "ratio": (1, 0, 3),
    },
    "stage2": {
        "learning_rate": 1e-4,
        "warmup_steps": 5_000,
        "num_steps": 270_000,  # of 360K in the table; "stopped early at 270K" (section 3.1)
        "batch_size": 512,
        "ratio": (2, 3, 5),
    },
    "stage3": {
        "learning_rate": 4e-5,
        "warmup_steps": 0,
        "num_steps": 80_000,
        "batch_size": 128,
        "ratio": (5, 1, 4),
    },
}


def get_config(stage: str = "stage1") -> ConfigDict:
    return stage_config("janus_pro_1b", stage, NUMBERS)
