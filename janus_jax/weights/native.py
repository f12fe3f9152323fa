"""Our own layout of a model folder: what training writes and `from_pretrained` reads.

DIR/model.json        architecture, in full
DIR/tokenizer.json    text tokenizer; image tokenizers and VAEs have none
DIR/params/           an exported model: its parameters by Orbax, layers stacked
DIR/checkpoints/N/    a training workdir: one folder by Orbax per saved step, with `params` and perhaps `ema` in it
"""

import dataclasses
import typing
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from janus_jax.data.images import JANUS_NORMALIZATION
from janus_jax.data.prompts import STYLES
from janus_jax.data.tokenizer import FILE_NAME, Tokenizer
from janus_jax.errors import UserError
from janus_jax.models.config import (
    FamilyConfig,
    JanusConfig,
    JanusFlowConfig,
    JanusVariantConfig,
    ModelConfig,
    SemanticTokenizerConfig,
    VAEConfig,
    VQConfig,
)
from janus_jax.models.encoders import ENCODERS, encoder_name
from janus_jax.models.params import Params, abstract_params, flatten, unflatten
from janus_jax.models.scan_layers import is_stacked
from janus_jax.storage import absolute, write_json
from janus_jax.weights import orbax_io, preprocessor
from janus_jax.weights.json_fields import Fields, checked_sizes, read_fields
from janus_jax.weights.reader import ModelReader, TensorReader
from janus_jax.weights.tokenizer_files import check_vocabulary

ARCHITECTURE_FILE = "model.json"
FORMAT_VERSION = 1
KINDS: dict[str, type] = {
    "janus": JanusConfig,
    "janus_variant": JanusVariantConfig,
    "janusflow": JanusFlowConfig,
    "vq": VQConfig,
    "semantic_vq": SemanticTokenizerConfig,
    "vae": VAEConfig,
}


def write_architecture(folder: epath.PathLike, config: ModelConfig) -> None:
    """Writes model.json."""
    kind = next(name for name, cls in KINDS.items() if isinstance(config, cls))
    values = dataclasses.asdict(config)
    if isinstance(config, JanusVariantConfig) and config.encoder:
        values["encoder"]["kind"] = encoder_name(config.encoder)
    content = {"format_version": FORMAT_VERSION, "kind": kind, "config": values}
    write_json(epath.Path(folder) / ARCHITECTURE_FILE, content)


def read_architecture(folder: epath.PathLike) -> ModelConfig:
    """Reads model.json. Raises UserError when it is missing, damaged, or of an unknown kind or version."""
    path = epath.Path(folder) / ARCHITECTURE_FILE
    if not path.exists():
        raise UserError(f"{folder}: not a model folder of janus_jax (no {ARCHITECTURE_FILE})")
    fields = read_fields(path)
    if fields.values.get("format_version") != FORMAT_VERSION:
        raise fields.wrong("format_version", str(FORMAT_VERSION))
    kind = KINDS[fields.choice("kind", KINDS)]
    with checked_sizes(path):
        return _read_dataclass(kind, fields.object("config"))


def save_params(folder: epath.PathLike, config: ModelConfig, params: Params) -> None:
    """Writes an exported model folder, without a tokenizer. `folder/params` must not exist.

    This process writes alone, and holds the arrays whole.
    """
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_architecture(folder, config)
    process = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=process, active_processes={process})
    with ocp.StandardCheckpointer(multiprocessing_options=alone) as checkpointer:
        checkpointer.save(absolute(folder) / "params", jax.tree.map(np.asarray, params), save_args=chunked(params))


def chunked(params: Params) -> Any:
    """Orbax's `save_args` with which one layer, or some rows of a matrix, can be read without the whole array.

    By default Orbax saves an array, or each device's part of it, as one chunk. A stacked parameter of the 7B model is
    larger than the memory in which a conversion has to run.
    """
    return unflatten(
        {
            path: ocp.SaveArgs(chunk_byte_size=orbax_io.CHUNK_BYTES, shard_axes=(0,) if is_stacked(path) else ())
            for path in flatten(params)
        }
    )


def open_params(
    folder: epath.PathLike, config: ModelConfig, *, ema: bool = False, step: int | None = None
) -> orbax_io.OrbaxReader:
    """Opens the parameters of an exported model, or of a checkpoint of a training workdir.

    Args:
        config: the architecture of the folder.
        ema: opens the average of the parameters over the steps of a workdir.
        step: the checkpoint of a workdir to open; None is the newest.

    Raises:
        UserError: nothing is saved there, it is damaged, or it does not hold exactly the parameters of `config`.
    """
    reader = orbax_io.OrbaxReader(params_path(folder, ema, step))
    found = {path: info.shape for path, info in reader.parameters.items()}
    expected = {path: leaf.shape for path, leaf in flatten(abstract_params(config)).items()}
    if found != expected:
        different = sorted(path for path in found.keys() | expected.keys() if found.get(path) != expected.get(path))
        raise UserError(
            f"{folder}: {len(different)} parameters are not those of {ARCHITECTURE_FILE}: {', '.join(different[:10])}"
        )
    for path, info in reader.parameters.items():
        info.check_floating(folder, path)
    reader.parameters = {path: reader.parameters[path] for path in expected}  # in the order of the model
    return reader


def open_native_model(folder: epath.Path, ema: bool = False) -> ModelReader:
    """Opens a model of the family in our layout; see `open_model.open_model`."""
    config = _family_architecture(folder)
    return model_with(folder, open_params(folder, config, ema=ema))


def model_with(folder: epath.Path, tensors: TensorReader) -> ModelReader:
    """The model of a folder in our layout, with tensors that are open already."""
    config = _family_architecture(folder)
    tokenizer = Tokenizer.from_file(folder / FILE_NAME)
    check_vocabulary(folder, tokenizer, config)
    normalization = JANUS_NORMALIZATION
    if (folder / preprocessor.FILE_NAME).exists():  # written only where the normalization is another one
        normalization = preprocessor.read_preprocessor(folder, config)
    return ModelReader("orbax", config, tokenizer, normalization, tensors)


def _family_architecture(folder: epath.Path) -> FamilyConfig:
    config = read_architecture(folder)
    if not isinstance(config, FamilyConfig):
        raise UserError(f"{folder}: holds a {type(config).__name__}, expected a Janus model")
    return config


def params_path(folder: epath.PathLike, ema: bool = False, step: int | None = None) -> epath.Path:
    """The Orbax folder of the parameters that `open_params` opens. Raises UserError when there is none."""
    folder = absolute(folder)
    if not ema and step is None and (folder / "params").exists():
        return folder / "params"
    steps = saved_steps(folder)
    if ema and not steps:
        raise UserError(f"{folder}: holds no checkpoint under checkpoints/, so no average of its parameters")
    if not steps:
        raise UserError(f"{folder}: holds neither params/ nor a checkpoint under checkpoints/")
    if step is not None and step not in steps:
        raise UserError(f"{folder}: holds no checkpoint of step {step}, only of {', '.join(map(str, steps))}")
    path = folder / "checkpoints" / str(steps[-1] if step is None else step) / ("ema" if ema else "params")
    if ema and not path.exists():
        raise UserError(f"{folder}: keeps no average of its parameters (config.train.ema was 0)")
    return path


def saved_steps(workdir: epath.PathLike) -> list[int]:
    """The steps of the complete checkpoints of a training workdir, in order."""
    folder = epath.Path(workdir) / "checkpoints"
    names = [path for path in folder.iterdir() if path.name.isdigit()] if folder.exists() else []
    return sorted(int(path.name) for path in names if ocp.utils.is_checkpoint_finalized(path))


def _read_dataclass(cls: type, fields: Fields) -> Any:
    """A dataclass of `models.config` from a JSON object that has exactly its fields."""
    kinds = typing.get_type_hints(cls)
    unknown = fields.values.keys() - kinds.keys()
    if unknown:
        raise fields.wrong(min(unknown), f"only the fields {', '.join(kinds)}")
    return cls(**{name: _read_value(kind, fields, name) for name, kind in kinds.items()})


def _read_value(kind: Any, fields: Fields, name: str) -> Any:
    """The value of one field, whose annotation is `kind`."""
    if type(None) in typing.get_args(kind):  # a part of the model or None
        return _read_value(typing.get_args(kind)[0], fields, name) if name in fields.values else None
    if name == "encoder":
        chosen = fields.object(name)
        encoder = ENCODERS[chosen.choice("kind", ENCODERS)]
        values = {field: value for field, value in chosen.values.items() if field != "kind"}
        return _read_dataclass(encoder.config, chosen._replace(values=values))
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(typing.cast(type, kind), fields.object(name))
    if name == "prompt_style":
        return fields.choice(name, STYLES)
    if kind is bool:
        return fields.boolean(name)
    if kind is int:
        return fields.integer(name)
    if kind is float:
        return fields.number(name, zero_is_valid=True)
    return tuple(fields.integer_list(name))
