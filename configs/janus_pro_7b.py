"""Janus-Pro-7B. Numbers: Janus-Pro (arXiv 2501.17811), Table 2; as the 1B but for the length of stage 3."""

from ml_collections import ConfigDict

from configs.janus import stage_config
from configs.janus_pro_1b import NUMBERS as NUMBERS_1B

NUMBERS = NUMBERS_1B | {"stage3": NUMBERS_1B["stage3"] | {"num_steps": 40_000}}


def get_config(stage: str = "stage1") -> ConfigDict:
    return stage_config("janus_pro_7b", stage, NUMBERS)
