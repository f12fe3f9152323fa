"""Chooses the training objective of a model."""

from collections.abc import Sequence

from ml_collections import ConfigDict

from janus_jax.data.records import TASKS
from janus_jax.models.config import CodeModelConfig, ImageTokenizerConfig, JanusFlowConfig, ModelConfig
from janus_jax.models.execution import Execution
from janus_jax.training.objectives.base import Objective
from janus_jax.training.objectives.janus import janus_objective
from janus_jax.training.objectives.janusflow import janusflow_objective
from janus_jax.training.objectives.vq import vq_objective


def make_objective(
    architecture: ModelConfig,
    execution: Execution,
    loss: ConfigDict,
    tasks: Sequence[str] = TASKS,
    axes: tuple[str, ...] = (),
) -> Objective:
    """The objective of an architecture.

    Args:
        loss: `config.loss`.
        tasks: tasks of the run. Parts of the model that only other tasks need are not computed.
        axes: mesh axes over which the rows are divided, where the objective runs inside `jax.shard_map`.
    """
    if isinstance(architecture, CodeModelConfig):
        return janus_objective(architecture, execution, loss, tasks)
    if isinstance(architecture, JanusFlowConfig):
        return janusflow_objective(architecture, execution, loss, tasks)
    assert isinstance(architecture, ImageTokenizerConfig)
    return vq_objective(architecture, execution, loss, axes)
