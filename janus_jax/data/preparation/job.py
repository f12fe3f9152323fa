"""A preparation job: a data set, the settings, and how the data set is cut into parts.

A part is written as one ArrayRecord file per task. It is a pure function of the data set, the settings, the two
tokenizers and the part's number. So it does not matter which process writes it, how often, or when one is killed.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from janus_jax.data.formats.base import DatasetFormat, Unit
from janus_jax.data.preparation.hashes import hash_file, hash_json
from janus_jax.data.preparation.record import RecordSettings
from janus_jax.data.records import FORMAT_VERSION as RECORD_VERSION
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.errors import UserError

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that a worker process needs; `make_job` makes one."""

    dataset: DatasetFormat
    output: str  # Path of the output folder.
    settings: RecordSettings
    tokenizer: str  # Path of a tokenizer.json, or "".
    max_drop_rate: float  # Fraction of the samples that may be dropped.
    allow_empty: bool  # Whether a data set without any record is fine.
    parts: tuple[tuple[Unit, ...], ...]  # Units of each part.
    identity: Mapping[str, Any]  # Everything that decides the bytes; an output folder of another identity is refused.


def make_job(
    dataset: DatasetFormat,
    output: epath.PathLike,
    settings: RecordSettings,
    *,
    num_output_files: int,
    tokenizer: str = "",
    max_drop_rate: float = 0.1,
    allow_empty: bool = False,
    image_tokenizer: str = "",
) -> Job:
    """Cuts a data set into parts. Writes nothing.

    Args:
        num_output_files: Number of files per task; there are fewer if the data set has fewer units.
        tokenizer: Path of a tokenizer.json, to count tokens.
        image_tokenizer: Hash of the parameters that compute the VQ codes.

    Raises:
        UserError: The data set has no samples, the tokenizer cannot be read, or a number is out of range.
    """
    if num_output_files < 1:
        raise UserError(f"--num_output_files={num_output_files}: expected at least 1")
    if not 0 <= max_drop_rate <= 1:
        raise UserError(f"--max_drop_rate={max_drop_rate}: expected a number from 0 to 1")
    if tokenizer:
        Tokenizer.from_file(tokenizer)
    units = dataset.units()
    if not units and not allow_empty:
        raise UserError("--input: the files are empty, expected at least one sample; --allow_empty accepts that")
    count = min(num_output_files, len(units))
    parts = tuple(tuple(units[i * len(units) // count : (i + 1) * len(units) // count]) for i in range(count))
    paths = sorted({unit.path for unit in units})
    versions = {path: _version(path) for path in paths if epath.Path(path).exists()}  # Records in memory have none.
    identity = {
        "format_version": FORMAT_VERSION,
        "record_version": RECORD_VERSION,
        "source": dataset.identity(),
        "input_sha256": hash_json([versions, units]),
        "settings": dataclasses.asdict(settings),
        "tokenizer_sha256": hash_file(epath.Path(tokenizer)) if tokenizer else "",
        "image_tokenizer_sha256": image_tokenizer,
        "num_shards": count,
    }
    return Job(
        dataset=dataset,
        output=str(output),
        settings=settings,
        tokenizer=tokenizer,
        max_drop_rate=max_drop_rate,
        allow_empty=allow_empty,
        parts=parts,
        identity=json.loads(json.dumps(identity)),
    )


def _version(path: epath.PathLike) -> tuple[float, float]:
    """(size, time of the last change) of an input file or folder; hashing its contents would take too long."""
    status = epath.Path(path).stat()
    return status.length, status.mtime
