"""Reading and writing files so that a full disk, a killed process or a damaged file does no harm.

Nothing here knows what the files hold. Paths are taken literally and may lie in a bucket. Where a user may write a
pattern, `matching` finds the files.
"""

import glob
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from etils import epath
from etils.epath import gpath

from janus_jax.errors import UserError

MAX_JSON_BYTES = 1 << 20


def write_whole(path: epath.PathLike, text: str) -> None:
    """Writes a text file in one step: a reader finds either the old text or the new one.

    Raises:
        OSError: the file cannot be written; the old one is as it was.
    """
    path = epath.Path(path)
    partial = path.parent / f".{path.name}.partial"
    try:
        partial.write_text(text)
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
    """The path from the root of the file system, which Orbax requires. A path in a bucket (gs://...) stays as it is.

    Libraries may list what lies below it: `[`, `]`, `*` and `?` in its name are no pattern.
    """
    literal = LiteralPath(path)
    return literal if "://" in os.fspath(literal) else literal.resolve()


class LiteralPath(gpath.PosixGPath):
    """A path of which `glob` reads only its argument as a pattern.

    `epath.Path.glob` (etils 1.15) also takes the name of the folder itself for one. In a folder such as `exp[1]`, Orbax
    (0.12.8) then finds none of the files that it has just written, and completes a checkpoint that nobody can read.
    """

    def glob(self, pattern: str) -> Iterator["LiteralPath"]:
        """The files and folders below this one that match a pattern."""
        for found in epath.Path(glob.escape(os.fspath(self))).glob(pattern):
            yield LiteralPath(found)


def matching(path: epath.PathLike) -> list[epath.Path]:
    """The files and folders that a user means: the one of exactly this name, otherwise those that match it, sorted.

    Only the last part of a path can be a pattern (`*`, `?`, `[...]`). The folder before it is taken literally.
    """
    literal = LiteralPath(path)
    if literal.exists():
        return [literal]
    return sorted(literal.parent.glob(literal.name)) if literal.parent.exists() else []


def why_none(path: epath.PathLike) -> str:
    """What to add to the message that `matching` found nothing; "" where the path says it all."""
    literal = LiteralPath(path)
    if not literal.parent.exists():
        rule = ", and only the last part of a path can be a pattern" if glob.has_magic(str(literal.parent)) else ""
        return f": there is no folder {str(literal.parent)!r}{rule}"
    return "; where [ belongs to the name, write [[]" if "[" in literal.name else ""


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


def write_json(path: epath.Path, content: Any) -> None:
    """Writes a JSON file in one step, for people to read."""
    write_whole(path, json.dumps(content, indent=2) + "\n")


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
