"""Files that a data set names: only below their root, only regular files, only up to a size."""

import os
import stat

from etils import epath

from janus_jax.data.dropped_samples import Reason
from janus_jax.data.formats.base import Drop


def check_relative(path: str) -> None:
    """Raises Drop for a path that could leave the folder it is relative to."""
    parts = path.replace("\\", "/").split("/")
    if not path or "\0" in path or parts[0] == "" or ".." in parts or parts[0][1:2] == ":":
        raise Drop(Reason.PATH_ESCAPE, f"path {path!r}, expected one below its root")


def read_below(root: str, path: str, limit: int) -> bytes:
    """Content of `root/path`.

    Raises:
        Drop: the path leaves the root (also through a symbolic link), is no regular file, or is over `limit` bytes.
    """
    check_relative(path)
    full = os.path.join(root, path)
    try:
        if "://" not in root:
            resolved = os.path.realpath(full)
            if os.path.commonpath([os.path.realpath(root), resolved]) != os.path.realpath(root):
                raise Drop(Reason.PATH_ESCAPE, f"path {path!r} leaves {root} by a link: name its target as a root")
            if not stat.S_ISREG(os.stat(resolved).st_mode):  # a pipe would block for ever
                raise Drop(Reason.MISSING_FILE, f"{path!r} is not a regular file")
        with epath.Path(full).open("rb") as file:
            data = file.read(limit + 1)
    except (OSError, ValueError) as error:  # ValueError: characters that no file name can hold
        raise Drop(Reason.MISSING_FILE, f"{path!r} cannot be read ({type(error).__name__})") from error
    if len(data) > limit:
        raise Drop(Reason.TOO_LARGE, f"{path!r} is over {limit} bytes")
    return data
