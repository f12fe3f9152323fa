"""A config file for `launch.train`, as a user would write one: `--config=tests/helpers/micro_experiment.py:FOLDER`.

FOLDER holds the data files; `vq=FOLDER` trains the image tokenizer, `adversarial=FOLDER` also its
discriminator, `flow=FOLDER` a JanusFlow.
It also makes the micro presets known to the process that reads it.
"""

import dataclasses
from pathlib import Path

from janus_jax.models.presets import PRESETS
from tests.helpers.tiny_runs import (
    MICRO_FLOW,
    MICRO_JANUS,
    MICRO_VQ,
    adversarial_experiment,
    flow_experiment,
    janus_experiment,
    vq_experiment,
)

PRESETS["micro_janus"] = MICRO_JANUS
PRESETS["micro_vq"] = MICRO_VQ
PRESETS["micro_flow"] = dataclasses.replace(MICRO_FLOW, alignment=None)


def get_config(folder):
    if folder.startswith("vq="):
        return vq_experiment(Path(folder.removeprefix("vq=")))
    if folder.startswith("adversarial="):
        return adversarial_experiment(Path(folder.removeprefix("adversarial=")))
    if folder.startswith("flow="):
        return flow_experiment(Path(folder.removeprefix("flow=")))
    return janus_experiment(Path(folder), num_steps=4)
