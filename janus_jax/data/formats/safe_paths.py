"""Reads files that a data set names: only inside their root folder, only regular files, only up to a size."""

import os
import stat
from collections.abc import Sequence

from etils import epath

from janus_jax.data.dropped_samples import Reason, SampleError
from janus_jax.errors import UserError

FOLLOW_LINKS = ("inside", "roots", "anywhere")
# What file managers and network drives leave behind, in lower case.
_LITTER = {"__macosx", "icon\r", "@eadir", "#recycle", "$recycle.bin", "thumbs.db", "ehthumbs.db", "desktop.ini"}


def is_hidden(path: str) -> bool:
    """Whether a file is none of the data: its name or that of a folder above it begins with a dot, or is litter."""
    parts = (part for part in path.replace("\\", "/").split("/") if part not in ("", ".", ".."))
    return any(part.startswith(".") or part.lower() in _LITTER for part in parts)


def link_targets(follow_links: str, roots: Sequence[str]) -> tuple[str, ...] | None:
    """Folders outside of its own root that a link may lead to; None if it may lead anywhere.

    Args:
        follow_links: One of FOLLOW_LINKS, the value of the flag of this name.
        roots: All folders that the user named.

    Raises:
        UserError: `follow_links` has another value.
    """
    if follow_links not in FOLLOW_LINKS:
        raise UserError(f"--follow_links={follow_links}: expected one of {', '.join(FOLLOW_LINKS)}")
    return {"inside": (), "roots": tuple(roots), "anywhere": None}[follow_links]


def check_relative(path: str) -> None:
    """Raises SampleError for a path that could leave the folder it is relative to."""
    parts = path.replace("\\", "/").split("/")
    if not path or "\0" in path or parts[0] == "" or ".." in parts or parts[0][1:2] == ":":
        raise SampleError(Reason.PATH_ESCAPE, f"path {path!r}, expected a path inside its root folder")


def read_below(root: str, path: str, limit: int, targets: Sequence[str] | None = ()) -> bytes:
    """The content of `root/path`.

    Args:
        targets: What `link_targets` returned.

    Raises:
        SampleError: The path leaves the root, also by a symbolic link to outside of `targets`, or it is not a regular
            file, or the file is larger than `limit` bytes.
    """
    check_relative(path)
    full = os.path.join(root, path)
    try:
        if "://" not in root:
            resolved = os.path.realpath(full)
            if targets is not None and not any(_is_below(folder, resolved) for folder in (root, *targets)):
                raise SampleError(
                    Reason.PATH_ESCAPE,
                    # The flags come first, since reports cut long texts.
                    "a link leaves its root; --follow_links=anywhere reads it, or =roots if a root holds its target: "
                    f"{path!r} leads from {root} to {resolved}",
                )
            if not stat.S_ISREG(os.stat(resolved).st_mode):  # Reading a pipe would block for ever.
                raise SampleError(Reason.MISSING_FILE, f"{path!r} is not a regular file")
        with epath.Path(full).open("rb") as file:
            data = file.read(limit + 1)
    except (OSError, ValueError) as error:  # ValueError: characters that no file name can have.
        raise SampleError(Reason.MISSING_FILE, f"{path!r} cannot be read ({type(error).__name__})") from error
    if len(data) > limit:
        raise SampleError(Reason.TOO_LARGE, f"{path!r} is over {limit} bytes")
    return data


def _is_below(folder: str, resolved: str) -> bool:
    root = os.path.realpath(folder)
    return os.path.commonpath([root, resolved]) == root
