"""Model folders: what training writes and `from_pretrained` reads.

DIR/model.json        architecture (exact; another one is refused)
DIR/tokenizer.json    text tokenizer, absent for image tokenizers and VAEs
DIR/params/           Orbax, layers stacked                     (exported model), or
DIR/checkpoints/N/    Orbax, one folder per saved step with `params`, perhaps `ema`, in it (training workdir)
"""

import dataclasses
import json
import os
import reprlib
import typing
import uuid
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.typing import DTypeLike

from janus_jax.data.prompts import STYLES
from janus_jax.errors import UserError
from janus_jax.models.config import JanusConfig, JanusFlowConfig, ModelConfig, VAEConfig, VQConfig
from janus_jax.models.params import Params, abstract_params, flatten, unflatten
from janus_jax.storage import write_whole

FORMAT_VERSION = 1
KINDS: dict[str, type] = {"janus": JanusConfig, "janusflow": JanusFlowConfig, "vq": VQConfig, "vae": VAEConfig}
# A damaged number is an error, not a day of waiting.
_MAX_BYTES = 1 << 20
_MAX_SIZE = 1 << 24
_MAX_COUNT = 1024  # of what is repeated
_MAX_NUMBER = 1e18
_MAX_LIST = 16
_COUNTS = ("depth", "encoder_depth", "decoder_depth", "num_res_blocks", "aligner_depth", "gen_aligner_depth", "layer")
CHUNK_BYTES = 64 * 2**20  # most bytes that have to be read at once


def write_architecture(folder: epath.PathLike, config: ModelConfig) -> None:
    """Writes model.json."""
    kind = next(name for name, cls in KINDS.items() if isinstance(config, cls))
    content = {"format_version": FORMAT_VERSION, "kind": kind, "config": dataclasses.asdict(config)}
    write_whole(epath.Path(folder) / "model.json", json.dumps(content, indent=2) + "\n")


def read_architecture(folder: epath.PathLike) -> ModelConfig:
    """Reads model.json. Raises UserError when it is missing, damaged or of an unknown kind or version."""
    path = epath.Path(folder) / "model.json"
    if not path.exists():
        raise UserError(f"{folder}: not a model folder of janus_jax (no model.json)")
    try:
        if path.stat().length > _MAX_BYTES:
            raise UserError(f"{path}: larger than {_MAX_BYTES} bytes, expected a short JSON file")
        content = json.loads(path.read_text())
        if content["format_version"] != FORMAT_VERSION:
            raise UserError(f"{path}: format_version {content['format_version']}, expected {FORMAT_VERSION}")
        return _from_dict(KINDS[content["kind"]], content["config"], f"{path}: config")
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        # not UTF-8, not JSON, another structure, sizes that do not go together
        raise UserError(f"{path}: not a known architecture ({type(error).__name__}: {error})") from error


def save_params(folder: epath.PathLike, config: ModelConfig, params: Params) -> None:
    """Writes an exported model folder (without tokenizer). `folder/params` must not exist.

    By this process alone, of arrays that it holds whole.
    """
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_architecture(folder, config)
    own = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own})
    with ocp.StandardCheckpointer(multiprocessing_options=alone) as checkpointer:
        checkpointer.save(absolute(folder) / "params", jax.tree.map(np.asarray, params), save_args=chunked(params))


def chunked(params: Params) -> Any:
    """Orbax's `save_args` with which a layer, or some rows of a matrix, can be read without the whole array.

    By itself Orbax saves an array, or each device's part of it, in one piece; of a stacked parameter of the 7B that is
    more memory than all of a conversion may take.
    """
    return unflatten(
        {
            path: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES, shard_axes=(0,) if "/layers/" in path else ())
            for path in flatten(params)
        }
    )


def load_params(
    folder: epath.PathLike,
    config: ModelConfig,
    dtype: DTypeLike | None = None,
    *,
    ema: bool = False,
    step: int | None = None,
) -> Params:
    """Parameters of an exported model or of a checkpoint of a training workdir.

    Args:
        folder: see the head of this file.
        config: the folder's architecture.
        dtype: cast while reading; None is float32.
        ema: of a workdir, the average of the parameters over its steps.
        step: of a workdir, the checkpoint; None is the newest.

    Raises:
        UserError: nothing saved there, or it does not hold exactly the parameters of `config`.
    """
    path = params_path(folder, ema, step)
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def target(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype, sharding=sharding)

    try:
        with ocp.StandardCheckpointer() as checkpointer:
            params = checkpointer.restore(path, jax.tree.map(target, abstract_params(config)))
    except (ValueError, KeyError, FileNotFoundError, TypeError) as error:
        raise UserError(
            f"{path}: cannot be restored as the architecture in model.json: {_first_line(error)}"
        ) from error
    return jax.tree.map(jnp.asarray, params)


def params_path(folder: epath.PathLike, ema: bool = False, step: int | None = None) -> epath.Path:
    """Where the parameters of a model folder, or their average over the steps of a workdir, lie; see `load_params`.

    Raises UserError when there are none.
    """
    folder = absolute(folder)
    if not ema and step is None and (folder / "params").exists():
        return folder / "params"
    steps = saved_steps(folder)
    if not steps:
        raise UserError(f"{folder}: holds neither params/ nor a checkpoint under checkpoints/")
    if step is not None and step not in steps:
        raise UserError(f"{folder}: holds no checkpoint of step {step}, only of {', '.join(map(str, steps))}")
    path = folder / "checkpoints" / str(steps[-1] if step is None else step) / ("ema" if ema else "params")
    if ema and not path.exists():
        raise UserError(f"{folder}: keeps no average of its parameters (config.train.ema was 0)")
    return path


def saved_steps(workdir: epath.PathLike) -> list[int]:
    """Steps of the complete checkpoints of a training workdir, in order."""
    folder = epath.Path(workdir) / "checkpoints"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.exists() else []


def absolute(path: epath.PathLike) -> epath.Path:
    """A local path from the root of the file system, as Orbax asks for; `resolve` would make one of gs://bucket too."""
    path = epath.Path(path)
    return path if "://" in os.fspath(path) else path.resolve()


def prepare_folder(flag: str, folder: epath.PathLike) -> epath.Path:
    """Creates the folder and proves that it can be written. Raises UserError naming the flag."""
    folder = absolute(folder)
    probe = folder / f".write_test_{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(f"--{flag}={folder}: cannot be written ({error.strerror})") from error
    return folder


def _from_dict(cls: type, values: Any, where: str) -> Any:
    """A dataclass of `models.config` from JSON. Raises UserError naming the first field that is not as annotated."""
    types = typing.get_type_hints(cls)
    if not isinstance(values, dict) or values.keys() != types.keys():
        fields = f"the fields {', '.join(values)}" if isinstance(values, dict) else reprlib.repr(values)
        raise UserError(f"{where} has {fields}, expected {', '.join(types)}")
    return cls(**{name: _value(kind, values[name], name, f"{where}.{name}") for name, kind in types.items()})


def _value(kind: Any, value: Any, name: str, where: str) -> Any:
    """The value of one field; `kind` is its annotation."""
    most = _MAX_COUNT if name in _COUNTS else _MAX_SIZE
    if type(None) in typing.get_args(kind):  # "a part or None"
        return None if value is None else _value(typing.get_args(kind)[0], value, name, where)
    if dataclasses.is_dataclass(kind):
        return _from_dict(typing.cast(type, kind), value, where)
    if name == "prompt_style":
        if isinstance(value, str) and value in STYLES:
            return value
        expected = f"one of {', '.join(STYLES)}"
    elif kind is int:
        if type(value) is int and 0 < value <= most:
            return value
        expected = f"a whole number from 1 to {most}"
    elif kind is float:
        if type(value) in (int, float) and 0 <= value <= _MAX_NUMBER:
            return float(value)
        expected = f"a number from 0 to {_MAX_NUMBER:g}"
    else:  # a tuple of ints
        if isinstance(value, list) and 0 < len(value) <= _MAX_LIST:
            return tuple(_value(int, entry, name, where) for entry in value)
        expected = f"a list of 1 to {_MAX_LIST} whole numbers"
    raise UserError(f"{where}={reprlib.repr(value)}, expected {expected}")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
