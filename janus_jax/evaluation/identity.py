"""What the results of a run depend on, stored with them, so that a run cannot go on with something else.

    OUTPUT/run.json                  the model, its precision and devices, decoding, versions
    OUTPUT/<benchmark>/plan.json     the data, prompts, selection and division into batches

The number of processes is in neither, since results do not depend on it.
"""

import importlib.metadata
import os
import subprocess
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from etils import epath

from janus_jax.data.preparation.hashes import hash_file, hash_json
from janus_jax.errors import UserError
from janus_jax.evaluation.benchmark import ImageRequest, Question
from janus_jax.evaluation.plan import Plan
from janus_jax.phases import phase
from janus_jax.storage import read_json, write_json
from janus_jax.weights.native import ARCHITECTURE_FILE, params_path

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "pillow", "tokenizers")  # their versions can change an answer
READING_THREADS = 8
MODEL_FILES = (".json", ".safetensors", ".bin")
INFORMATION = "information"  # key of fields that may differ when a run goes on


def hold_identity(path: epath.Path, identity: Mapping[str, Any], information: Mapping[str, Any]) -> None:
    """Stores the identity of a run, or compares it with the one that is stored.

    Args:
        identity: nested mappings of JSON values.
        information: stored for readers, and never compared.

    Raises:
        UserError: a field has another value than the stored one; it names the field and both values.
    """
    if not path.exists():
        write_json(path, {**identity, INFORMATION: information}, shared=True)
    # Another worker may have written it at the same moment, so it is compared in any case.
    check_identity(path, identity)


def check_identity(path: epath.Path, identity: Mapping[str, Any], ignored: Collection[str] = ()) -> None:
    """Compares an identity with the stored one; see `hold_identity`.

    Args:
        ignored: fields at the top that are not compared.

    Raises UserError when nothing is stored, or a field differs.
    """
    stored, current = (
        _flat({name: value for name, value in values.items() if name not in (INFORMATION, *ignored)})
        for values in (read_json(path), identity)
    )
    for field in dict.fromkeys([*current, *stored]):  # in the order of the identity, where causes stand first
        if stored.get(field) != current.get(field):
            raise UserError(
                f"{path}: the run was begun with {field}={stored.get(field)!r}, now it is {current.get(field)!r}; "
                "use the same, or another --output"
            )


def identify_model(folder: epath.PathLike, ema: bool = False) -> dict[str, Any]:
    """The identity of a folder with a model or a VAE: SHA-256 over the names and contents of its files.

    Raises UserError when a training workdir holds no checkpoint.
    """
    folder, step = epath.Path(folder), None
    files = {path.name: path for path in folder.iterdir() if path.suffix in MODEL_FILES}
    if (folder / ARCHITECTURE_FILE).exists():
        weights = params_path(folder, ema)
        for inner, _, names in weights.walk():
            files |= {str((inner / name).relative_to(weights)): inner / name for name in names}
        step = weights.parent.name if weights.parent.parent.name == "checkpoints" else None
    sizes = [path.stat().length for path in files.values()]
    hashes = {}
    with ThreadPoolExecutor(READING_THREADS) as pool, phase("hashing the model", sum(sizes), "B") as advance:
        for name, size, sha256 in zip(files, sizes, pool.map(hash_file, files.values()), strict=True):
            hashes[name] = sha256
            advance(size)
    return {"sha256": hash_json(hashes), "step": step, "ema": ema}


def identify_requests(
    requests: Sequence[Question] | Sequence[ImageRequest], files: Sequence[epath.Path], plan: Plan
) -> dict[str, Any]:
    """The identity of what is asked: the files of a benchmark, its requests, and their order."""
    root = os.path.commonpath([os.fspath(path.parent) for path in files]) if files else ""
    return {
        "data": {os.path.relpath(path, root): hash_file(path) for path in files if path.is_file()},
        "requests": {"count": len(requests), "distinct": plan.num_distinct, "sha256": hash_json(_described(requests))},
        "plan_sha256": plan.sha256,
    }


def versions() -> dict[str, str | None]:
    """Versions of the packages and the commit of this repository; None where it is no checkout of Git."""
    packages: dict[str, str | None] = {name: importlib.metadata.version(name) for name in PACKAGES}
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):  # no Git
        return {**packages, "commit": None}
    return {**packages, "commit": done.stdout.strip() or None}


def _described(requests: Sequence[Question] | Sequence[ImageRequest]) -> list[list[Any]]:
    return [
        [request.index, request.id, request.prompt, [image.name for image in request.images]]
        if isinstance(request, Question)
        else [request.index, request.id, request.prompt, request.num_images]
        for request in requests
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields as a.b.c."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
