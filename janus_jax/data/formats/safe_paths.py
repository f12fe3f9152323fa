"""Reads files that a data set names: only inside their root folder, only regular files, only up to a size."""

import os
import stat

from etils import epath

from janus_jax.data.dropped_samples import Reason, SampleError


def check_relative(path: str) -> None:
    """Raises SampleError for a path that could leave the folder it is relative to."""
    parts = path.replace("\\", "/").split("/")
    if not path or "\0" in path or parts[0] == "" or ".." in parts or parts[0][1:2] == ":":
        raise SampleError(Reason.PATH_ESCAPE, f"path {path!r}, expected a path inside its root folder")


def read_below(root: str, path: str, limit: int) -> bytes:
    """The content of `root/path`.

    Raises:
        SampleError: The path leaves the root, also by a symbolic link, or it is not a regular file, or the file is
            larger than `limit` bytes.
    """
    check_relative(path)
    full = os.path.join(root, path)
    try:
        if "://" not in root:
            resolved = os.path.realpath(full)
            if os.path.commonpath([os.path.realpath(root), resolved]) != os.path.realpath(root):
                raise SampleError(
                    Reason.PATH_ESCAPE, f"path {path!r} leaves {root} by a link; name the folder it leads to as a root"
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
