"""Where the images and answers go that a run samples while it trains."""

import numpy as np
import PIL.Image
from etils import epath

from janus_jax.training.tensorboard import TensorBoard


class SampleLog:
    """Writes samples to TensorBoard and to `samples/step-NNNNNN/` in the workdir.

    Only the first process of a run writes. In the others, which have no TensorBoard, the methods do nothing.
    """

    def __init__(self, workdir: epath.Path, tensorboard: TensorBoard | None):
        self._folder, self._tensorboard = workdir / "samples", tensorboard

    def image(self, step: int, name: str, image: PIL.Image.Image) -> None:
        """Writes NAME.png. The name becomes part of a path, so it must be free of characters that a path cannot have.

        Raises OSError when it cannot be written.
        """
        if self._tensorboard is not None:
            with (self._step_folder(step) / f"{name}.png").open("wb") as file:
                image.save(file, "PNG")
            self._tensorboard.image(step, f"samples/{name}", np.asarray(image.convert("RGB")))

    def text(self, step: int, name: str, text: str) -> None:
        """Writes NAME.txt, as `image` does."""
        if self._tensorboard is not None:
            (self._step_folder(step) / f"{name}.txt").write_text(text)
            self._tensorboard.text(step, f"samples/{name}", text)

    def _step_folder(self, step: int) -> epath.Path:
        folder = self._folder / f"step-{step:06}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder
