"""Janus-1.3B. Numbers: Janus (arXiv 2410.13848), Table 1."""

from ml_collections import ConfigDict

from configs.janus import stage_config

NUMBERS = {
    "stage1": {
        "learning_rate": 1e-3,
        "schedule": "cosine",
        "warmup_steps": 300,
        "num_steps": 10_000,
        "batch_size": 256,
        "ratio": (1, 0, 1),
    },
    "stage2": {
        "learning_rate": 1e-4,
        "schedule": "constant",
        "warmup_steps": 5_000,
        "num_steps": 180_000,
        "batch_size": 512,
        "ratio": (2, 3, 5),
    },
    "stage3": {
        "learning_rate": 2e-5,
        "schedule": "constant",
        "warmup_steps": 0,
        "num_steps": 24_000,
        "batch_size": 256,
        "weight_decay": 0.1,
        "ratio": (7, 3, 10),
    },
}


def get_config(stage: str = "stage1") -> ConfigDict:
    return stage_config("janus_1p3b", stage, NUMBERS)
