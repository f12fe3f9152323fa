"""Files of images that are measured: generated ones in the folder of a run, and references in folders or archives."""

import functools
import os
import zipfile
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from etils import epath

from janus_jax.errors import UserError
from janus_jax.evaluation.benchmark import ImageReference, ImageRequest
from janus_jax.storage import disk_errors

MAX_IMAGE_BYTES = 1 << 28  # of an encoded image
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MAX_DEPTH = 5  # folders below the one that a user names
_SHOWN = 10  # names in a message


class ImageFile(NamedTuple):
    """An image in a file."""

    path: epath.Path

    @property
    def name(self) -> str:
        return os.fspath(self.path)

    def read(self) -> bytes:
        """Raises UserError for a missing or too large file."""
        try:
            if self.path.stat().length > MAX_IMAGE_BYTES:
                raise UserError(f"{self.path}: larger than {MAX_IMAGE_BYTES} bytes, expected an image")
            return self.path.read_bytes()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror})") from error


class ZipMember(NamedTuple):
    """An image in a `.zip` archive. Several threads may read one archive."""

    archive: epath.Path
    member: str

    @property
    def name(self) -> str:
        return f"{self.archive}:{self.member}"

    def read(self) -> bytes:
        """Raises UserError for a damaged archive or a too large member."""
        try:
            with _opened(self.archive).open(self.member) as file:
                data = file.read(MAX_IMAGE_BYTES + 1)
        except (OSError, zipfile.BadZipFile, KeyError, RuntimeError, NotImplementedError) as error:
            raise UserError(f"{self.name}: cannot be read ({error})") from error
        if len(data) > MAX_IMAGE_BYTES:
            raise UserError(f"{self.name}: larger than {MAX_IMAGE_BYTES} bytes, expected an image")
        return data


def image_path(folder: epath.Path, index: int, number: int) -> epath.Path:
    """Where a run keeps image `number` of a request."""
    return folder / f"{index:05d}" / f"{number:05d}.png"


def generated_images(requests: Sequence[ImageRequest], folder: epath.Path) -> list[list[ImageFile]]:
    """The images of each request, in order.

    Raises:
        UserError: images are missing, or a request has more images than it asks for. Up to ten are named.
    """
    missing: list[epath.Path] = []
    extra: list[epath.Path] = []
    images = []
    for request in requests:
        wanted = [image_path(folder, request.index, number) for number in range(request.num_images)]
        parent = wanted[0].parent
        present = {path.name for path in parent.iterdir()} if parent.exists() else set()
        missing += [path for path in wanted if path.name not in present]
        extra += [parent / name for name in sorted(present - {path.name for path in wanted}) if name.endswith(".png")]
        images.append([ImageFile(path) for path in wanted])
    for what, paths in (("missing", missing), ("more than the benchmark asks for", extra)):
        if paths:
            shown = ", ".join(os.fspath(path.relative_to(folder)) for path in paths[:_SHOWN])
            more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
            raise UserError(f"{folder}: {len(paths)} image(s) {what}: {shown}{more}")
    return images


def images_below(source: epath.Path) -> list[ImageReference]:
    """All images of a folder, to a depth of `MAX_DEPTH`, or of a `.zip` archive, sorted by name.

    Raises UserError when there are none, or the archive is damaged.
    """
    if source.suffix == ".zip" and source.is_file():
        try:
            with zipfile.ZipFile(source) as archive:
                names = sorted(entry.filename for entry in archive.infolist() if is_image_name(entry.filename))
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(f"{source}: not a readable .zip archive ({error})") from error
        images: list[ImageReference] = [ZipMember(source, name) for name in names]
    elif source.is_dir():
        images = [ImageFile(path) for path in sorted(_files_below(source, MAX_DEPTH))]
    else:
        raise UserError(f"{source}: expected a folder of images or a .zip archive")
    if not images:
        raise UserError(f"{source}: holds no images ({', '.join(ENDINGS)})")
    return images


def copy_files(sources: Mapping[epath.Path, epath.Path]) -> list[epath.Path]:
    """Copies files: {where to: what}. Returns the new ones. Raises UserError when they cannot be written.

    On one local disk the copies are hard links, which take no space.
    """
    for target, source in sources.items():
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            try:
                os.link(source, target)
            except OSError:  # another disk, or a bucket
                source.copy(target)
    return list(sources)


def is_image_name(name: str) -> bool:
    """Whether the ending is that of an image, and the file none of those that macOS hides in archives."""
    base = name.rsplit("/", 1)[-1]
    return base.lower().endswith(ENDINGS) and not base.startswith(".") and "__MACOSX/" not in name


@functools.lru_cache(maxsize=4)  # the directory of an archive of 30,000 images takes a while to read
def _opened(archive: epath.Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(archive)


def _files_below(folder: epath.Path, depth: int) -> list[epath.Path]:
    found = []
    for path in folder.iterdir():
        if path.is_dir():
            found += _files_below(path, depth - 1) if depth else []
        elif is_image_name(path.name):
            found.append(path)
    return found
