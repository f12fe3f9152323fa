"""What a user gives to a benchmark of images besides its own files."""

import dataclasses
from collections.abc import Callable
from typing import Self

from absl import logging
from etils import epath

from janus_jax.errors import UserError
from janus_jax.evaluation.benchmark import ImageBenchmark

_LPIPS = ("lpips_trunk", "lpips_heads")
_LINES = 10  # lines of progress of a set of images


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricOptions:
    """Files and choices that a score needs. Each field is that of the flag of the same name."""

    inception: epath.Path | None = None  # weights of Inception, for Fréchet distance and Inception score
    clip: epath.Path | None = None  # folder of CLIP, for the CLIP score
    reference: epath.Path | None = None  # folder or archive of real images, or `.npz` with their moments
    fid_interval: bool = False  # whether the Fréchet distance gets an interval, ten more distances
    detections: epath.Path | None = None  # detections or verdicts of GenEval
    detector: epath.Path | None = None  # weights of GenEval's detector, which makes the detections; needs CLIP too
    answers: epath.Path | None = None  # answers to DPG-Bench's questions
    lpips_trunk: epath.Path | None = None  # VGG-16, for the LPIPS of reconstructions
    lpips_heads: epath.Path | None = None  # weights of its channels
    image_size: int | None = None  # pixels of the images that an image tokenizer reads; None: its own size
    eval_size: int | None = None  # pixels of images and reconstructions when they are compared; None: `image_size`
    dpg_rule: str = "all_rows"  # one of `scores.dpg.RULES`
    store: epath.Path | None = None  # folder of a run, in which moments of images are kept; None keeps none
    report: Callable[[str], object] = logging.info  # gets a line of progress now and then

    def require(self, field: str, benchmark: str, what: str) -> epath.Path:
        """A file that a score cannot do without. Raises UserError naming the flag when the user gave none."""
        path = getattr(self, field)
        if path is None:
            raise UserError(f"{benchmark}: --{field} is missing, expected {what}")
        if not path.exists():
            raise UserError(f"--{field}={path}: no such file or folder, expected {what}")
        return path

    def require_judgement(self, field: str, benchmark: ImageBenchmark, what: str, images: epath.Path) -> epath.Path:
        """A file that a program outside of this package makes of the images.

        Raises UserError when the user gave none. Before that, the images of a run are written to
        `<store>/<name>/official` as that program reads them.
        """
        if getattr(self, field) is None and self.store is not None and images.exists():
            official = self.store / benchmark.name / "official"
            benchmark.write_submission(images, official)
            what += f"; the images for it are in {official}"
        return self.require(field, benchmark.name, what)

    def progress(self, name: str) -> Callable[[int, int], None]:
        """A callback that reports about every tenth of a set of images."""
        shown = 0

        def update(done: int, total: int) -> None:
            nonlocal shown
            tenths = _LINES * done // total
            if tenths > shown:
                shown = tenths
                self.report(f"{name}: {done:,} of {total:,} images measured")

        return update

    def checked(self) -> Self:
        """The same options. Raises UserError naming the flag of the first file that does not exist."""
        for field in ("inception", "clip", "reference", "detections", "detector", "answers", *_LPIPS):
            path = getattr(self, field)
            if path is not None and not path.exists():
                raise UserError(f"--{field}={path}: no such file or folder")
        missing = [field for field in _LPIPS if getattr(self, field) is None]
        if 0 < len(missing) < len(_LPIPS):
            raise UserError(f"--{missing[0]} is missing: LPIPS needs both --lpips_trunk and --lpips_heads")
        return self
