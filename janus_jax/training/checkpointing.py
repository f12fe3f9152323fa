"""Checkpoints of a training run: parameters, moments, step and data state, written by Orbax in the background.

A checkpoint is complete or absent. Its items `params` and, if an average is kept, `ema` hold a whole model each, so
that inference reads the workdir of a run without conversion. Of a run with adapters they hold only what is trained, and
`weights.lora_run` reads the workdir together with its base.
"""

import contextlib
import json
import logging as standard_logging
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from janus_jax.data.tokenizer import FILE_NAME as TOKENIZER_FILE
from janus_jax.errors import UserError
from janus_jax.models.config import ModelConfig
from janus_jax.models.params import Params
from janus_jax.storage import absolute, prepare_folder
from janus_jax.training.freezing import merge, split
from janus_jax.training.train_state import TrainState
from janus_jax.weights.lora_run import open_trained, read_record
from janus_jax.weights.native import ARCHITECTURE_FILE, chunked, open_params, read_architecture, saved_steps

CONFIG_FILE = "config.json"  # the config of the last start in a workdir


def has_checkpoint(workdir: epath.Path, config: ModelConfig) -> bool:
    """Whether the workdir holds a checkpoint, so that a run of this architecture continues there.

    A start that ended before its first checkpoint has left files that describe its model. They may be replaced.

    Raises:
        UserError: The checkpoints belong to another architecture, or the folder belongs to no run.
    """
    steps = saved_steps(workdir)
    foreign = [name for name in ("params", CONFIG_FILE, TOKENIZER_FILE) if (workdir / name).exists()]
    # Asked last, since the first process may be writing its files: model.json is the first of them.
    begun = (workdir / ARCHITECTURE_FILE).exists()
    if not steps:
        if begun:  # by a run, so that only an exported model has more
            foreign = [name for name in foreign if name == "params"]
        if foreign:
            raise UserError(f"--workdir={workdir}: holds {foreign[0]} of a model, expected a new folder or a run's")
        return False
    if begun and (saved := read_architecture(workdir)) != config:
        raise UserError(f"{workdir}: holds another architecture than the config's: {differences(saved, config)}")
    return True


class Checkpoints:
    """The checkpoints of one workdir.

    `host_gib` is the memory that the last save took on the host of this process, in GiB.
    """

    def __init__(self, workdir: epath.Path, config: ModelConfig, keep: int, trained_only: bool = False):
        """Raises UserError when the folder of the checkpoints cannot be written.

        Args:
            trained_only: Leave out frozen parameters. A restored state has none then.
        """
        self._workdir, self._config, self._trained_only = workdir, config, trained_only
        self._folder = prepare_folder("workdir", workdir / "checkpoints")
        self._options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        # Made by the first save, since its threads (Orbax 0.12.8) print a traceback when a mistake ends the command.
        self._manager: ocp.CheckpointManager | None = None
        self._opened = False  # whether a checkpoint of this process was opened again
        self._blocked = 0.0
        self.host_gib = 0.0

    def check(self) -> None:
        """Raises OSError when a save in the background has failed, or when the first one cannot be opened again."""
        if self._manager is None:
            return
        with self._writing(self._manager):
            self._manager.check_for_errors()
        if not self._opened and not self._manager.is_saving_in_progress():
            self._open_newest(self._manager)

    def save(self, state: TrainState, data_state: dict[str, Any]) -> None:
        """Starts an asynchronous save of this step. Does nothing when the step is already saved.

        Raises:
            OSError: This save could not begin, or the one before it could not be completed, or cannot be opened again.
        """
        start = time.monotonic()
        if self._manager is None:
            with self._writing(None):
                self._manager = ocp.CheckpointManager(self._folder, options=self._options)
        else:
            self._wait(self._manager)
            self.check()
        step = int(state.step)
        if step not in self._manager.all_steps():
            params = self._saved(state.trainable, state)
            items = {
                "params": ocp.args.StandardSave(params, save_args=chunked(params)),
                "opt_state": ocp.args.StandardSave(state.opt_state),
                "data": ocp.args.JsonSave(_of_all_processes(data_state)),
            }
            if state.ema is not None:  # a whole model, like `params`
                items["ema"] = ocp.args.StandardSave(self._saved(state.ema, state), save_args=chunked(params))
            if state.adversary is not None:
                items["adversary"] = ocp.args.StandardSave(state.adversary)
            # Orbax copies everything to the host before it writes. Frozen parameters count once although two items
            # hold them, since an array keeps its copy on the host.
            self.host_gib = _local_bytes((params, state.opt_state, state.ema, state.adversary)) / 2**30
            with self._writing(self._manager):
                self._manager.save(step, args=ocp.args.Composite(**items))
        self._blocked += time.monotonic() - start

    def _saved(self, trainable: Params, state: TrainState) -> Params:
        """The parameters that a checkpoint holds."""
        return trainable if self._trained_only else merge(trainable, state.frozen)

    def take_blocked(self) -> float:
        """Seconds that `save` has taken since the last call.

        They go to copies from the devices to the host, and to an earlier save that is still being written.
        """
        blocked, self._blocked = self._blocked, 0.0
        return blocked

    def restore_newest(
        self, abstract_state: TrainState, mask: dict[str, bool]
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """State and data state of the newest checkpoint that can be read; None when there is no checkpoint.

        Damaged newer checkpoints are moved to `damaged_checkpoints/`, with a message. The networks that only the loss
        uses are in no checkpoint: the state has None in their place.

        Args:
            abstract_state: Shapes, dtypes and shardings of the state.
            mask: Path of a parameter -> whether it is trained.

        Raises:
            UserError: There are checkpoints, but none can be restored. They are damaged, or belong to a run that
                trained other parameters, or that differs from this one in keeping an average of them or in training a
                discriminator.
            OSError, MemoryError, JaxRuntimeError: The reason is not in the files but in the connection, the
                permissions or the memory.
        """
        damaged: dict[int, str] = {}  # reasons by step; not the errors, whose frames would keep arrays
        steps = saved_steps(self._workdir)[::-1]
        self._require_average(steps, abstract_state.ema is not None)
        self._require_adversary(steps, abstract_state.adversary is not None)
        for step in steps:
            try:
                result = self.restore(step, abstract_state, mask)
            except UserError as error:
                damaged[step] = str(error)
            else:
                self._move_aside(damaged)
                return result
        if damaged:
            raise UserError(damaged[steps[0]])
        return None

    def restore(
        self, step: int, abstract_state: TrainState, mask: dict[str, bool]
    ) -> tuple[TrainState, dict[str, Any]]:
        """The state and data state of a step.

        Args:
            abstract_state: Shapes, dtypes and shardings of the state.
            mask: Path of a parameter -> whether it is trained.

        Raises:
            UserError: The checkpoint is damaged, or belongs to a run that trained other parameters. Every process
                raises it, even if only one of them reads the damaged part.
        """
        whole = ocp.args.StandardRestore(self._saved(abstract_state.trainable, abstract_state))
        items = {
            "params": whole,
            "opt_state": ocp.args.StandardRestore(abstract_state.opt_state),
            "data": ocp.args.JsonRestore(),
        }
        if abstract_state.ema is not None:
            items["ema"] = whole
        if abstract_state.adversary is not None:
            items["adversary"] = ocp.args.StandardRestore(abstract_state.adversary)
        reason = ""
        try:
            restored = self._read(step, ocp.args.Composite(**items))
        except UserError as error:
            reason = str(error)
        if not _in_all_processes(not reason):  # before device_put, which waits for the other processes too
            raise UserError(reason or f"{self._workdir}: another process cannot read checkpoint {step}")
        trainable, frozen = split(restored["params"], mask)
        number = jax.device_put(jax.numpy.int32(step), abstract_state.step.sharding)
        average = None if abstract_state.ema is None else split(restored["ema"], mask)[0]
        adversary = None if abstract_state.adversary is None else restored["adversary"]
        return TrainState(number, trainable, frozen, restored["opt_state"], average, adversary), restored["data"]

    def _read(self, step: int, items: ocp.args.Composite) -> ocp.args.Composite:
        """The parts of a checkpoint that this process needs. Raises UserError when they cannot be read.

        The manager's `restore` (Orbax 0.12.8) ends in a barrier. A process whose read fails would miss it and reach a
        different collective than the others, and all would crash or hang. So each process reads alone here.
        """
        alone = ocp.options.MultiprocessingOptions(active_processes={jax.process_index()})
        try:
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler(), multiprocessing_options=alone) as checkpointer:
                return checkpointer.restore(self._folder / str(step), args=items)
        except (TimeoutError, ConnectionError, PermissionError, MemoryError, jax.errors.JaxRuntimeError):
            raise  # the files may be intact
        except Exception as error:  # for damaged files Orbax raises errors of many types
            raise UserError(
                f"{self._workdir}: checkpoint {step} cannot be restored into this config: {_reason(error)}"
            ) from error

    def _require_average(self, steps: list[int], kept: bool) -> None:
        """Raises UserError when only the run or only the checkpoints keep an average of the parameters."""
        with_average = [step for step in steps if (self._folder / str(step) / "ema").exists()]
        if with_average and not kept:
            raise UserError(
                f"config.train.ema=0, but checkpoint {with_average[0]} in {self._workdir} holds an average of "
                "parameters, which would end here: expected the train.ema of the run, or a new workdir with "
                "init.checkpoint"
            )
        if steps and kept and not with_average:
            raise UserError(
                f"config.train.ema is above 0, but no checkpoint in {self._workdir} holds an average of parameters: "
                "expected 0, or a new workdir with init.checkpoint, where an average begins"
            )

    def _require_adversary(self, steps: list[int], trained: bool) -> None:
        """Raises UserError when only the run or only the checkpoints have a discriminator."""
        found = [step for step in steps if (self._workdir / "checkpoints" / str(step) / "adversary").exists()]
        if steps and bool(found) != trained:
            raise UserError(
                f"config.loss.adversarial_weight is {'above 0' if trained else '0'}, but the checkpoints in "
                f"{self._workdir} hold {'a' if found else 'no'} discriminator: expected the value of the run, or a new "
                "workdir with init.checkpoint"
            )

    def close(self) -> None:
        """Waits for saves in progress. Raises OSError when one of them fails, or the last cannot be opened again."""
        if self._manager is None:
            return
        try:
            self._wait(self._manager)
            self._open_newest(self._manager)
        finally:
            self._manager.close()

    def _wait(self, manager: ocp.CheckpointManager) -> None:
        with self._writing(manager):
            manager.wait_until_finished()

    def _open_newest(self, manager: ocp.CheckpointManager) -> None:
        """Opens the newest checkpoint as a later run will, but reads no values: what a save wrote may be incomplete.

        Only the first process does so. Raises OSError when something is missing.
        """
        self._opened = True
        step = manager.latest_step()
        if jax.process_index() != 0 or step is None:
            return
        folder = self._folder / str(step)
        alone = ocp.options.MultiprocessingOptions(active_processes={0})
        try:
            for ema in (False, True) if (folder / "ema").exists() else (False,):
                if self._trained_only:
                    open_trained(self._workdir, read_record(self._workdir), ema, step)
                else:
                    open_params(self._workdir, self._config, step=step, ema=ema)
            read_data_state(self._workdir, step)
            with contextlib.closing(ocp.StandardCheckpointHandler(multiprocessing_options=alone)) as handler:
                handler.metadata(folder / "opt_state")
        except Exception as error:  # for missing files Orbax raises errors of many types
            raise OSError(f"{folder}: was written, but cannot be opened again: {_reason(error)}") from error

    @contextlib.contextmanager
    def _writing(self, manager: ocp.CheckpointManager | None) -> Iterator[None]:
        """Turns the errors that Orbax raises, of many types and some late, into an OSError that tells what is left."""
        try:
            yield
        except Exception as error:
            standard_logging.getLogger("asyncio").setLevel("CRITICAL")  # it would repeat the error for each array
            left = "" if manager is None else f", the last complete one is {manager.latest_step()}"
            raise OSError(f"{self._workdir}: a checkpoint could not be written{left}: {_reason(error)}") from error

    def _move_aside(self, damaged: dict[int, str]) -> None:
        if not damaged:
            return
        for reason in damaged.values():
            logging.error("CHECKPOINT DAMAGED, GOING BACK TO AN EARLIER ONE: %s", reason)
        if jax.process_index() == 0:
            folder = self._workdir / "damaged_checkpoints"
            folder.mkdir(exist_ok=True)
            for step in damaged:
                (self._folder / str(step)).rename(folder / f"{step}-{int(time.time())}")
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints are moved aside")


def read_data_state(workdir: epath.PathLike, step: int) -> dict[str, Any]:
    """The state of the data stream alone. Raises UserError when it is damaged."""
    folder = absolute(workdir) / "checkpoints" / str(step) / "data"
    alone = ocp.options.MultiprocessingOptions(active_processes={jax.process_index()})
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler(), multiprocessing_options=alone) as checkpointer:
            return checkpointer.restore(folder)
    except (ValueError, OSError) as error:
        raise UserError(f"{folder}: not a readable data state ({error})") from error


def _local_bytes(tree: Any) -> int:
    """Bytes that this process saves. Each part of an array is saved once, by the process that has its first replica."""
    shards = (shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards)
    return sum(shard.data.nbytes for shard in shards if shard.replica_id == 0)


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _in_all_processes(value: bool) -> bool:
    """Whether the value is true in every process."""
    return value if jax.process_count() == 1 else bool(np.all(multihost_utils.process_allgather(np.bool_(value))))


def _of_all_processes(data_state: dict[str, Any]) -> dict[str, Any]:
    """The data state with the logical shards of all processes, since after a restart any process may own any shard."""
    if jax.process_count() == 1:
        return data_state
    encoded = np.frombuffer(json.dumps(data_state["shards"]).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(encoded)))
    texts = multihost_utils.process_allgather(np.pad(encoded, (0, int(lengths.max()) - len(encoded))))
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
