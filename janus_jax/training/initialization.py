"""Where the parameters of a new run come from: a whole model, pretrained parts in its place, the rest fresh."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import tokenizers
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from janus_jax.data.images import JANUS_NORMALIZATION
from janus_jax.data.tokenizer import FILE_NAME, Tokenizer
from janus_jax.errors import UserError
from janus_jax.models.config import FamilyConfig, JanusConfig, ModelConfig
from janus_jax.models.params import Params, abstract_params, flatten, init_params
from janus_jax.sharding import param_shardings
from janus_jax.training.checkpointing import differences
from janus_jax.weights import native, open_model
from janus_jax.weights.pretrained_parts import PARTS, load_part, same_function


class Origin(NamedTuple):
    module: str
    parameters: int
    source: str  # field and folder, or "fresh"


def initial_params(
    config: ConfigDict, architecture: ModelConfig, mesh: Mesh, tokenizer: Tokenizer | None = None
) -> tuple[Params, list[Origin]]:
    """Parameters of step 0 by `config.init`, and which module came from where.

    Args:
        tokenizer: of the run.

    Raises:
        UserError: a folder that is not what its field says, of another architecture, or whose text embeddings belong
            to other ids than the tokenizer's; names the field.
    """
    given: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for field in ("checkpoint", *PARTS):
        location = config.init[field]
        if location:
            with _naming(f"init.{field}={location!r}"):
                values = _load(field, location, architecture, tokenizer)
            given |= values
            sources |= dict.fromkeys(values, f"init.{field}={location}")
    params = init_params(architecture, config.seed, param_shardings(architecture, mesh), given)
    return params, _origins(architecture, given, sources)


def format_origins(origins: list[Origin]) -> str:
    """The table printed when a run starts."""
    lines = [f"{'module':<14}{'parameters':>15}  from"]
    return "\n".join(lines + [f"{name:<14}{number:>15,}  {source}" for name, number, source in origins])


def _load(field: str, location: str, architecture: ModelConfig, tokenizer: Tokenizer | None) -> Mapping[str, Any]:
    """Path -> values of everything that one field brings."""
    if field != "checkpoint":
        if not isinstance(architecture, FamilyConfig) or (field == "vq" and not isinstance(architecture, JanusConfig)):
            raise UserError(f"{type(architecture).__name__} takes no such part")
        own = epath.Path(location) / FILE_NAME
        if field == "llm" and tokenizer is not None and own.exists():
            _require_same_ids(tokenizers.Tokenizer.from_file(str(own)), tokenizer)
        return load_part(field, location, architecture)
    if not isinstance(architecture, FamilyConfig):
        saved = native.read_architecture(location)
        _require_same(saved, architecture)
        return flatten(native.load_params(location, saved))
    source = open_model.open_folder(location)
    _require_same(source.config, architecture)
    if tokenizer is not None:
        _require_same_ids(source.tokenizer.backend, tokenizer)
    if source.normalization != JANUS_NORMALIZATION:
        raise UserError(f"its images have {source.normalization}, training uses {JANUS_NORMALIZATION}")
    wanted = abstract_params(architecture).keys()
    return flatten({name: part for name, part in open_model.load_params(source).items() if name in wanted})


def _require_same(saved: ModelConfig, wanted: ModelConfig) -> None:
    saved = same_function(saved, wanted)
    if saved != wanted:
        raise UserError(f"holds another architecture than the config's: {differences(saved, wanted)}")


def _require_same_ids(saved: tokenizers.Tokenizer, tokenizer: Tokenizer) -> None:
    """The run's tokenizer may know more tokens, but none by another id: its embedding would be another token's."""
    own = tokenizer.backend.get_vocab()
    moved = sorted(token for token, id in saved.get_vocab().items() if own.get(token) != id)
    if moved:
        raise UserError(
            f"its tokenizer.json has {len(moved)} tokens with other ids than config.data.tokenizer, e.g. {moved[0]!r}"
        )


def _origins(architecture: ModelConfig, given: Mapping[str, Any], sources: Mapping[str, str]) -> list[Origin]:
    """A line per top-level module and source; rows of a larger vocabulary than the source's count as fresh."""
    sizes: dict[tuple[str, str], int] = {}
    for path, leaf in flatten(abstract_params(architecture)).items():
        module, loaded = path.split("/")[0], given[path].size if path in given else 0
        for source, size in ((sources.get(path, "fresh"), loaded), ("fresh", leaf.size - loaded)):
            if size:
                sizes[module, source] = sizes.get((module, source), 0) + size
    return [Origin(module, size, source) for (module, source), size in sizes.items()]


@contextmanager
def _naming(field: str) -> Iterator[None]:
    """Puts the field in front of what is wrong with its folder."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{field}: {error}") from error
