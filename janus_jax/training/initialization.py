"""The parameters with which a run starts: those of a whole model, those of pretrained parts, and fresh ones."""

import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import tokenizers
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from janus_jax.data.images import JANUS_NORMALIZATION
from janus_jax.data.tokenizer import FILE_NAME, Tokenizer
from janus_jax.errors import UserError
from janus_jax.models.config import CodeModelConfig, FamilyConfig, ModelConfig, VQConfig
from janus_jax.models.lora import INT8, Lora
from janus_jax.models.params import Params, abstract_params, flatten, init_params
from janus_jax.models.scan_layers import is_stacked
from janus_jax.sharding import param_shardings
from janus_jax.training.checkpointing import differences
from janus_jax.weights.load import read_param
from janus_jax.weights.lora_run import digest
from janus_jax.weights.native import open_params, read_architecture
from janus_jax.weights.open_model import open_model
from janus_jax.weights.pretrained_parts import PARTS, open_llamagen_vq, open_part, same_function
from janus_jax.weights.quantization import quantize, scale_path
from janus_jax.weights.reader import TensorInfo, TensorReader, slices_of

FRESH = "fresh"


class Origin(NamedTuple):
    module: str
    parameters: int
    source: str  # field of the config and folder, or "fresh"


class _Source(NamedTuple):
    field: str  # name of the field of `config.init`
    location: str
    reader: TensorReader


class _SavedParams(Mapping[str, np.ndarray]):
    """Saved parameters by their paths, read when they are asked for. Only the last one is kept in memory.

    Attributes:
        digests: slice -> digest of the values of every frozen parameter that was read.
    """

    def __init__(self, sources: Mapping[str, _Source], frozen: Mapping[str, str]):
        """With adapters, `frozen` has the dtype in which each frozen parameter is kept."""
        int8 = {scale_path(path): sources[path] for path, dtype in frozen.items() if dtype == INT8}
        self._sources, self._frozen = {**sources, **int8}, frozen
        self._last: dict[str, np.ndarray] = {}
        self.digests: dict[str, str] = {}

    def __getitem__(self, path: str) -> np.ndarray:
        if path not in self._last:
            self._last = {}  # frees it before the next one is read
            source = self._sources[path]
            with _naming(source.field, source.location):
                self._last = {path: read_param(source.reader, path, np.float32)}
            if path in self._frozen:
                self._keep_frozen(path)
        return self._last[path]

    def _keep_frozen(self, path: str) -> None:
        values = self._last[path]
        parts = slices_of(path, TensorInfo(values.shape, values.dtype))
        self.digests |= {str(part): digest(values if part.layer is None else values[part.layer]) for part in parts}
        if self._frozen[path] == INT8:
            matrices, scales = zip(*map(quantize, values if is_stacked(path) else [values]), strict=True)
            join = np.stack if is_stacked(path) else operator.itemgetter(0)
            self._last = {path: join(matrices), scale_path(path): join(scales)}

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


class Initial(NamedTuple):
    """What a run starts with."""

    params: Params
    origins: list[Origin]
    digests: dict[str, str]  # of the base of adapters (`weights.lora_run`); empty without adapters


def initial_params(
    config: ConfigDict,
    architecture: ModelConfig,
    mesh: Mesh,
    tokenizer: Tokenizer | None = None,
    lora: Lora | None = None,
) -> Initial:
    """The parameters of step 0, as `config.init` says, and where those of each module come from.

    Args:
        tokenizer: the tokenizer of the run.
        lora: the adapters of the run. The checkpoint must then hold all frozen parameters.

    Raises:
        UserError: a folder is not what its field says, has another architecture, or has text embeddings for other ids
            than the tokenizer's; names the field.
    """
    sources: dict[str, _Source] = {}
    for field in ("checkpoint", *PARTS):
        location = config.init[field]
        if location:
            with _naming(field, location):
                reader = _open(field, location, architecture, tokenizer)
            sources |= dict.fromkeys(reader.parameters, _Source(field, location, reader))
    frozen = dict(lora.frozen) if lora else {}
    _require_whole_base(config, architecture, sources, frozen)
    shardings = param_shardings(architecture, mesh, lora)
    known = _SavedParams(sources, frozen)
    params = init_params(architecture, config.seed, shardings, known, lora)
    return Initial(params, _origins(architecture, sources), known.digests)


def format_origins(origins: list[Origin]) -> str:
    """The table that is printed when a run starts."""
    lines = [f"{'module':<14}{'parameters':>15}  from"]
    return "\n".join(lines + [f"{name:<14}{number:>15,}  {source}" for name, number, source in origins])


def _open(field: str, location: str, architecture: ModelConfig, tokenizer: Tokenizer | None) -> TensorReader:
    """A reader of all parameters that one field of `config.init` brings."""
    if field != "checkpoint":
        takes = CodeModelConfig if field == "vq" else FamilyConfig
        if not isinstance(architecture, takes):
            raise UserError(f"{type(architecture).__name__} takes no such part")
        saved_tokenizer = epath.Path(location) / FILE_NAME
        if field == "llm" and tokenizer is not None and saved_tokenizer.exists():
            _require_same_ids(tokenizers.Tokenizer.from_file(str(saved_tokenizer)), tokenizer)
        return open_part(field, location, architecture)
    if not isinstance(architecture, FamilyConfig):
        if isinstance(architecture, VQConfig) and epath.Path(location).is_file():
            return open_llamagen_vq(location, architecture)
        saved = read_architecture(location)
        _require_same(saved, architecture)
        return open_params(location, saved)
    model = open_model(location)
    _require_same(model.config, architecture)
    if tokenizer is not None:
        _require_same_ids(model.tokenizer.backend, tokenizer)
    if model.normalization != JANUS_NORMALIZATION:
        raise UserError(f"its images have {model.normalization}, training uses {JANUS_NORMALIZATION}")
    return model


def _require_whole_base(
    config: ConfigDict, architecture: ModelConfig, sources: Mapping[str, _Source], frozen: Mapping[str, str]
) -> None:
    """Raises UserError for a frozen parameter below adapters that the base lacks, wholly or in part."""
    shapes = {path: leaf.shape for path, leaf in flatten(abstract_params(architecture)).items()}
    for path in frozen:
        if path not in sources or sources[path].reader.parameters[path].shape != shapes[path]:
            raise UserError(
                f"init.checkpoint={config.init.checkpoint!r}: lacks values of {path}, which would be random and in no "
                "checkpoint: expected a base with all frozen parameters, or config.trainable with this one"
            )


def _require_same(saved: ModelConfig, wanted: ModelConfig) -> None:
    saved = same_function(saved, wanted)
    if saved != wanted:
        raise UserError(f"holds another architecture than the config's: {differences(saved, wanted)}")


def _require_same_ids(saved: tokenizers.Tokenizer, tokenizer: Tokenizer) -> None:
    """The run's tokenizer may have more tokens, but none with another id, which would get another token's embedding."""
    ids = tokenizer.backend.get_vocab()
    moved = sorted(token for token, id in saved.get_vocab().items() if ids.get(token) != id)
    if moved:
        raise UserError(
            f"its tokenizer.json has {len(moved)} tokens with other ids than config.data.tokenizer, e.g. {moved[0]!r}"
        )


def _origins(architecture: ModelConfig, sources: Mapping[str, _Source]) -> list[Origin]:
    """A line per top-level module and source. Rows of a vocabulary that the source does not have count as fresh."""
    sizes: dict[tuple[str, str], int] = {}
    for path, leaf in flatten(abstract_params(architecture)).items():
        module, loaded, name = path.split("/")[0], 0, FRESH
        if path in sources:
            source = sources[path]
            loaded = int(np.prod(source.reader.parameters[path].shape))
            name = f"init.{source.field}={source.location}"
        for origin, size in ((name, loaded), (FRESH, leaf.size - loaded)):
            if size:
                sizes[module, origin] = sizes.get((module, origin), 0) + size
    return [Origin(module, size, origin) for (module, origin), size in sizes.items()]


@contextmanager
def _naming(field: str, location: str) -> Iterator[None]:
    """Puts the field in front of the message when something is wrong with its folder."""
    try:
        yield
    except UserError as error:
        raise UserError(f"init.{field}={location!r}: {error}") from error
