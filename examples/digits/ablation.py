"""The ablation of the JanusFlow quickstart: training with and without the alignment loss, at equal compute.

Both arms start from fresh parameters and train on the data of the last stage. The learning rate is constant, so that
the average of the parameters can be judged at any step. A step without the loss is cheaper, because it runs neither the
projector nor SigLIP on the images to generate. That arm therefore takes more steps, in the ratio of the operations that
`training.flops` counts. Compute is counted, not timed, so other work on the machine does not matter.
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
    """One config per arm. Both arms save `points` checkpoints, the n-th of each after the same number of operations."""
    without = config.copy_and_resolve_references()
    without.loss.alignment_weight = 0.0
    arms = dict(zip(ARMS, (config, without), strict=True))
    flops = {name: flops_of_step(arm) for name, arm in arms.items()}
    distance = config.train.num_steps / points * flops["with"]
    for name, arm in arms.items():
        arm.checkpoint.every_steps = round(distance / flops[name])
        arm.checkpoint.keep = points
        arm.train.num_steps = points * arm.checkpoint.every_steps
    return arms


def flops_of_step(config: ConfigDict) -> float:
    """Number of floating-point operations that the model needs for a training step."""
    flops = model_flops(config, make_plan(config))
    assert flops is not None
    return flops


def train_arms(arms: dict[str, ConfigDict], folder: epath.Path) -> None:
    """Trains into folder/with and folder/without. A finished or interrupted arm goes on from its last checkpoint."""
    for name, config in arms.items():
        train(config, folder / name)


def compare(
    arms: dict[str, ConfigDict],
    folder: epath.Path,
    finished: JanusFlowPipeline,
    accuracy: Callable[[JanusFlowPipeline], float],
) -> list[dict[str, Any]]:
    """For each point: the operations so far, and for each arm the steps and the accuracy of its averaged parameters.

    Args:
        finished: the model of the whole run; its tokenizer serves both arms.
        accuracy: returns the share of a model's generated images that are right.
    """
    points: list[dict[str, Any]] = []
    for name, config in arms.items():
        architecture, every = read_architecture(folder / name), config.checkpoint.every_steps
        assert isinstance(architecture, JanusFlowConfig)
        for i, step in enumerate(range(every, config.train.num_steps + 1, every)):
            params = load_params(open_params(folder / name, architecture, ema=True, step=step))
            share = accuracy(JanusFlowPipeline(architecture, params, finished.tokenizer))
            if i == len(points):
                points.append({"tflop": step * flops_of_step(config) / 1e12})
            points[i][name] = {"steps": step, "accuracy": share}
    return points
