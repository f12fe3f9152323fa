"""Reconstruction: how close images come back from an image tokenizer or a VAE (rFID, PSNR, SSIM, LPIPS, use of codes).

The rules are those of LlamaGen's evaluation (`tokenizer/validation/val_ddp.py`). An image is resized and its centre cut
out as `data.images.Crop.halving` says. Where figures are wanted at another size than that of the tokenizer, image and
reconstruction are resized as floats (bicubic, without antialiasing). Then the reconstruction is rounded to 256 levels,
while the image is not.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import PIL.Image
from etils import epath

from janus_jax.data.images import Crop, decode_image, generation_pixels
from janus_jax.errors import UserError
from janus_jax.evaluation.benchmark import ImageReference, ImageRequest, Metric, Question, SampleScore, Scores
from janus_jax.evaluation.image_benchmarks.autoencoders import Autoencoder
from janus_jax.evaluation.image_benchmarks.options import MetricOptions
from janus_jax.evaluation.image_features import InceptionNetwork
from janus_jax.evaluation.image_files import (
    ImageFile,
    copy_files,
    generated_images,
    images_below,
)
from janus_jax.evaluation.model_answers import to_png
from janus_jax.evaluation.perceptual_network import PerceptualNetwork
from janus_jax.evaluation.records import AnswerRecord
from janus_jax.evaluation.scores.frechet import Gaussian, distance_notes, frechet_distance
from janus_jax.evaluation.scores.pixels import SSIM_WINDOW, psnr, ssim
from janus_jax.evaluation.statistics import mean_metric
from janus_jax.ops.image_metrics import resize_bicubic, to_levels
from janus_jax.storage import disk_errors
from janus_jax.training.objectives.base import code_usage

_MODE = "clean"
_FACTS = "reconstruction"  # keyword of the text in a PNG file that says how it was made


class CroppedImage(NamedTuple):
    """The crop of an image that an autoencoder reads, as it is compared with the reconstruction."""

    image: ImageReference
    image_size: int  # pixels per side of the crop
    size: int  # pixels per side to which it is then resized

    @property
    def name(self) -> str:
        return self.image.name

    def values(self) -> np.ndarray:
        """[size, size, 3] from 0 to 1, not rounded. Raises UserError for an unreadable image."""
        pixels = _crop(self.image, self.image_size) / 255
        if self.size == self.image_size:
            return pixels
        return np.asarray(resize_bicubic(jnp.asarray(pixels[None]), self.size, self.size)[0])

    def read(self) -> bytes:
        """The same in 256 levels, as an encoded image."""
        levels = to_levels(jnp.asarray(2 * self.values() - 1))
        return to_png(PIL.Image.fromarray(np.asarray(levels)))


class ReadReconstruction(NamedTuple):
    """A reconstruction in a file."""

    levels: np.ndarray  # uint8 [size, size, 3]
    image_size: int  # pixels per side of the image that was encoded
    codes: np.ndarray | None  # [N] int; None if the file does not tell
    num_codes: int  # entries of the codebook; 0 if the file does not tell


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """The benchmark. Each request has an image, which is reconstructed as image 0 of the request."""

    requests: Sequence[ImageRequest]
    files: Sequence[epath.Path]
    options: MetricOptions
    lpips: PerceptualNetwork | None = None
    name: str = "reconstruction"

    def score(self, folder: epath.Path) -> Scores:
        """Compares every reconstruction with its image: one by one, and the sets by Inception if it is given.

        Raises:
            UserError: reconstructions are missing, unreadable, or not squares of one size.
        """
        files = [files[0] for files in generated_images(self.requests, folder)]
        first = self._read(files[0])
        originals = self._originals(first)
        progress = self.options.progress(f"{self.name}: pixels")
        samples, counts = [], np.zeros(first.num_codes, np.int64)
        for request, original, file in zip(self.requests, originals, files, strict=True):
            found = self._read_like(file, first)
            samples.append(_compare(request, original, found))
            if found.codes is not None:
                np.add.at(counts, found.codes, 1)
            progress(len(samples), len(files))
        if self.lpips is not None:
            samples = self._with_lpips(samples, originals, files)
        names = ("ssim", "ssim_range_2", "psnr", "lpips")
        values = {name: [sample.fields[name] for sample in samples if name in sample.fields] for name in names}
        values = {name: [value for value in found if value is not None] for name, found in values.items()}
        equal = len(samples) - len(values["psnr"])
        metrics = {name: mean_metric(found) for name, found in values.items() if found}
        notes = [f"at {first.levels.shape[0]} x {first.levels.shape[0]} pixels, encoded at {first.image_size}"]
        notes += ["ssim_range_2 is LlamaGen's, with data_range=2"]
        notes += [f"psnr is that of the {len(values['psnr'])} reconstructions that differ from their images"] * bool(
            equal
        )
        if self.lpips is not None:
            notes.append(f"lpips of reconstructions in 256 levels, weights {self.lpips.weights}")
        if first.codes is not None:
            metrics |= _metrics_of_codes(counts, len(samples))
        if self.options.inception is not None:
            rfid, rfid_notes = self._rfid(originals, files)
            metrics, notes = {"rfid": rfid, **metrics}, [*notes, *rfid_notes]
        return Scores(next(iter(metrics)), metrics, samples, {"equal": equal}, notes=notes)

    def write_submission(self, images: epath.Path, folder: epath.Path) -> Sequence[epath.Path]:
        """Writes pairs for other tools: `originals/<index>.png` and `reconstructions/<index>.png`."""
        files = [files[0] for files in generated_images(self.requests, images)]
        names = [f"{request.index:05d}.png" for request in self.requests]
        written = copy_files(
            {folder / "reconstructions" / name: file.path for name, file in zip(names, files, strict=True)}
        )
        for name, original in zip(names, self._originals(self._read(files[0])), strict=True):
            path = folder / "originals" / name
            with disk_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(original.read())
            written.append(path)
        return written

    def _originals(self, first: ReadReconstruction) -> list[CroppedImage]:
        return [CroppedImage(_image(request), first.image_size, len(first.levels)) for request in self.requests]

    def _read(self, file: ImageFile) -> ReadReconstruction:
        """Raises UserError for what is no reconstruction, or not one of the sizes that a user asked for."""
        found = _read(file, self.options.image_size)
        height, width = found.levels.shape[:2]
        if width != height or width < SSIM_WINDOW:
            raise UserError(f"{file.name}: {width} x {height} pixels, expected a square from {SSIM_WINDOW} up")
        for flag, wanted, size in (
            ("image_size", self.options.image_size, found.image_size),
            ("eval_size", self.options.eval_size, len(found.levels)),
        ):
            if wanted not in (None, size):
                raise UserError(f"--{flag}={wanted}, but {file.name} was made with {size}")
        return found

    def _read_like(self, file: ImageFile, first: ReadReconstruction) -> ReadReconstruction:
        """Raises UserError where a reconstruction was not made like the first one."""
        found = _read(file, self.options.image_size)
        if found.levels.shape != first.levels.shape:
            size = found.levels.shape[1::-1]
            raise UserError(f"{file.name}: {size}, expected the size of the others, {len(first.levels)}")
        if (found.image_size, found.num_codes) != (first.image_size, first.num_codes):
            raise UserError(f"{file.name}: was not made by the same tokenizer, or at the same size, as the others")
        return found

    def _with_lpips(
        self, samples: Sequence[SampleScore], originals: Sequence[CroppedImage], files: Sequence[ImageFile]
    ) -> list[SampleScore]:
        assert self.lpips is not None
        pairs = [functools.partial(self._pair, original, file) for original, file in zip(originals, files, strict=True)]
        distances = self.lpips(pairs, self.options.progress(f"{self.name}: LPIPS")).tolist()
        return [
            sample._replace(fields={**sample.fields, "lpips": distance})
            for sample, distance in zip(samples, distances, strict=True)
        ]

    def _pair(self, original: CroppedImage, file: ImageFile) -> tuple[np.ndarray, np.ndarray]:
        """An image and its reconstruction from 0 to 1, float32 [size, size, 3]."""
        image, levels = original.values(), self._read(file).levels
        return image.astype(np.float32), levels.astype(np.float32) / 255

    def _rfid(self, originals: Sequence[CroppedImage], files: Sequence[ImageFile]) -> tuple[Metric, list[str]]:
        weights = self.options.require("inception", self.name, "the weights file of pytorch-fid")
        network = InceptionNetwork.from_file(weights, _MODE)
        sets = []
        for name, images in (("images", originals), ("reconstructions", files)):
            moments, _ = network(images, self.options.progress(f"{self.name}: {name}"))
            sets.append(Gaussian.of(moments, network.origin, f"the set of {name}"))
        notes = [f"resized as {_MODE}, Inception weights {network.origin.weights}", *distance_notes(*sets)]
        return Metric(frechet_distance(*sets), len(originals)), notes


def open_reconstruction(path: epath.PathLike, options: MetricOptions) -> Reconstruction:
    """The images below a folder, or in a `.zip` archive.

    Raises UserError when there are none, or the files of LPIPS are not the released ones.
    """
    path = epath.Path(path)
    images = images_below(path)
    requests = [ImageRequest(i, image.name.rsplit("/", 1)[-1], "", 1, {}, image) for i, image in enumerate(images)]
    lpips = None
    if options.lpips_trunk is not None and options.lpips_heads is not None:
        lpips = PerceptualNetwork.from_files(options.lpips_trunk, options.lpips_heads)
    return Reconstruction(requests, [path] if path.is_file() else [], options, lpips)


class ReconstructionModel:
    """The model of an `evaluation.runner.run` that reconstructs the images of requests."""

    def __init__(self, autoencoder: Autoencoder, image_size: int | None = None, eval_size: int | None = None):
        """Sizes are those of `MetricOptions`. Raises UserError for a size that the autoencoder cannot have."""
        self._autoencoder = autoencoder
        self.image_size = autoencoder.check_size(image_size)
        self.eval_size = eval_size or self.image_size

    def answer(self, questions: Sequence[Question]) -> list[AnswerRecord]:
        raise UserError("an image tokenizer answers no questions, it only reconstructs images")

    def generate(self, requests: Sequence[ImageRequest]) -> list[list[bytes] | str]:
        """The reconstruction of each image as a PNG file, or why the image cannot be read.

        The file has the codes in a text of its own, so that they are scored with it.
        """
        results: dict[int, list[bytes] | str] = {}
        pixels: dict[int, np.ndarray] = {}
        for place, request in enumerate(requests):
            try:
                pixels[place] = _crop(_image(request), self.image_size)
            except UserError as error:
                results[place] = str(error)
        if pixels:
            levels, codes = self._autoencoder(np.stack(list(pixels.values())), self.eval_size)
            for row, place in enumerate(pixels):
                facts: dict[str, Any] = {"image_size": self.image_size}
                if codes is not None:
                    facts |= {"num_codes": self._autoencoder.num_codes, "codes": codes[row].tolist()}
                results[place] = [to_png(PIL.Image.fromarray(levels[row]), {_FACTS: json.dumps(facts)})]
        return [results[place] for place in range(len(requests))]


def _compare(request: ImageRequest, original: CroppedImage, found: ReadReconstruction) -> SampleScore:
    x, y = original.values(), found.levels / 255
    ratio, similarity = psnr(x, y), ssim(x, y)
    fields = {
        "psnr": ratio if math.isfinite(ratio) else None,  # JSON has no infinity
        "ssim": similarity,
        "ssim_range_2": ssim(x, y, data_range=2.0),
    }
    if found.codes is not None:
        fields["codes_used"] = len(np.unique(found.codes))
    return SampleScore(request.index, None, similarity, fields)


def _metrics_of_codes(counts: np.ndarray, images: int) -> dict[str, Metric]:
    """Use of the codes by all images together; `counts` [number of codes]."""
    usage = code_usage(counts)
    return {
        "code_usage": Metric(usage["codes/usage"], images),
        "code_perplexity": Metric(usage["codes/perplexity"], images),
        "codes_used": Metric(float(np.count_nonzero(counts)), images),
    }


def _image(request: ImageRequest) -> ImageReference:
    if request.image is None:
        raise ValueError(f"request {request.index} has no image to reconstruct")
    return request.image


def _crop(image: ImageReference, size: int) -> np.ndarray:
    return generation_pixels(decode_image(image.read(), image.name), size, Crop(halving=True))


def _read(file: ImageFile, image_size: int | None) -> ReadReconstruction:
    """Args: image_size: what holds where the file does not tell it; by default its own size."""
    image = decode_image(file.read(), file.name)
    codes, num_codes, text = None, 0, image.info.get(_FACTS)
    if isinstance(text, str):
        try:
            facts = json.loads(text)
            image_size = int(facts["image_size"])
            if "codes" in facts:
                num_codes, codes = int(facts["num_codes"]), np.asarray(facts["codes"], np.int64)
                if codes.ndim != 1 or not 0 < num_codes < 2**24 or not (0 <= codes.min() <= codes.max() < num_codes):
                    raise ValueError("codes beyond num_codes")
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{file.name}: its text {_FACTS!r} is damaged ({error})") from error
    return ReadReconstruction(np.asarray(image), image_size or image.width, codes, num_codes)
