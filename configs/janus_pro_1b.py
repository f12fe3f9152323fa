"""Janus-Pro-1B. Tables and sections are those of Janus-Pro (arXiv 2501.17811); what it leaves open is in `base.py`."""

from ml_collections import ConfigDict

from configs.janus import stage_config

NUMBERS = {
    "stage1": {
        "learning_rate": 1e-3,  # Table 2
        "schedule": "constant",  # Table 2
        "warmup_steps": 600,  # Table 2
        "num_steps": 20_000,  # Table 2
        "batch_size": 256,  # Table 2; rows, not samples: open choice
        "weight_decay": 0.0,  # Table 2
        "ratio": (1, 0, 3),  # Table 2; what it counts: open choice, `data.ratio_unit`
    },
    "stage2": {
        "learning_rate": 1e-4,  # Table 2
        "schedule": "constant",  # Table 2
        "warmup_steps": 5_000,  # Table 2
        "num_steps": 270_000,  # of 360K in Table 2; "stopped early at 270K" (section 3.1)
        "batch_size": 512,  # Table 2; rows, not samples: open choice
        "weight_decay": 0.0,  # Table 2
        "ratio": (2, 3, 5),  # Table 2; what it counts: open choice, `data.ratio_unit`
    },
    "stage3": {
        "learning_rate": 4e-5,  # Table 2
        "schedule": "constant",  # Table 2
        "warmup_steps": 0,  # Table 2
        "num_steps": 80_000,  # Table 2
        "batch_size": 128,  # Table 2; rows, not samples: open choice
        "weight_decay": 0.0,  # Table 2
        "ratio": (5, 1, 4),  # Table 2; what it counts: open choice, `data.ratio_unit`
    },
}


def get_config(stage: str = "stage1") -> ConfigDict:
    return stage_config("janus_pro_1b", stage, NUMBERS)
