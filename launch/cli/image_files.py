"""Files that `launch.generate` reads and writes: prompts, noise and the folder of images."""

import math
from collections.abc import Sequence

import numpy as np
import PIL.Image
from etils import epath

from janus_jax.data.images import grid
from janus_jax.errors import UserError
from janus_jax.inference.janusflow import check_noise
from janus_jax.storage import prepare_folder


def read_prompts(path: str) -> dict[int, str]:
    """The prompts of --prompts_file by their line number, which counts from 0; empty lines are left out.

    Raises UserError for a file that cannot be read, or that has no prompt.
    """
    try:
        lines = epath.Path(path).read_text().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts_file={path}: cannot be read ({error})") from error
    prompts = {number: line.strip() for number, line in enumerate(lines) if line.strip()}
    if not prompts:
        raise UserError(f"--prompts_file={path}: all lines are empty, expected a prompt per line")
    return prompts


def read_noise(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """The array of --initial_noise.

    Raises UserError for a file that is no array of floats of this shape, which its header tells before it is read.
    """
    try:
        noise = np.lib.format.open_memmap(path, mode="r")  # np.load would also open archives
    except (OSError, ValueError) as error:
        raise UserError(f"--initial_noise={path}: not a readable .npy file ({error})") from error
    try:
        return check_noise(noise, shape)
    except UserError as error:
        raise UserError(f"--initial_noise={path}: {error}") from error


class ImageFolder:
    """The folder of --output."""

    def __init__(self, path: str):
        """Creates the folder. Raises UserError if it cannot be written or holds the images of another run."""
        self._folder = prepare_folder("output", path)
        self.images: list[PIL.Image.Image] = []
        for old in self._folder.iterdir():
            if old.suffix in (".png", ".npy"):
                raise UserError(
                    f"--output={self._folder}: holds {old.name}, expected a folder without images of another run"
                )

    def __str__(self) -> str:
        return str(self._folder)

    def add(self, images: Sequence[PIL.Image.Image]) -> None:
        """Writes images as the next numbers: 00000.png, 00001.png, ..."""
        for image in images:
            self._write(f"{len(self.images):05d}.png", image)
            self.images.append(image)

    def add_grid(self, images_per_prompt: int) -> None:
        """Writes all images as grid.png, in rows that the images of a prompt fill as a square."""
        self._write("grid.png", grid(self.images, columns=math.ceil(math.sqrt(images_per_prompt))))

    def add_array(self, name: str, values: np.ndarray) -> None:
        """Writes NAME.npy."""
        with (self._folder / f"{name}.npy").open("wb") as file:
            np.save(file, values)

    def _write(self, name: str, image: PIL.Image.Image) -> None:
        with (self._folder / name).open("wb") as file:
            image.save(file, "PNG")
