"""JanusFlow's quickstart with and without the alignment loss, at equal compute.

Each arm trains on the last stage's data from fresh parameters, at a constant learning rate, so that its average of the
parameters can be judged on the way. The arm without the loss runs neither the projector nor SigLIP on what is drawn: it
gets more steps, as many as the model's operations say (`training.flops`), whatever else the machine is doing.
"""

from collections.abc import Callable
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from janus_jax.inference.janusflow import JanusFlowPipeline
from janus_jax.models.config import JanusFlowConfig
from janus_jax.training.loop import train
from janus_jax.training.plan import make_plan, model_flops
from janus_jax.weights.load import load_params
from janus_jax.weights.native import open_params, read_architecture

ARMS = ("with", "without")


def arm_configs(config: ConfigDict, points: int) -> dict[str, ConfigDict]:
    """One config per arm, each saved at `points` equal distances; at each both have done the same operations."""
    without = config.copy_and_resolve_references()
    without.loss.alignment_weight = 0.0
    arms = dict(zip(ARMS, (config, without), strict=True))
    distance = config.train.num_steps / points * flops_of_step(config)
    for arm in arms.values():
        arm.checkpoint.every_steps = round(distance / flops_of_step(arm))
        arm.checkpoint.keep = points
        arm.train.num_steps = points * arm.checkpoint.every_steps
    return arms


def flops_of_step(config: ConfigDict) -> float:
    flops = model_flops(config, make_plan(config))
    assert flops is not None
    return flops


def train_arms(arms: dict[str, ConfigDict], folder: epath.Path) -> None:
    """Into folder/with and folder/without; what is there already is not done again."""
    for name, config in arms.items():
        train(config, folder / name)


def compare(
    arms: dict[str, ConfigDict],
    folder: epath.Path,
    finished: JanusFlowPipeline,
    accuracy: Callable[[JanusFlowPipeline], float],
) -> list[dict[str, Any]]:
    """For each point: the operations done, and steps and accuracy of each arm's averaged parameters.

    Args:
        finished: the run's own model, for its tokenizer.
        accuracy: of the drawings of a model.
    """
    points: list[dict[str, Any]] = []
    for name, config in arms.items():
        architecture, every = read_architecture(folder / name), config.checkpoint.every_steps
        assert isinstance(architecture, JanusFlowConfig)
        for i, step in enumerate(range(every, config.train.num_steps + 1, every)):
            params = load_params(open_params(folder / name, architecture, ema=True, step=step))
            drawn = accuracy(JanusFlowPipeline(architecture, params, finished.tokenizer))
            if i == len(points):
                points.append({"tflop": step * flops_of_step(config) / 1e12})
            points[i][name] = {"steps": step, "accuracy": drawn}
    return points
