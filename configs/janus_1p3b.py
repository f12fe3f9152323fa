"""Janus-1.3B. Tables are those of Janus (arXiv 2410.13848); what it leaves open is in `base.py`."""

from ml_collections import ConfigDict

from configs.janus import stage_config

NUMBERS = {
    "stage1": {
        "learning_rate": 1e-3,  # Table 1
        "schedule": "cosine",  # Table 1
        "warmup_steps": 300,  # Table 1
        "num_steps": 10_000,  # Table 1
        "batch_size": 256,  # Table 1; rows, not samples: open choice
        "weight_decay": 0.0,  # Table 1
        "ratio": (1, 0, 1),  # Table 1; what it counts: open choice, `data.ratio_unit`
    },
    "stage2": {
        "learning_rate": 1e-4,  # Table 1
        "schedule": "constant",  # Table 1
        "warmup_steps": 5_000,  # Table 1
        "num_steps": 180_000,  # Table 1
        "batch_size": 512,  # Table 1; rows, not samples: open choice
        "weight_decay": 0.0,  # Table 1
        "ratio": (2, 3, 5),  # Table 1; what it counts: open choice, `data.ratio_unit`
    },
    "stage3": {
        "learning_rate": 2e-5,  # Table 1
        "schedule": "constant",  # Table 1
        "warmup_steps": 0,  # Table 1
        "num_steps": 24_000,  # Table 1
        "batch_size": 256,  # Table 1; rows, not samples: open choice
        "weight_decay": 0.1,  # Table 1
        "ratio": (7, 3, 10),  # Table 1; what it counts: open choice, `data.ratio_unit`
    },
}


def get_config(stage: str = "stage1") -> ConfigDict:
    return stage_config("janus_1p3b", stage, NUMBERS)
