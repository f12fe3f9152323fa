"""Files that `launch.generate` reads and writes: prompts, noise and the folder of images."""

import math
from collections.abc import Sequence

import numpy as np
import PIL.Image
from etils import epath

from janus_jax.data.images import grid
from janus_jax.errors import UserError
from janus_jax.storage import prepare_folder
from janus_jax.text import decode_text

GRID_IMAGES = 256  # most images of grid.png, which are held in memory: at 384 pixels, a grid of 340 MB


def read_prompts(path: str) -> dict[int, str]:
    """The prompts of --prompts_file by their line number, which counts from 0; empty lines are left out.

    Raises UserError for a file that cannot be read, is not text (`text.decode_text`), or has no prompt.
    """
    try:
        text = decode_text(epath.Path(path).read_bytes(), f"--prompts_file={path}")
    except OSError as error:
        raise UserError(f"--prompts_file={path}: cannot be read ({error})") from error
    # Files that were joined have byte order marks within. Three systems end lines in three ways.
    lines = text.replace("\ufeff", "").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    prompts = {number: line.strip() for number, line in enumerate(lines) if line.strip()}
    if not prompts:
        raise UserError(f"--prompts_file={path}: all lines are empty, expected a prompt per line")
    return prompts


def read_noise(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """The array of --initial_noise.

    Raises UserError for a file that is no array of floats of this shape, which its header tells before it is read.
    """
    from janus_jax.inference.janusflow import check_noise  # late, so that --help needs no JAX

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
        self.count = 0  # number of images so far
        self._shown: list[PIL.Image.Image] = []
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
            self._write(f"{self.count:05d}.png", image)
            self.count += 1
        self._shown += images[: GRID_IMAGES - len(self._shown)]

    def add_grid(self, images_per_prompt: int) -> None:
        """Writes the first `GRID_IMAGES` images as grid.png, in rows that the images of a prompt fill as a square."""
        columns = math.ceil(math.sqrt(min(images_per_prompt, GRID_IMAGES)))
        self._write("grid.png", grid(self._shown, columns))
        if self.count > GRID_IMAGES:
            print(f"grid.png shows the first {GRID_IMAGES} of {self.count} images")

    def add_array(self, name: str, values: np.ndarray) -> None:
        """Writes NAME.npy."""
        with (self._folder / f"{name}.npy").open("wb") as file:
            np.save(file, values)

    def _write(self, name: str, image: PIL.Image.Image) -> None:
        with (self._folder / name).open("wb") as file:
            image.save(file, "PNG")
