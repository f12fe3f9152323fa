"""Reconstruction: how close images come back that went through an image tokenizer (rFID, PSNR, SSIM).

Both sides are the same crop: the short side of an image is resized to the size of the tokenizer, the centre is cut out.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image
from etils import epath

from janus_jax.data.images import decode_image, generation_pixels
from janus_jax.errors import UserError
from janus_jax.evaluation.benchmark import ImageReference, ImageRequest, Metric, Question, SampleScore, Scores
from janus_jax.evaluation.image_benchmarks.options import MetricOptions
from janus_jax.evaluation.image_features import InceptionNetwork
from janus_jax.evaluation.image_files import (
    ImageFile,
    copy_files,
    generated_images,
    images_below,
)
from janus_jax.evaluation.model_answers import to_png
from janus_jax.evaluation.records import AnswerRecord
from janus_jax.evaluation.scores.frechet import Gaussian, distance_notes, frechet_distance
from janus_jax.evaluation.scores.pixels import SSIM_WINDOW, psnr, ssim
from janus_jax.evaluation.statistics import mean_metric
from janus_jax.inference.image_tokenizer import ImageTokenizer
from janus_jax.storage import disk_errors

_MODE = "clean"


class CroppedImage(NamedTuple):
    """An image as an image tokenizer of a size reads it."""

    image: ImageReference
    size: int

    @property
    def name(self) -> str:
        return self.image.name

    def pixels(self) -> np.ndarray:
        """uint8 [size, size, 3]. Raises UserError for an unreadable image."""
        return generation_pixels(decode_image(self.image.read(), self.image.name), self.size)

    def read(self) -> bytes:
        """The crop as an encoded image."""
        return to_png(PIL.Image.fromarray(self.pixels()))


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """The benchmark. Each request has an image, which is reconstructed as image 0 of the request."""

    requests: Sequence[ImageRequest]
    files: Sequence[epath.Path]
    options: MetricOptions
    name: str = "reconstruction"

    def score(self, folder: epath.Path) -> Scores:
        """Compares every reconstruction with its image: pixel by pixel, and the sets by Inception if it is given.

        Raises:
            UserError: reconstructions are missing, unreadable, or not squares of one size.
        """
        reconstructions = [files[0] for files in generated_images(self.requests, folder)]
        size = _size(reconstructions[0])
        originals = [CroppedImage(_image(request), size) for request in self.requests]
        progress = self.options.progress(f"{self.name}: pixels")
        samples = []
        for row, (request, pair) in enumerate(
            zip(self.requests, zip(originals, reconstructions, strict=True), strict=True)
        ):
            samples.append(_compare(request, *pair))
            progress(row + 1, len(self.requests))
        values = {name: [sample.fields[name] for sample in samples] for name in ("ssim", "ssim_range_2", "psnr")}
        finite = [value for value in values["psnr"] if value is not None]
        equal = len(samples) - len(finite)
        metrics = {name: mean_metric(found) for name, found in {**values, "psnr": finite}.items() if found}
        notes = [f"at {size} x {size} pixels; ssim_range_2 is LlamaGen's, with data_range=2"]
        notes += [f"psnr is that of the {len(finite)} reconstructions that differ from their images"] * bool(equal)
        if self.options.inception is not None:
            rfid, rfid_notes = self._rfid(originals, reconstructions)
            metrics, notes = {"rfid": rfid, **metrics}, [*notes, *rfid_notes]
        return Scores(next(iter(metrics)), metrics, samples, {"equal": equal}, notes=notes)

    def write_submission(self, images: epath.Path, folder: epath.Path) -> Sequence[epath.Path]:
        """Writes pairs for other tools: `originals/<index>.png` and `reconstructions/<index>.png`."""
        reconstructions = [files[0].path for files in generated_images(self.requests, images)]
        size = _size(ImageFile(reconstructions[0]))
        names = [f"{request.index:05d}.png" for request in self.requests]
        written = copy_files(
            {folder / "reconstructions" / name: path for name, path in zip(names, reconstructions, strict=True)}
        )
        for name, request in zip(names, self.requests, strict=True):
            path = folder / "originals" / name
            with disk_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(CroppedImage(_image(request), size).read())
            written.append(path)
        return written

    def _rfid(
        self, originals: Sequence[CroppedImage], reconstructions: Sequence[ImageFile]
    ) -> tuple[Metric, list[str]]:
        weights = self.options.require("inception", self.name, "the weights file of pytorch-fid")
        network = InceptionNetwork.from_file(weights, _MODE)
        sets = []
        for name, images in (("images", originals), ("reconstructions", reconstructions)):
            moments, _ = network(images, self.options.progress(f"{self.name}: {name}"))
            sets.append(Gaussian.of(moments, network.origin, f"the set of {name}"))
        notes = [f"resized as {_MODE}, Inception weights {network.origin.weights}", *distance_notes(*sets)]
        return Metric(frechet_distance(*sets), len(originals)), notes


def open_reconstruction(path: epath.PathLike, options: MetricOptions) -> Reconstruction:
    """The images below a folder, or in a `.zip` archive. Raises UserError when there are none."""
    path = epath.Path(path)
    images = images_below(path)
    requests = [ImageRequest(i, image.name.rsplit("/", 1)[-1], "", 1, {}, image) for i, image in enumerate(images)]
    return Reconstruction(requests, [path] if path.is_file() else [], options)


class ReconstructionModel:
    """The model of an `evaluation.runner.run` that reconstructs the images of requests."""

    def __init__(self, tokenizer: ImageTokenizer):
        self._tokenizer = tokenizer

    def answer(self, questions: Sequence[Question]) -> list[AnswerRecord]:
        raise UserError("an image tokenizer answers no questions, it only reconstructs images")

    def generate(self, requests: Sequence[ImageRequest]) -> list[list[bytes] | str]:
        """The reconstruction of each image as a PNG file, or why the image cannot be read."""
        size = self._tokenizer.config.image_size
        results: dict[int, list[bytes] | str] = {}
        pixels: dict[int, np.ndarray] = {}
        for place, request in enumerate(requests):
            try:
                pixels[place] = CroppedImage(_image(request), size).pixels()
            except UserError as error:
                results[place] = str(error)
        if pixels:
            reconstructed = self._tokenizer.reconstruct(np.stack(list(pixels.values())))
            for place, image in zip(pixels, reconstructed, strict=True):
                results[place] = [to_png(PIL.Image.fromarray(image))]
        return [results[place] for place in range(len(requests))]


def _compare(request: ImageRequest, original: CroppedImage, reconstruction: ImageFile) -> SampleScore:
    image = decode_image(reconstruction.read(), reconstruction.name)
    if image.size != (original.size, original.size):
        raise UserError(f"{reconstruction.name}: {image.size}, expected the size of the others, {original.size}")
    x, y = original.pixels() / 255, np.asarray(image) / 255
    ratio = psnr(x, y)
    fields = {
        "psnr": ratio if math.isfinite(ratio) else None,  # JSON has no infinity
        "ssim": ssim(x, y),
        "ssim_range_2": ssim(x, y, data_range=2.0),
    }
    return SampleScore(request.index, None, ssim(x, y), fields)


def _image(request: ImageRequest) -> ImageReference:
    if request.image is None:
        raise ValueError(f"request {request.index} has no image to reconstruct")
    return request.image


def _size(reconstruction: ImageFile) -> int:
    width, height = decode_image(reconstruction.read(), reconstruction.name).size
    if width != height or width < SSIM_WINDOW:
        raise UserError(f"{reconstruction.name}: {width} x {height} pixels, expected a square from {SSIM_WINDOW} up")
    return width
