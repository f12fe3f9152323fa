"""Folders of PEFT (0.21): `adapter_config.json` and `adapter_model.safetensors`, read and written.

Modules have the names of transformers' or of DeepSeek's classes, behind "base_model.model.". The adapter of a linear
layer is lora_A [rank, in] and lora_B [out, rank], with lora_magnitude_vector [out] for DoRA; that of an embedding
lora_embedding_A [rank, rows] and lora_embedding_B [columns, rank]. "base_layer" is a copy of a tensor of the base, and
any other name a parameter that was trained in full.
"""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from etils import epath
from safetensors.numpy import save

from janus_jax.errors import UserError
from janus_jax.models.config import FamilyConfig, JanusFlowConfig
from janus_jax.storage import disk_errors, new_folder
from janus_jax.weights.adapter import Adapter, LoraPair
from janus_jax.weights.foreign import block_of
from janus_jax.weights.name_map import DROPPED, Link, links, table_of
from janus_jax.weights.peft_config import CONFIG_FILE, PeftConfig, config_text, read_peft_config
from janus_jax.weights.reader import ModelReader, TensorSlice
from janus_jax.weights.tensor_files import TensorFiles, open_tensors

TENSOR_FILES = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."
NAMES = ("hf", "deepseek")  # whose names of modules
_PART = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_magnitude_vector(\.weight)?|lora_embedding_[AB]"
    r"|base_layer\.(weight|bias))"
)
_LINEAR = ("lora_A.weight", "lora_B.weight")
_EMBEDDING = ("lora_embedding_A", "lora_embedding_B")
_MAGNITUDE = "lora_magnitude_vector"


def read_adapter(folder: epath.PathLike, model: ModelReader) -> Adapter:
    """Reads a folder of PEFT.

    Args:
        model: the model that the adapter belongs to. Only copies of its tensors in the folder are compared with it.

    Raises:
        UserError: no or a damaged folder, tensors that the model has no place for, that are missing, not finite or of
            another shape, copies of another base, or a config that contradicts the tensors.
    """
    folder = epath.Path(folder)
    config = read_peft_config(folder)
    path = next((folder / name for name in TENSOR_FILES if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"{folder}: holds neither {' nor '.join(TENSOR_FILES)}")
    with open_tensors(path) as files:
        return _Folder(path, config, files, model).read()


class _Names(NamedTuple):
    """Where the tensors of one naming belong in a model."""

    links: Mapping[str, list[Link]]  # name of a tensor -> its parts in ours
    dropped: str  # pattern of the names that our models do not have


class _Folder:
    """A folder of PEFT while it is read."""

    def __init__(self, path: epath.Path, config: PeftConfig, files: TensorFiles, model: ModelReader):
        self._path, self._config, self._files, self._model = path, config, files, model
        self._modules: dict[str, dict[str, str]] = {}  # module -> part -> name of the tensor
        self._whole: dict[str, str] = {}  # name in the model -> name of the tensor
        for name in files.tensors:
            if not name.startswith(PREFIX):
                raise UserError(f"{path}: {name}, expected names that begin with {PREFIX}")
            match = _PART.fullmatch(name.removeprefix(PREFIX))
            if match:
                part = _MAGNITUDE if match["part"].startswith(_MAGNITUDE) else match["part"]
                self._modules.setdefault(match["module"], {})[part] = name
            else:
                self._whole[name.removeprefix(PREFIX)] = name
        self._names = self._find_names()
        self._config = config.for_modules(name.rpartition(".")[0] for name in self._names.links)

    def read(self) -> Adapter:
        pairs: dict[TensorSlice, LoraPair] = {}
        for module, parts in self._modules.items():
            pairs |= self._pairs(module, parts)
        whole: dict[TensorSlice, np.ndarray] = {}
        for name, stored in self._whole.items():
            if not self._config.saves_module(name.rpartition(".")[0]):
                raise self._wrong(stored, f"modules_to_save of {CONFIG_FILE} that names it")
            values = self._values(stored, self._shape(name))
            whole |= {link.slice: block_of(values, link) for link in self._names.links[name]}
        self._require_all_targets()
        return Adapter(pairs, whole)

    def _find_names(self) -> _Names:
        """The naming that has all tensors of the file. Raises UserError for tensors that no naming has."""
        wanted = {f"{module}.weight" for module in self._modules} | self._whole.keys()
        found = [_names(self._model.config, names) for names in _namings(self._model.config)]
        unknown = [
            {name for name in wanted - names.links.keys() if not re.fullmatch(names.dropped, name)} for names in found
        ]
        best = min(range(len(found)), key=lambda i: len(unknown[i]))
        if unknown[best]:
            raise UserError(
                f"{self._path}: {len(unknown[best])} tensors are of modules that the model does not have, one is "
                f"{min(unknown[best])}"
            )
        names = found[best]
        for module in [module for module in self._modules if f"{module}.weight" not in names.links]:
            del self._modules[module]  # of a module whose output the model does not use
        self._whole = {name: stored for name, stored in self._whole.items() if name in names.links}
        return names

    def _pairs(self, module: str, parts: Mapping[str, str]) -> dict[TensorSlice, LoraPair]:
        """The adapters of one module: several where it is fused and ours are not."""
        name = f"{module}.weight"
        self._compare_copies(module, parts)
        first, second = _EMBEDDING if set(_EMBEDDING) & parts.keys() else _LINEAR
        missing = [part for part in (first, second) if part not in parts]
        if missing:
            raise UserError(f"{self._path}: {PREFIX}{module}.{missing[0]} is missing, beside {min(parts.values())}")
        if not self._config.targets_module(module):
            raise self._wrong(parts[first], f"target_modules of {CONFIG_FILE} that name it")
        rows, columns = self._matrix_shape(name)
        embeds = first == _EMBEDDING[0]
        rank = self._files.tensors[parts[first]].shape[0] if self._files.tensors[parts[first]].shape else 0
        scale = self._config.scale(module, rank)
        if embeds:
            a = self._values(parts[first], (rank, rows)).T
            b = self._values(parts[second], (columns, rank)).T
        else:
            a = self._values(parts[first], (rank, columns)).T
            b = self._values(parts[second], (rows, rank)).T
        magnitude = self._magnitude(module, parts, rows, embeds)
        pairs = {}
        for link in self._names.links[name]:
            i, n = link.part or (0, 1)
            block = slice(i * rows // n, (i + 1) * rows // n)
            columns_of = b if embeds else b[:, block]
            pairs[link.slice] = LoraPair(a, columns_of, scale, None if magnitude is None else magnitude[block])
        return pairs

    def _magnitude(self, module: str, parts: Mapping[str, str], rows: int, embeds: bool) -> np.ndarray | None:
        if self._config.dora != (_MAGNITUDE in parts):
            raise UserError(
                f"{self._path}: {module} has {'no ' if self._config.dora else 'a '}{_MAGNITUDE}, but {CONFIG_FILE} has "
                f"use_dora={self._config.dora}"
            )
        if not self._config.dora:
            return None
        if embeds:
            raise self._wrong(parts[_MAGNITUDE], "no DoRA of an embedding, which is not read here")
        return self._values(parts[_MAGNITUDE], (rows,))

    def _compare_copies(self, module: str, parts: Mapping[str, str]) -> None:
        """Raises UserError when a tensor of the base that PEFT has copied is not that of the model."""
        for kind in ("weight", "bias"):
            stored = parts.get(f"base_layer.{kind}")
            if stored is None:
                continue
            name = f"{module}.{kind}"
            if name not in self._names.links:
                raise self._wrong(stored, "a tensor that the model has")
            values = self._files.read(stored)
            for link in self._names.links[name]:
                ours = self._model.read(link.slice).astype(values.dtype)
                if not np.array_equal(block_of(values, link), ours):
                    raise UserError(
                        f"{self._path}: {stored} is not the model's {link.path}: it belongs to another base"
                    )

    def _values(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A tensor as float32. Raises UserError for another shape or dtype and for values that are not finite."""
        info = self._files.tensors[name]
        info.check_floating(self._path, name)
        if info.shape != shape:
            raise UserError(f"{self._path}: {name} is {list(info.shape)}, expected {list(shape)}")
        values = self._files.read(name).astype(np.float32)
        if not np.isfinite(values).all():
            raise UserError(f"{self._path}: {name} holds values that are not finite")
        return values

    def _shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor of the base under its foreign name."""
        return _foreign_shape(self._model, self._names.links[name])

    def _matrix_shape(self, name: str) -> tuple[int, int]:
        shape = self._shape(name)
        if len(shape) != 2:
            raise UserError(
                f"{self._path}: {name.removesuffix('.weight')} is no linear layer or embedding, whose adapter could be "
                "read"
            )
        return shape[0], shape[1]

    def _require_all_targets(self) -> None:
        """Raises UserError when the config names modules whose adapters are not in the file."""
        if not self._config.names_all_modules:
            return
        for name in self._names.links:
            module, _, kind = name.rpartition(".")
            is_matrix = kind == "weight" and len(self._shape(name)) == 2
            is_there = module in self._modules or name in self._whole
            if is_matrix and self._config.targets_module(module) and not is_there:
                raise UserError(f"{self._path}: {PREFIX}{module} has no adapter, but {CONFIG_FILE} targets it")

    def _wrong(self, name: str, expected: str) -> UserError:
        return UserError(f"{self._path}: {name}, expected {expected}")


def write_adapter(
    folder: epath.PathLike, adapter: Adapter, model: ModelReader, base: str, names: str = "hf", rslora: bool = False
) -> None:
    """Writes a folder of PEFT in float32, whose base is `model`.

    Args:
        base: what `base_model_name_or_path` says.
        names: "hf" or "deepseek"; JanusFlow has the latter only.
        rslora: writes alpha so that the scale is alpha / sqrt(rank).

    Raises:
        UserError: `folder` is not empty, or adapters of a fused matrix cannot be joined, or only a part of a module was
            trained in full.
    """
    if names not in _namings(model.config):
        raise UserError(f"names={names!r}: this model has modules with the names of {_namings(model.config)[0]} only")
    by_name = _names(model.config, names).links
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for name, parts in by_name.items():
        found = [adapter.pairs[link.slice] for link in parts if link.slice in adapter.pairs]
        if not found:
            continue
        module = name.removesuffix(".weight")
        pair = _joined(name, found, len(parts))
        rank = pair.a.shape[1]
        ranks[module], alphas[module] = rank, pair.scale * (math.sqrt(rank) if rslora else rank)
        first, second = _EMBEDDING if parts[0].transform.name == "as is" else _LINEAR
        tensors[f"{module}.{first}"], tensors[f"{module}.{second}"] = pair.a.T, pair.b.T
        if pair.magnitude is not None:
            tensors[f"{module}.{_MAGNITUDE}"] = pair.magnitude
    whole = _whole_tensors(adapter, by_name)
    saved = sorted({name.rpartition(".")[0] for name in whole})
    dora = any(pair.magnitude is not None for pair in adapter.pairs.values())
    text = config_text(base, list(ranks), saved, ranks, alphas, rslora=rslora, dora=dora)
    arrays = {PREFIX + name: np.ascontiguousarray(values, np.float32) for name, values in (tensors | whole).items()}
    with new_folder(epath.Path(folder)) as new, disk_errors(new):
        # The library's `save_file` would make a file that only its owner may read.
        (new / TENSOR_FILES[0]).write_bytes(save(arrays, metadata={"format": "pt"}))
        (new / CONFIG_FILE).write_text(text)


def _whole_tensors(adapter: Adapter, by_name: Mapping[str, list[Link]]) -> dict[str, np.ndarray]:
    """Parameters that were trained in full, under their foreign names. PEFT stores only whole modules."""
    whole = {}
    for name, parts in by_name.items():
        found = [part.transform.to_theirs(adapter.whole[part.slice]) for part in parts if part.slice in adapter.whole]
        if len(found) not in (0, len(parts)):
            raise UserError(f"{name}: only a part of it was trained in full, which PEFT cannot store")
        if found:
            whole[name] = found[0] if len(found) == 1 else np.concatenate(found)
    for name in whole:
        module = name.rpartition(".")[0]
        missing = [other for other in by_name if other.rpartition(".")[0] == module and other not in whole]
        if missing or not module:
            raise UserError(f"{name}: trained in full without all of its module, which PEFT cannot store")
    held = {part.slice for parts in by_name.values() for part in parts}
    if lost := sorted(str(part) for part in adapter.whole if part not in held):
        raise UserError(f"{lost[0]}: trained in full, but the classes of PyTorch do not have it")
    return whole


def _joined(name: str, pairs: list[LoraPair], number: int) -> LoraPair:
    """One adapter of a fused matrix from those of its parts, which must share their first matrix."""
    first = pairs[0]
    if len(pairs) != number or any(pair.scale != first.scale or not np.array_equal(pair.a, first.a) for pair in pairs):
        raise UserError(f"{name}: fuses matrices whose adapters differ, which one adapter cannot hold: use names=hf")
    if number == 1:
        return first
    magnitudes = [pair.magnitude for pair in pairs if pair.magnitude is not None]
    magnitude = np.concatenate(magnitudes) if magnitudes else None
    return LoraPair(first.a, np.concatenate([pair.b for pair in pairs], axis=1), first.scale, magnitude)


def _namings(config: FamilyConfig) -> tuple[str, ...]:
    return ("deepseek",) if isinstance(config, JanusFlowConfig) else NAMES


def _names(config: FamilyConfig, names: str) -> _Names:
    table = table_of(config, names)
    by_name: dict[str, list[Link]] = {}
    for link in links(config, table):
        by_name.setdefault(link.name, []).append(link)
    return _Names(
        {name: sorted(parts, key=lambda link: link.part or (0, 1)) for name, parts in by_name.items()}, DROPPED[table]
    )


def _foreign_shape(model: ModelReader, parts: list[Link]) -> tuple[int, ...]:
    """Shape of a foreign tensor, from the parameters of ours that it holds."""
    link = parts[0]
    shape = model.parameters[link.path].shape
    values = np.broadcast_to(np.float32(0), shape if link.layer is None else shape[1:])
    one = link.transform.to_theirs(values).shape
    return (one[0] * len(parts), *one[1:]) if link.part else one
