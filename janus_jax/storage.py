"""Reading and writing files so that a full disk, a killed process or a damaged file does no harm.

Nothing here knows what the files hold. Paths are taken literally, never as patterns, and may lie in a bucket.
"""

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from etils import epath

from janus_jax.errors import UserError

MAX_JSON_BYTES = 1 << 20


def write_whole(path: epath.PathLike, content: str | bytes, shared: bool = False) -> None:
    """Writes a file in one step: a reader finds either the old content or the new one.

    Args:
        shared: other processes may write the same file at the same time; the last one wins. A killed process then
            leaves a hidden file behind, which nobody else would write again.

    Raises:
        OSError: the file cannot be written; the old one is as it was.
    """
    path = epath.Path(path)
    partial = path.parent / f".{path.name}.partial{f'-{uuid.uuid4().hex[:8]}' if shared else ''}"
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(output: epath.Path) -> Iterator[epath.Path]:
    """Yields a temporary folder that gets the name `output` when the block ends without an error.

    After an error nothing is left of it. An empty folder of that name is removed first and restored after an error:
    so a folder that cannot be replaced is noticed before the work, not after it.

    Raises:
        UserError: `output` exists and is not an empty folder, or cannot be written.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output}: exists already, expected a new or empty folder")
    partial = output.parent / f".{output.name}.partial-{uuid.uuid4().hex[:8]}"
    was_empty = output.exists()
    try:
        with disk_errors(output):
            partial.mkdir(parents=True)
            if was_empty:
                output.rmdir()
            yield partial
            partial.rename(output)
    finally:
        if partial.exists():
            partial.rmtree()
        if was_empty and not output.exists():
            output.mkdir()


def prepare_folder(flag: str, folder: epath.PathLike) -> epath.Path:
    """Creates a folder and proves that files can be written there. Raises UserError naming the flag."""
    folder = absolute(folder)
    probe = folder / f".write_test_{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(f"--{flag}={folder}: cannot be written ({error.strerror})") from error
    return folder


def absolute(path: epath.PathLike) -> epath.Path:
    """The path from the root of the file system, which Orbax requires. A path in a bucket (gs://...) stays as it is."""
    path = epath.Path(path)
    return path if "://" in os.fspath(path) else path.resolve()


def read_json(path: epath.Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: the file is missing, is larger than `max_bytes`, or is not JSON.
    """
    try:
        if path.stat().length > max_bytes:
            raise UserError(f"{path}: larger than {max_bytes} bytes, expected a short JSON file")
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing") from error
    except UserError:
        raise
    except (ValueError, RecursionError, OSError) as error:  # not UTF-8, not JSON, nested too deeply, a folder
        raise UserError(f"{path}: not readable as JSON ({error})") from error


def write_json(path: epath.Path, content: Any, shared: bool = False) -> None:
    """Writes a JSON file in one step, for people to read; `shared` is that of `write_whole`."""
    write_whole(path, json.dumps(content, indent=2) + "\n", shared)


@contextmanager
def disk_errors(path: epath.Path, *more: type[Exception]) -> Iterator[None]:
    """Turns an error of the operating system while `path` is written into a UserError.

    Args:
        more: further exceptions with which a library reports such an error.
    """
    errors: tuple[type[Exception], ...] = (OSError, *more)
    try:
        yield
    except UserError:  # which is a ValueError, and `more` may contain that
        raise
    except errors as error:
        raise UserError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from error
