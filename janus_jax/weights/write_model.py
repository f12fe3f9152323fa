"""Writes whole model folders of any layout, with one tensor in memory at a time.

orbax       ours (`weights.native`)
hf          transformers' JanusForConditionalGeneration, 4.5x and 5.x; it has no JanusFlow
deepseek    the original `multi_modality` folder
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.typing import DTypeLike

from janus_jax.data.images import JANUS_NORMALIZATION
from janus_jax.data.tokenizer import FILE_NAME
from janus_jax.errors import UserError
from janus_jax.models.config import FamilyConfig, JanusFlowConfig, JanusVariantConfig, VAEConfig
from janus_jax.models.params import Params
from janus_jax.phases import phase
from janus_jax.storage import new_folder, write_json
from janus_jax.weights import deepseek_config, hf_config, janusflow_config, preprocessor, tokenizer_files
from janus_jax.weights.json_fields import CONFIG_FILE
from janus_jax.weights.load import cast, floating_dtype
from janus_jax.weights.name_map import Link, links, table_of, their_shapes
from janus_jax.weights.native import save_params, write_architecture
from janus_jax.weights.orbax_io import OrbaxWriter
from janus_jax.weights.reader import ModelReader, TensorInfo, TensorReader, all_slices
from janus_jax.weights.safetensors_io import MAX_FILE_BYTES, SafetensorsWriter
from janus_jax.weights.vae import VAE_FOLDER, require_vae

LAYOUTS = ("orbax", "hf", "deepseek")


def write_model(
    reader: ModelReader,
    output: epath.PathLike,
    layout: str,
    dtype: DTypeLike | None = None,
    report: Callable[[int], None] = lambda nbytes: None,
    check: Callable[[epath.Path], None] = lambda folder: None,
    vae: tuple[VAEConfig, Params] | None = None,
) -> None:
    """Writes a complete model folder under a temporary name, and renames it when all is there and checked.

    Args:
        layout: one of `LAYOUTS`.
        dtype: the dtype of the written parameters; None keeps that of each.
        report: called after each tensor with its number of bytes.
        check: called with the complete folder while it still has its temporary name. If it raises an error, the folder
            is removed.
        vae: the VAE of a JanusFlow model, to be written into a folder of ours.

    Raises:
        UserError: `output` exists and is not empty, the model cannot be written so (`check_writable`), or the disk is
            full.
    """
    check_writable(reader, layout, None if vae is None else vae[0], dtype)
    with new_folder(epath.Path(output)) as folder:
        if layout == "orbax":
            _write_native(reader, folder, dtype, report)
            if vae is not None:
                save_params(folder / VAE_FOLDER, *vae)
        else:
            _write_foreign(reader, folder, layout, dtype, report)
        check(folder)


def check_writable(
    reader: ModelReader, layout: str, vae: VAEConfig | None = None, dtype: DTypeLike | None = None
) -> None:
    """Raises UserError when a model cannot be written in a layout or a dtype; reads no tensor.

    Args:
        vae: architecture of the VAE that is to be written with the model.
    """
    if layout not in LAYOUTS:
        raise UserError(f"format {layout!r} is not one of {LAYOUTS}")
    if dtype is not None:
        floating_dtype(dtype)
    config = reader.config
    if vae is not None:
        if layout != "orbax" or not isinstance(config, JanusFlowConfig):
            raise UserError(f"a VAE goes with a JanusFlow model in the orbax layout only, not with {layout}")
        require_vae(config, vae)
    if layout != "orbax":
        tokenizer_files.check_style(layout, config, reader.tokenizer)
        _foreign_config(reader, layout, "float32")


def describe(reader: ModelReader, layout: str) -> Iterator[str]:
    """A line per tensor that `write_model` would write: its name and shape, and where it comes from.

    Raises UserError where `write_model` would refuse the model.
    """
    check_writable(reader, layout)
    if layout == "orbax":
        for part in all_slices(reader.parameters):
            shape = reader.parameters[part.path].shape[0 if part.layer is None else 1 :]
            yield f"{part} {list(shape)} <- {reader.origin(part)}"
        return
    shapes = their_shapes(reader.config, table_of(reader.config, layout))
    for name, group in _grouped(reader.config, layout).items():
        origins = ", ".join(reader.origin(link.slice) for link in group)
        yield f"{name} {list(shapes[name])} ({group[0].transform.name}) <- {origins}"


def total_bytes(reader: TensorReader, dtype: DTypeLike | None = None) -> int:
    """The size of all parameters once they are converted to `dtype`."""
    return sum(_converted(info, dtype).nbytes for info in reader.parameters.values())


def compare(reader: TensorReader, written: TensorReader, dtype: DTypeLike | None = None) -> int:
    """Reads a model and what was written of it slice by slice; returns how many slices are equal bit for bit.

    Without a `dtype`, what was written may have a wider one: tensors that the other layout stacks or fuses have the
    widest dtype among them.

    Raises:
        UserError: a slice differs; names the first one.
    """
    count = 0
    with phase("comparing", sum(info.nbytes for info in written.parameters.values()), "B") as advance:
        for part in all_slices(written.parameters):  # foreign layouts have no parameters that only training uses
            wanted, found = reader.read(part), written.read(part)
            wanted = wanted.astype(dtype or jnp.promote_types(wanted.dtype, found.dtype), copy=False)
            if wanted.dtype != found.dtype or wanted.shape != found.shape or wanted.tobytes() != found.tobytes():
                raise UserError(f"{written.origin(part)}: what was written is not {reader.origin(part)}")
            count += 1
            advance(found.nbytes)
    return count


def _write_native(
    reader: ModelReader, folder: epath.Path, dtype: DTypeLike | None, report: Callable[[int], None]
) -> None:
    write_architecture(folder, reader.config)
    reader.tokenizer.save(folder / FILE_NAME)
    if reader.normalization != JANUS_NORMALIZATION:
        preprocessor.write_preprocessor(folder, reader.normalization)
    infos = {path: _converted(info, dtype) for path, info in reader.parameters.items()}
    with OrbaxWriter(folder / "params", infos) as writer:
        for part in all_slices(infos):
            values = cast(reader.read(part), infos[part.path].dtype, part.path)
            writer.write(part, values)
            report(values.nbytes)


def _write_foreign(
    reader: ModelReader, folder: epath.Path, layout: str, dtype: DTypeLike | None, report: Callable[[int], None]
) -> None:
    groups = _grouped(reader.config, layout)
    shapes = their_shapes(reader.config, table_of(reader.config, layout))
    infos = {}
    for name, group in groups.items():
        widest = functools.reduce(jnp.promote_types, [reader.parameters[link.path].dtype for link in group])
        infos[name] = _converted(TensorInfo(shapes[name], widest), dtype)
    dtypes = [info.dtype for info in infos.values()]
    _write_foreign_config(reader, folder, layout, max(set(dtypes), key=dtypes.count).name)
    with SafetensorsWriter(folder, infos, MAX_FILE_BYTES) as writer:
        for name, group in groups.items():
            blocks = [link.transform.to_theirs(reader.read(link.slice)) for link in group]
            values = cast(blocks[0] if len(blocks) == 1 else np.concatenate(blocks), infos[name].dtype, name)
            writer.write(name, values)
            report(values.nbytes)


def _write_foreign_config(reader: ModelReader, folder: epath.Path, layout: str, dtype_name: str) -> None:
    """Writes config.json, the tokenizer and the preprocessor."""
    write = tokenizer_files.write_hf_files if layout == "hf" else tokenizer_files.write_deepseek_files
    write(folder, reader.config, reader.tokenizer, reader.normalization)
    write_json(folder / CONFIG_FILE, _foreign_config(reader, layout, dtype_name))


def _foreign_config(reader: ModelReader, layout: str, dtype_name: str) -> dict[str, Any]:
    """The content of config.json. Raises UserError when the code that reads it cannot build the architecture."""
    config = reader.config
    if isinstance(config, JanusVariantConfig):
        raise UserError(f"JanusVariantConfig cannot be written in the {layout} layout: its readers have only Janus")
    if layout == "hf":
        if isinstance(config, JanusFlowConfig):
            raise UserError("JanusFlow cannot be written in the hf layout: transformers does not have it")
        return hf_config.hf_config(config, dtype_name, tokenizer_files.tokenizer_ids(reader.tokenizer))
    if isinstance(config, JanusFlowConfig):
        return janusflow_config.flow_config(config, dtype_name)
    return deepseek_config.deepseek_config(config, dtype_name)


def _grouped(config: FamilyConfig, layout: str) -> dict[str, list[Link]]:
    """Foreign name -> its links, the blocks of a fused tensor in order."""
    groups: dict[str, list[Link]] = {}
    for link in links(config, table_of(config, layout)):
        groups.setdefault(link.name, []).append(link)
    return {name: sorted(group, key=lambda link: link.part or (0, 1)) for name, group in groups.items()}


def _converted(info: TensorInfo, dtype: DTypeLike | None) -> TensorInfo:
    return info if dtype is None else info._replace(dtype=np.dtype(dtype))
