"""The workdir of a run that trains adapters: `lora.json` says of which base, and how to read both as one model.

Its checkpoints hold only what is trained. The base stays in its own folder. A digest of each of its tensors is kept, so
that another base, or one that has changed, is refused.
"""

import dataclasses
import hashlib
from collections.abc import Mapping

import numpy as np
from etils import epath

from janus_jax.errors import UserError
from janus_jax.models.layers import LORA_A, LORA_B
from janus_jax.models.lora import adapted_matrix, adapter_path, is_trained_adapter
from janus_jax.models.params import abstract_params, flatten
from janus_jax.storage import write_json
from janus_jax.weights.adapter import Adapter, LoraPair, MergedTensors
from janus_jax.weights.json_fields import Fields, read_fields
from janus_jax.weights.native import params_path
from janus_jax.weights.orbax_io import OrbaxReader
from janus_jax.weights.reader import ModelReader, TensorReader, TensorSlice, slices_of

RECORD_FILE = "lora.json"
FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class LoraRecord:
    """What the checkpoints of a workdir belong to."""

    base: str  # folder of the model that has the adapters
    rules: list[list[str | float]]  # pattern, rank and alpha of each rule
    rslora: bool
    trained: list[str]  # parameters of the model itself that are trained in full
    scales: dict[str, float]  # path of each weight matrix with an adapter -> its factor
    digests: dict[str, str]  # slice of a frozen parameter -> `digest` of its values


def digest(values: np.ndarray) -> str:
    """A hash of values, which is the same for every dtype that holds them exactly."""
    return hashlib.blake2b(np.ascontiguousarray(values, np.float32).tobytes(), digest_size=12).hexdigest()


def write_record(workdir: epath.Path, record: LoraRecord) -> None:
    """Writes lora.json."""
    write_json(workdir / RECORD_FILE, {"format_version": FORMAT_VERSION, **dataclasses.asdict(record)})


def read_record(workdir: epath.Path) -> LoraRecord:
    """Reads lora.json. Raises UserError when it is damaged or of an unknown version."""
    fields = read_fields(workdir / RECORD_FILE)
    if fields.values.get("format_version") != FORMAT_VERSION:
        raise fields.wrong("format_version", str(FORMAT_VERSION))
    kinds = {"base": str, "rules": list, "rslora": bool, "trained": list, "scales": dict, "digests": dict}
    for name, kind in kinds.items():
        if not isinstance(fields.values.get(name), kind):
            raise fields.wrong(name, f"a {kind.__name__}")
    for name, kind in (("scales", float), ("digests", str)):
        _check_values(fields, name, kind)
    return LoraRecord(**{name: fields.values[name] for name in kinds})


def open_lora_run(workdir: epath.Path, record: LoraRecord, base: ModelReader, model: ModelReader) -> ModelReader:
    """A training workdir as one model: its base with the newest adapters merged into it.

    Args:
        base: the model in `record.base`.
        model: the workdir's architecture, tokenizer and normalization, with its trained parameters as tensors.
    """
    adapter = adapter_of_run(model.tensors, record)
    shapes = {path: leaf.shape for path, leaf in flatten(abstract_params(model.config)).items()}
    missing = sorted(shapes.keys() - base.parameters.keys() - set(record.trained))
    if missing:
        raise UserError(f"{workdir / RECORD_FILE}: base={record.base!r} lacks {missing[0]}")
    tensors = MergedTensors(_CheckedBase(base, record), adapter, shapes)
    return dataclasses.replace(model, tensors=tensors)


def open_trained(
    workdir: epath.PathLike, record: LoraRecord, ema: bool = False, step: int | None = None
) -> OrbaxReader:
    """The trained parameters of a checkpoint: matrices of adapters, and parameters that are trained in full.

    Raises UserError when they are not those of the record.
    """
    reader = OrbaxReader(params_path(workdir, ema, step))
    expected = set(record.trained)
    expected |= {adapter_path(path, name) for path in record.scales for name in (LORA_A, LORA_B)}
    if different := sorted(expected ^ reader.parameters.keys()):
        raise UserError(f"{workdir}: {len(different)} parameters are not those of {RECORD_FILE}: {different[0]}")
    return reader


def adapter_of_run(trained: TensorReader, record: LoraRecord) -> Adapter:
    """The adapters of a checkpoint in host memory."""
    values = {
        part: np.asarray(trained.read(part), np.float32)
        for path, info in trained.parameters.items()
        for part in slices_of(path, info)
    }
    pairs = {}
    for (path, layer), a in values.items():
        if path.endswith(f"/{LORA_A}"):
            matrix = adapted_matrix(path)
            b = values[TensorSlice(adapter_path(path, LORA_B), layer)]
            pairs[TensorSlice(matrix, layer)] = LoraPair(a, b, record.scales[matrix])
    whole = {part: array for part, array in values.items() if not is_trained_adapter(part.path)}
    return Adapter(pairs, whole)


class _CheckedBase:
    """A reader of a base that refuses values which are not those that the adapters were trained on."""

    def __init__(self, base: ModelReader, record: LoraRecord):
        self._base, self._record = base, record
        self.parameters = base.parameters

    def read(self, part: TensorSlice) -> np.ndarray:
        values = self._base.read(part)
        require_same_base(self._record.base, {str(part): digest(values)}, self._record.digests)
        return values

    def origin(self, part: TensorSlice) -> str:
        return self._base.origin(part)


def require_same_base(base: str, found: Mapping[str, str], recorded: Mapping[str, str]) -> None:
    """Raises UserError when tensors of a base have other values than those that the adapters were trained on."""
    different = sorted(part for part in found if recorded.get(part, found[part]) != found[part])
    if different:
        raise UserError(
            f"{base}: {len(different)} tensors are not those that the adapters were trained on, one is {different[0]}: "
            f"expected the base of {RECORD_FILE}, unchanged"
        )


def _check_values(fields: Fields, name: str, kind: type) -> None:
    for key, value in fields.values[name].items():
        if not isinstance(value, kind):
            raise fields.object(name).wrong(key, f"a {kind.__name__}")
