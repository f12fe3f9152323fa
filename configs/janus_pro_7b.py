"""Janus-Pro-7B. The table is that of Janus-Pro (arXiv 2501.17811), where stages 1 and 2 are those of the 1B."""

from ml_collections import ConfigDict

from configs.janus import stage_config
from configs.janus_pro_1b import NUMBERS as NUMBERS_1B

# Janus-Pro, Table 2; all other values are those of the 1B.
NUMBERS = NUMBERS_1B | {"stage3": NUMBERS_1B["stage3"] | {"num_steps": 40_000}}


def get_config(stage: str = "stage1") -> ConfigDict:
    return stage_config("janus_pro_7b", stage, NUMBERS)
