"""Text files that a killed process or a full disk leaves as they were."""

from etils import epath


def write_whole(path: epath.PathLike, text: str) -> None:
    """Writes beside the file, then takes its place. Raises OSError, the old file being as it was."""
    path = epath.Path(path)
    partial = path.parent / f".{path.name}.partial"
    try:
        partial.write_text(text)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
