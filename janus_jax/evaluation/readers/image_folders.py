"""Finds the folder in which the images of a benchmark lie."""

from collections.abc import Sequence
from typing import NamedTuple

from etils import epath

from janus_jax.evaluation.readers.records import FileImage, file_exists

_EXAMPLES = 5  # names that are looked for; a data set with the first few images missing is still found


class ImageFolders(NamedTuple):
    """The folders below the data folder, in which images may lie."""

    folders: tuple[epath.Path, ...]

    def below(self, name: str) -> "ImageFolders":
        """The folders of this name and those below them; all folders where there is none of this name."""
        return ImageFolders(tuple(folder for folder in self.folders if name in folder.parts) or self.folders)

    def root(self, near: epath.Path, names: Sequence[str], examples: Sequence[str]) -> str:
        """The folder that holds the example images.

        Folders close to the file `near` are tried first, and among these the ones that have one of `names`. Where none
        holds an example it is the first of them, so that an error about a missing image names a sensible path.
        """
        home = near.parent.parts

        def distance(folder: epath.Path) -> tuple[int, bool, str]:
            shared = 0
            for a, b in zip(home, folder.parts, strict=False):
                if a != b:
                    break
                shared += 1
            steps = len(home) - shared + len(folder.parts) - shared
            return steps - 2 * (folder.name in names), folder.name not in names, str(folder)

        nearest = sorted(self.folders, key=distance)
        for example in examples[:_EXAMPLES]:
            for folder in nearest:
                if file_exists(folder / example):
                    return str(folder)
        named = [folder for folder in nearest if folder.name in names]
        return str(named[0] if named else near.parent)

    def images(self, near: epath.Path, names: Sequence[str], files: Sequence[str]) -> list[FileImage]:
        """One image for each file name; equal names share an object."""
        root = self.root(near, names, list(dict.fromkeys(files)))
        made: dict[str, FileImage] = {}
        return [made.setdefault(file, FileImage(file, root, file)) for file in files]
