"""Whole model folders of any layout: open, load, write. A conversion holds one tensor in memory at a time.

    orbax       ours (`janus_jax.weights.native`)
    hf          transformers' JanusForConditionalGeneration, 4.5x and 5.x; it has no JanusFlow
    deepseek    the original `multi_modality` folder

A *piece* is one of our parameters, or one layer of a stacked one. Every layout is read in pieces and written from
pieces, so any source converts to any target by the same loop.
"""

import functools
import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.typing import DTypeLike

from janus_jax.data.images import JANUS_NORMALIZATION, Normalization
from janus_jax.data.tokenizer import FILE_NAME, Tokenizer
from janus_jax.errors import UserError
from janus_jax.models.config import FamilyConfig, JanusConfig, JanusFlowConfig, ModelConfig, VAEConfig
from janus_jax.models.params import Params, abstract_params, flatten, unflatten
from janus_jax.weights import hf_config, janusflow_config, preprocessor, token_ids, tokenizer_files
from janus_jax.weights.name_map import Link, Shape, links, match_names, table_of, their_shapes
from janus_jax.weights.native import read_architecture, save_params, write_architecture
from janus_jax.weights.orbax_io import OrbaxWriter, check_floating, open_params
from janus_jax.weights.safetensors_io import MAX_SHARD_BYTES, SafetensorsWriter, open_tensors

LAYOUTS = ("orbax", "hf", "deepseek")
VAE_FOLDER = "vae"  # in a folder of ours with a JanusFlow model


class Piece(NamedTuple):
    path: str
    layer: int | None  # None: the whole parameter


class Source(Protocol):
    """An opened model: its architecture, tokenizer and preprocessing, its parameters in pieces."""

    layout: str
    config: FamilyConfig
    tokenizer: Tokenizer
    normalization: Normalization

    def dtype(self, path: str) -> np.dtype: ...

    def read(self, piece: Piece) -> np.ndarray: ...

    def origin(self, piece: Piece) -> str:
        """Where the piece comes from, for people."""


def pieces(config: ModelConfig) -> Iterator[tuple[Piece, Shape]]:
    """All pieces of an architecture and their shapes."""
    for path, leaf in flatten(abstract_params(config)).items():
        if "/layers/" in path:
            yield from ((Piece(path, layer), leaf.shape[1:]) for layer in range(leaf.shape[0]))
        else:
            yield Piece(path, None), leaf.shape


class OrbaxSource:
    """Our own model folder or training workdir."""

    layout = "orbax"

    def __init__(self, folder: epath.Path, ema: bool = False):
        config = read_architecture(folder)
        if not isinstance(config, FamilyConfig):
            raise UserError(f"{folder}: holds a {type(config).__name__}, expected a Janus model")
        self.config = config
        self.tokenizer = Tokenizer.from_file(folder / FILE_NAME)
        _check_vocabulary(folder, self.tokenizer, config)
        own = (folder / preprocessor.FILE_NAME).exists()  # only a model that is not normalised as usual has one
        self.normalization = preprocessor.read_preprocessor(folder, config) if own else JANUS_NORMALIZATION
        self._reader = open_params(folder, config, ema)

    def dtype(self, path: str) -> np.dtype:
        return self._reader.shapes[path].dtype

    def read(self, piece: Piece) -> np.ndarray:
        return self._reader.read(piece.path, piece.layer)

    def origin(self, piece: Piece) -> str:
        return _ours(piece)


class ForeignSource:
    """A Hugging Face or DeepSeek folder."""

    def __init__(self, folder: epath.Path):
        self._tensors = open_tensors(folder)
        found = {name: entry.shape for name, entry in self._tensors.shapes.items()}
        self.tokenizer, prompt_style = tokenizer_files.read_tokenizer(folder)
        self.layout, self.config = hf_config.read_config(folder, found, prompt_style=prompt_style)
        self.normalization = preprocessor.read_preprocessor(folder, self.config)
        _check_vocabulary(folder, self.tokenizer, self.config)
        token_ids.check_tokens(folder, self.layout, self.config, self.tokenizer)
        table = table_of(self.config, self.layout)
        self._names = match_names(found, self.config, table, str(folder))
        self._links = {Piece(link.path, link.layer): link for link in links(self.config, table)}
        self._dtypes = self._common_dtypes(folder)

    def dtype(self, path: str) -> np.dtype:
        return self._dtypes[path]

    def read(self, piece: Piece) -> np.ndarray:
        link = self._links[piece]
        return block_of(self._tensors.read(self._names[link.name]), link)

    def origin(self, piece: Piece) -> str:
        link = self._links[piece]
        block = f"[{link.part[0]}/{link.part[1]}]" if link.part else ""
        return f"{self._names[link.name]}{block} ({link.transform.name})"

    def _common_dtypes(self, folder: epath.Path) -> dict[str, np.dtype]:
        """Path -> the dtype that holds every layer exactly. Raises UserError for tensors that are not floating."""
        dtypes: dict[str, np.dtype] = {}
        for link in self._links.values():
            name = self._names[link.name]
            dtype = self._tensors.shapes[name].dtype
            check_floating(folder, name, dtype)
            dtypes[link.path] = jnp.promote_types(dtypes.get(link.path, dtype), dtype)
        return dtypes


class MemorySource:
    """Parameters that are in memory."""

    layout = "orbax"

    def __init__(
        self,
        config: FamilyConfig,
        params: Params,
        tokenizer: Tokenizer,
        normalization: Normalization = JANUS_NORMALIZATION,
    ):
        self.config, self.tokenizer, self.normalization = config, tokenizer, normalization
        self._flat = flatten(params)

    def dtype(self, path: str) -> np.dtype:
        return np.dtype(self._flat[path].dtype)

    def read(self, piece: Piece) -> np.ndarray:
        leaf = self._flat[piece.path]
        return np.asarray(leaf if piece.layer is None else leaf[piece.layer])

    def origin(self, piece: Piece) -> str:
        return _ours(piece)


def open_folder(folder: epath.PathLike, ema: bool = False) -> Source:
    """Opens a model of any layout, told apart by its files; reads no tensor.

    Args:
        ema: of a training workdir, the average of the parameters over its steps.

    Raises:
        UserError: no model, a damaged one, or one that does not fit its own config, tokenizer or preprocessor.
    """
    folder = epath.Path(folder)
    if (folder / "model.json").exists():
        return OrbaxSource(folder, ema)
    if ema:
        raise UserError(f"{folder}: not a training workdir, so it keeps no average of its parameters")
    if (folder / hf_config.FILE_NAME).exists():
        return ForeignSource(folder)
    raise UserError(f"{folder}: not a model folder (neither model.json nor config.json is there)")


def load_params(source: Source, dtype: DTypeLike | None = None) -> Params:
    """All parameters of a source in memory, layers stacked; `dtype` None keeps what was saved, float64 as float32.

    Raises UserError for a value that is too large for the dtype.
    """
    loaded: dict[str, Any] = {}
    for path, leaf in flatten(abstract_params(source.config)).items():
        target = jax.dtypes.canonicalize_dtype(dtype or source.dtype(path))
        if "/layers/" in path:
            values = np.empty(leaf.shape, target)
            for layer in range(leaf.shape[0]):
                values[layer] = cast(source.read(Piece(path, layer)), target, path)
        else:
            values = cast(source.read(Piece(path, None)), target, path)
        loaded[path] = jnp.asarray(values)
    return unflatten(loaded)


def write_folder(
    source: Source,
    output: epath.PathLike,
    layout: str,
    dtype: DTypeLike | None = None,
    report: Callable[[int], None] = lambda nbytes: None,
    check: Callable[[epath.Path], None] = lambda folder: None,
    vae: tuple[VAEConfig, Params] | None = None,
) -> None:
    """Writes a complete model folder: under a temporary name beside it, renamed when all is there and checked.

    Args:
        layout: one of `LAYOUTS`.
        dtype: of the written parameters; None keeps each as it is.
        report: called after each tensor with its number of bytes.
        check: called with the complete folder while it still has its temporary name; an error of it removes the folder.
        vae: of a JanusFlow model, to go with it into a folder of ours.

    Raises:
        UserError: `output` exists and is not empty, the layout cannot hold this model, or the disk is full.
    """
    if layout not in LAYOUTS:
        raise UserError(f"format {layout!r} is not one of {LAYOUTS}")
    if vae is not None:
        if layout != "orbax" or not isinstance(source.config, JanusFlowConfig):
            raise UserError(f"a VAE goes with a JanusFlow model in the orbax layout only, not with {layout}")
        require_vae(source.config, vae[0])
    with _new_folder(epath.Path(output)) as folder:
        if layout == "orbax":
            _write_orbax(source, folder, dtype, report)
            if vae is not None:
                save_params(folder / VAE_FOLDER, *vae)
        else:
            _write_foreign(source, folder, layout, dtype, report)
        check(folder)


def require_vae(config: JanusFlowConfig, vae: VAEConfig) -> None:
    """Raises UserError when a VAE is of another kind than a JanusFlow model was trained with."""
    uvit = config.uvit
    if vae.latent_channels != uvit.latent_channels:
        raise UserError(f"the VAE has {vae.latent_channels} latent channels, expected {uvit.latent_channels}")
    size = uvit.latent_size * vae.downsampling
    if size != config.siglip.image_size:  # the model draws what it understands
        raise UserError(
            f"the VAE enlarges {uvit.latent_size} latents to {size} pixels, expected {config.siglip.image_size}"
        )


def compare(source: Source, written: Source, dtype: DTypeLike | None = None) -> int:
    """Reads both again piece by piece; returns how many tensors are equal bit for bit.

    Without a `dtype`, what was written may be wider: tensors that others stack or fuse share the widest dtype.

    Raises UserError naming the first piece that differs.
    """
    count = 0
    for piece, _ in pieces(written.config):  # what only training uses stays behind in others' layouts
        wanted, found = source.read(piece), written.read(piece)
        wanted = wanted.astype(dtype or jnp.promote_types(wanted.dtype, found.dtype), copy=False)
        if wanted.dtype != found.dtype or wanted.shape != found.shape or wanted.tobytes() != found.tobytes():
            raise UserError(f"{written.origin(piece)}: what was written is not {source.origin(piece)}")
        count += 1
    return count


def describe(source: Source, layout: str) -> Iterator[str]:
    """A line per tensor of the target: its name and shape, and where it comes from."""
    if layout == "orbax":
        for piece, shape in pieces(source.config):
            yield f"{_ours(piece)} {list(shape)} <- {source.origin(piece)}"
        return
    shapes = their_shapes(source.config, table_of(source.config, layout))
    for name, group in _grouped(source.config, layout).items():
        origins = ", ".join(source.origin(Piece(link.path, link.layer)) for link in group)
        yield f"{name} {list(shapes[name])} ({group[0].transform.name}) <- {origins}"


def total_bytes(source: Source, dtype: DTypeLike | None = None) -> int:
    """Size of all parameters of a source once converted to `dtype`."""
    return sum(
        int(np.prod(leaf.shape)) * np.dtype(dtype or source.dtype(path)).itemsize
        for path, leaf in flatten(abstract_params(source.config)).items()
    )


def _write_orbax(source: Source, folder: epath.Path, dtype: DTypeLike | None, report: Callable[[int], None]) -> None:
    write_architecture(folder, source.config)
    source.tokenizer.save(folder / FILE_NAME)
    if source.normalization != JANUS_NORMALIZATION:
        preprocessor.write_preprocessor(folder, source.normalization)
    shapes = {
        path: (leaf.shape, np.dtype(dtype or source.dtype(path)))
        for path, leaf in flatten(abstract_params(source.config)).items()
    }
    with OrbaxWriter(folder / "params", shapes) as writer:
        for piece, _ in pieces(source.config):
            values = cast(source.read(piece), shapes[piece.path][1], piece.path)
            writer.write(piece.path, piece.layer, values)
            report(values.nbytes)


def _write_foreign(
    source: Source, folder: epath.Path, layout: str, dtype: DTypeLike | None, report: Callable[[int], None]
) -> None:
    if layout == "hf" and isinstance(source.config, JanusFlowConfig):
        raise UserError("JanusFlow cannot be written in the hf layout: transformers does not have it")
    tokenizer_files.check_style(layout, source.config, source.tokenizer)
    groups = _grouped(source.config, layout)
    dtypes = {
        name: np.dtype(dtype or functools.reduce(jnp.promote_types, [source.dtype(link.path) for link in group]))
        for name, group in groups.items()
    }
    dtype_name = max(set(dtypes.values()), key=list(dtypes.values()).count).name
    if layout == "hf":
        ids = tokenizer_files.tokenizer_ids(source.tokenizer)
        assert isinstance(source.config, JanusConfig)
        content = hf_config.hf_config(source.config, dtype_name, ids)
        tokenizer_files.write_hf_files(folder, source.config, source.tokenizer, source.normalization)
    else:
        if isinstance(source.config, JanusFlowConfig):
            content = janusflow_config.flow_config(source.config, dtype_name)
        else:
            content = hf_config.deepseek_config(source.config, dtype_name)
        tokenizer_files.write_deepseek_files(folder, source.config, source.tokenizer, source.normalization)
    (folder / hf_config.FILE_NAME).write_text(json.dumps(content, indent=2) + "\n")
    shapes = their_shapes(source.config, table_of(source.config, layout))
    plan = {name: (shapes[name], dtypes[name]) for name in groups}
    with SafetensorsWriter(folder, plan, MAX_SHARD_BYTES) as writer:
        for name, group in groups.items():
            blocks = [link.transform.to_theirs(source.read(Piece(link.path, link.layer))) for link in group]
            values = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
            writer.write(name, cast(values, dtypes[name], name))
            report(values.nbytes)


def _grouped(config: FamilyConfig, layout: str) -> dict[str, list[Link]]:
    """Foreign name -> its links, the blocks of a fused tensor in order."""
    groups: dict[str, list[Link]] = {}
    for link in links(config, table_of(config, layout)):
        groups.setdefault(link.name, []).append(link)
    return {name: sorted(group, key=lambda link: link.part or (0, 1)) for name, group in groups.items()}


def block_of(tensor: np.ndarray, link: Link) -> np.ndarray:
    """Our piece of a foreign tensor."""
    if link.part:
        index, number = link.part
        tensor = np.split(tensor, number)[index]
    return link.transform.to_ours(tensor)


def _check_vocabulary(folder: epath.Path, tokenizer: Tokenizer, config: FamilyConfig) -> None:
    """An id beyond the rows would be embedded as NaN."""
    if tokenizer.vocab_size > config.llama.vocab_size:
        raise UserError(
            f"{folder}: {tokenizer.vocab_size} tokens in {FILE_NAME}, "
            f"but the model embeds only {config.llama.vocab_size}"
        )


def cast(values: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """Raises UserError for a finite value that is too large for the new dtype, as float16 often meets."""
    with np.errstate(over="ignore"):
        converted = values.astype(dtype, copy=False)
    narrowed = jnp.promote_types(values.dtype, dtype) != dtype
    if narrowed and np.isinf(converted).sum() > np.isinf(values).sum():
        raise UserError(f"{name}: holds values over {float(jnp.finfo(dtype).max):g}, the largest of {dtype}")
    return converted


def _ours(piece: Piece) -> str:
    return piece.path if piece.layer is None else f"{piece.path}[{piece.layer}]"


@contextmanager
def _new_folder(output: epath.Path) -> Iterator[epath.Path]:
    """A folder that appears under its name only when the block ends without an error.

    An empty folder of that name goes away first and comes back after an error: whether it can be replaced is known
    before the work, not after it.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output}: exists already, expected a new or empty folder")
    partial = output.parent / f".{output.name}.partial-{uuid.uuid4().hex[:8]}"
    was_empty = output.exists()
    try:
        partial.mkdir(parents=True)
        if was_empty:
            output.rmdir()
        yield partial
        partial.rename(output)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror or error})") from error
    finally:
        if partial.exists():
            partial.rmtree()
        if was_empty and not output.exists():
            output.mkdir()
