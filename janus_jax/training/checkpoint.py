"""Checkpoints of a training run: Orbax, atomic, written in the background; parameters, moments, step and data state.

`params` is an item of its own with the whole tree, so that inference reads a training workdir as it is.
"""

import json
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from janus_jax.checkpoints import chunked, read_architecture
from janus_jax.errors import UserError
from janus_jax.models.config import ModelConfig
from janus_jax.training.stages import merge, split
from janus_jax.training.state import TrainState


class Checkpoints:
    """The checkpoints of one workdir."""

    def __init__(self, workdir: epath.Path, config: ModelConfig, keep: int):
        """Raises UserError when the workdir belongs to another architecture."""
        self._workdir = workdir
        if (workdir / "model.json").exists():
            saved = read_architecture(workdir)
            if saved != config:
                raise UserError(
                    f"{workdir}: holds another architecture than the config's: {differences(saved, config)}"
                )
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(workdir / "checkpoints", options=options)

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, state: TrainState, data_state: dict[str, Any]) -> None:
        """Starts an asynchronous save of this step; does nothing when the step is already saved."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        params = merge(state.trainable, state.frozen)
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(params, save_args=chunked(params)),
            opt_state=ocp.args.StandardSave(state.opt_state),
            data=ocp.args.JsonSave(_of_all_processes(data_state)),
        )
        self._manager.save(step, args=items)

    def restore(
        self, step: int, abstract_state: TrainState, mask: dict[str, bool]
    ) -> tuple[TrainState, dict[str, Any]]:
        """The state and data state of a step.

        Args:
            abstract_state: shapes, dtypes and shardings of the state.
            mask: which parameters are trainable.

        Raises:
            UserError: the checkpoint is damaged or of a run that trained other parameters.
        """
        target = ocp.args.Composite(
            params=ocp.args.StandardRestore(merge(abstract_state.trainable, abstract_state.frozen)),
            opt_state=ocp.args.StandardRestore(abstract_state.opt_state),
            data=ocp.args.JsonRestore(),
        )
        try:
            restored = self._manager.restore(step, args=target)
        except Exception as error:  # for damaged files Orbax raises bare ones
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"{self._workdir}: checkpoint {step} cannot be restored into this config: {reason}"
            ) from error
        trainable, frozen = split(restored["params"], mask)
        number = jax.device_put(jax.numpy.int32(step), abstract_state.step.sharding)
        return TrainState(number, trainable, frozen, restored["opt_state"]), restored["data"]

    def close(self) -> None:
        """Waits for saves in progress."""
        self._manager.wait_until_finished()
        self._manager.close()


def read_data_state(workdir: epath.PathLike, step: int) -> dict[str, Any]:
    """The state of the data stream alone. Raises UserError when it is damaged."""
    folder = epath.Path(workdir).resolve() / "checkpoints" / str(step) / "data"
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
            return checkpointer.restore(folder)
    except (ValueError, OSError) as error:
        raise UserError(f"{folder}: not a readable data state ({error})") from error


def _of_all_processes(data_state: dict[str, Any]) -> dict[str, Any]:
    """The data state with the logical shards of every process, since any of them may restore any shard."""
    if jax.process_count() == 1:
        return data_state
    own = np.frombuffer(json.dumps(data_state["shards"]).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(own)))
    texts = multihost_utils.process_allgather(np.pad(own, (0, int(lengths.max()) - len(own))))
    shards: dict[str, Any] = {}
    for text, length in zip(np.asarray(texts), np.asarray(lengths), strict=True):
        shards |= json.loads(text[:length].tobytes())
    return data_state | {"shards": shards}


def differences(saved: Any, wanted: Any, prefix: str = "") -> str:
    """The fields in which two architectures differ, e.g. "llama.depth 4 (config: 24)"."""
    if type(saved) is not type(wanted):
        return f"{type(saved).__name__} (config: {type(wanted).__name__})"
    parts = []
    for name in saved.__dataclass_fields__:
        old, new = getattr(saved, name), getattr(wanted, name)
        if old != new and hasattr(old, "__dataclass_fields__"):
            parts.append(differences(old, new, f"{prefix}{name}."))
        elif old != new:
            parts.append(f"{prefix}{name} {old} (config: {new})")
    return ", ".join(parts)
