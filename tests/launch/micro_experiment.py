"""A config file for `launch.train`, as a user would write one: `--config=tests/launch/micro_experiment.py:FOLDER`.

FOLDER holds the data files. It also makes the micro presets known to the process that reads it.
"""

from pathlib import Path

from tiny_runs import MICRO_JANUS, janus_experiment

from janus_jax.models.config import PRESETS

PRESETS["micro_janus"] = MICRO_JANUS


def get_config(folder):
    return janus_experiment(Path(folder), num_steps=4)
