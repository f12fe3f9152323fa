"""Model folders: what training writes and `from_pretrained` reads.

DIR/model.json        architecture (exact; another one is refused)
DIR/tokenizer.json    text tokenizer, absent for image tokenizers
DIR/params/           Orbax, layers stacked                     (exported model), or
DIR/checkpoints/N/    Orbax, one folder per saved step with `params` in it (training workdir)
"""

import dataclasses
import json
import uuid
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from jax.typing import DTypeLike

from janus_jax.errors import UserError
from janus_jax.models.config import JanusConfig, LlamaConfig, ModelConfig, SiglipConfig, VQConfig
from janus_jax.models.parameters import Params, abstract_params

FORMAT_VERSION = 1
KINDS: dict[str, type] = {"janus": JanusConfig, "vq": VQConfig}
_PARTS = {"llama": LlamaConfig, "siglip": SiglipConfig, "vq": VQConfig}


def write_architecture(folder: epath.PathLike, config: ModelConfig) -> None:
    """Writes model.json."""
    kind = next(name for name, cls in KINDS.items() if isinstance(config, cls))
    content = {"format_version": FORMAT_VERSION, "kind": kind, "config": dataclasses.asdict(config)}
    (epath.Path(folder) / "model.json").write_text(json.dumps(content, indent=2) + "\n")


def read_architecture(folder: epath.PathLike) -> ModelConfig:
    """Reads model.json. Raises UserError when it is missing, damaged or of an unknown kind or version."""
    path = epath.Path(folder) / "model.json"
    if not path.exists():
        raise UserError(f"{folder}: not a model folder of janus_jax (no model.json)")
    try:
        content = json.loads(path.read_text())
        if content["format_version"] != FORMAT_VERSION:
            raise UserError(f"{path}: format_version {content['format_version']}, expected {FORMAT_VERSION}")
        return _from_dict(KINDS[content["kind"]], content["config"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # not UTF-8, not JSON, another structure
        raise UserError(f"{path}: not a known architecture ({type(error).__name__}: {error})") from error


def save_params(folder: epath.PathLike, config: ModelConfig, params: Params) -> None:
    """Writes an exported model folder (without tokenizer). `folder/params` must not exist."""
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_architecture(folder, config)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.resolve() / "params", params)


def load_params(folder: epath.PathLike, config: ModelConfig, dtype: DTypeLike | None = None) -> Params:
    """Parameters of an exported model or of the newest checkpoint of a training workdir.

    Args:
        folder: see the head of this file.
        config: the folder's architecture.
        dtype: cast while reading; None keeps what was saved.

    Raises:
        UserError: nothing saved there, or it does not hold exactly the parameters of `config`.
    """
    path = params_path(folder)
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


def params_path(folder: epath.PathLike) -> epath.Path:
    """Where the parameters of a model folder lie. Raises UserError when there are none."""
    folder = epath.Path(folder).resolve()
    if (folder / "params").exists():
        return folder / "params"
    steps = saved_steps(folder)
    if not steps:
        raise UserError(f"{folder}: holds neither params/ nor a checkpoint under checkpoints/")
    return folder / "checkpoints" / str(steps[-1]) / "params"


def saved_steps(workdir: epath.PathLike) -> list[int]:
    """Steps of the complete checkpoints of a training workdir, in order."""
    folder = epath.Path(workdir) / "checkpoints"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.exists() else []


def prepare_folder(flag: str, folder: epath.PathLike) -> epath.Path:
    """Creates the folder and proves that it can be written. Raises UserError naming the flag."""
    folder = epath.Path(folder).resolve()
    probe = folder / f".write_test_{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(f"--{flag}={folder}: cannot be written ({error.strerror})") from error
    return folder


def _from_dict(cls: type, values: dict[str, Any]) -> Any:
    converted = {
        name: _from_dict(_PARTS[name], value) if name in _PARTS else tuple(value) if isinstance(value, list) else value
        for name, value in values.items()
    }
    return cls(**converted)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
