"""CLIP score: how well images agree with any list of prompts, 100 max(cosine, 0) as in torchmetrics."""

import dataclasses
from collections.abc import Sequence

from etils import epath

from janus_jax.errors import UserError
from janus_jax.evaluation.benchmark import ImageRequest, SampleScore, Scores
from janus_jax.evaluation.image_benchmarks.distribution import clip_scores
from janus_jax.evaluation.image_benchmarks.options import MetricOptions
from janus_jax.evaluation.image_files import copy_files, generated_images
from janus_jax.evaluation.readers.records import read_json_lines, read_text
from janus_jax.evaluation.statistics import mean_metric


@dataclasses.dataclass(frozen=True)
class ClipScore:
    """The benchmark. Images of one prompt are a cluster."""

    requests: Sequence[ImageRequest]
    files: Sequence[epath.Path]
    options: MetricOptions
    name: str = "clip_score"

    def score(self, folder: epath.Path) -> Scores:
        """Measures all images with CLIP. Raises UserError when images are missing or unreadable, or without CLIP."""
        self.options.require("clip", self.name, "a CLIP folder of transformers")
        images = generated_images(self.requests, folder)
        pairs = [(file, request) for request, files in zip(self.requests, images, strict=True) for file in files]
        texts = [request.prompt for _, request in pairs]
        scores, notes = clip_scores(self.name, [file for file, _ in pairs], texts, self.options)
        clusters = [request.index for _, request in pairs]
        samples, start = [], 0
        for request in self.requests:
            own = scores[start : start + request.num_images]
            start += request.num_images
            samples.append(SampleScore(request.index, None, float(own.mean()), {"per_image": own.tolist()}))
        return Scores("clip_score", {"clip_score": mean_metric(list(scores), clusters)}, samples, {}, notes=notes)

    def write_submission(self, images: epath.Path, folder: epath.Path) -> Sequence[epath.Path]:
        """Copies the images as `<index>_<number>.png`. CLIP score has no official script."""
        found = zip(self.requests, generated_images(self.requests, images), strict=True)
        names = {
            folder / f"{request.index:05d}_{number:05d}.png": file.path
            for request, files in found
            for number, file in enumerate(files)
        }
        return copy_files(names)


def open_clip_score(path: epath.PathLike, options: MetricOptions, num_images: int = 1) -> ClipScore:
    """Reads prompts: a text file with one per line, or JSON Lines with a field `prompt`.

    Raises:
        UserError: the file is damaged, or holds no prompts.
    """
    path = epath.Path(path)
    if path.suffix == ".jsonl":
        prompts = [line.text("prompt") for line in read_json_lines(path)]
    else:
        prompts = read_text(path).split("\n")
    prompts = [prompt.strip() for prompt in prompts if prompt.strip()]
    if not prompts:
        raise UserError(f"{path}: holds no prompts, expected one per line")
    requests = [ImageRequest(index, str(index), prompt, num_images) for index, prompt in enumerate(prompts)]
    return ClipScore(requests, [path], options)
