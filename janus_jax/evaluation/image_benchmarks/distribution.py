"""Benchmarks that compare the distribution of generated images with that of real ones: COCO-30K and MJHQ-30K.

The headline is the Fréchet distance (FID). The Inception score and, where CLIP is given, the CLIP score are beside it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from janus_jax.errors import UserError
from janus_jax.evaluation.benchmark import ImageReference, ImageRequest, Metric, SampleScore, Scores
from janus_jax.evaluation.image_benchmarks.options import MetricOptions
from janus_jax.evaluation.image_features import ClipNetwork, InceptionNetwork
from janus_jax.evaluation.image_files import ImageFile, copy_files, generated_images, images_below
from janus_jax.evaluation.readers.records import Record, read_json
from janus_jax.evaluation.scores.frechet import (
    Gaussian,
    Moments,
    distance_notes,
    frechet_distance,
    inception_score,
    jackknife_error,
    read_gaussian,
    total,
    write_gaussian,
)
from janus_jax.evaluation.statistics import Z_95, mean_metric

COCO_CAPTIONS = 30_000
MJHQ_CATEGORIES = (
    *("animals", "art", "fashion", "food", "indoor", "landscape", "logo", "people", "plants", "vehicles"),
)
FOLDS = 10  # parts of the generated images, one of which the jackknife leaves out
_MIN_FOR_INCEPTION_SCORE = 10
_WHOLE = "all"  # name of the group of a benchmark without categories


@dataclasses.dataclass(frozen=True)
class Distribution:
    """The benchmark: one image per prompt. Where requests have a field `category`, each category is scored too."""

    requests: Sequence[ImageRequest]
    files: Sequence[epath.Path]
    options: MetricOptions
    name: str
    mode: str  # how images are resized for Inception, a key of `resize.MODES`
    reference: epath.Path | None  # real images, or their moments, unless the user gives others
    notes: Sequence[str] = ()

    def score(self, folder: epath.Path) -> Scores:
        """Measures all images with Inception, and with CLIP if it is given.

        With `options.store` the moments of both sets are kept in `<store>/<name>`, as `generated.npz` and
        `reference.npz`, which later runs take as `--reference`.

        Raises:
            UserError: images are missing or unreadable, the weights of Inception or the real images are not there, or
                the moments of the latter were computed in another way.
        """
        weights = self.options.require("inception", self.name, "the weights file of pytorch-fid")
        images = [files[0] for files in generated_images(self.requests, folder)]
        source = self.options.reference or self.reference
        if source is None or not source.exists():
            raise UserError(f"{self.name}: the real images are missing; give their folder or moments in --reference")
        network = InceptionNetwork.from_file(weights, self.mode)
        real = self._real(source, network)
        groups = {group: [image for image, _ in pairs] for group, pairs in self._groups(images).items()}
        folds, logits = self._measure(network, groups, "generated", FOLDS if self.options.fid_interval else 1)
        moments = {group: total(parts) for group, parts in folds.items()}
        generated = {group: Gaussian.of(moments[group], network.origin, f"images of {group}") for group in moments}
        whole = Gaussian.of(total(moments.values()), network.origin, "the generated images")
        distances = {
            group: Metric(frechet_distance(generated[group], real[group]), moments[group].count)
            for group in moments
            if len(moments) > 1 and group in real
        }
        metrics = {"fid": self._distance(whole, real[_WHOLE], folds)}
        if len(images) >= _MIN_FOR_INCEPTION_SCORE:
            ordered = np.concatenate(list(logits.values()))
            for name, shuffle in (("inception_score", True), ("inception_score_unshuffled", False)):
                metrics[name] = Metric(inception_score(ordered, shuffle=shuffle)[0], len(images))
        scores, clip_notes = self._clip_scores(images)
        if scores is not None:
            metrics["clip_score"] = mean_metric(list(scores))
        self._keep(generated=whole, reference=real[_WHOLE])
        notes = [
            *self.notes,
            f"resized as {self.mode}, Inception weights {network.origin.weights}, real images {source.name}",
            *[f"the interval is a jackknife over {FOLDS} parts of the generated images"] * self.options.fid_interval,
            *distance_notes(whole, real[_WHOLE]),
            *clip_notes,
        ]
        table: list[list[Any]] = [["category", "FID", "images"]]
        table += [[name, metric.value, metric.count] for name, metric in distances.items()]
        return Scores(
            headline="fid",
            metrics={**metrics, **{f"fid_{name}": metric for name, metric in distances.items()}},
            samples=[
                SampleScore(request.index, None, 0.0 if scores is None else float(scores[row]))
                for row, request in enumerate(self.requests)
            ],
            counts={"real_images": real[_WHOLE].count or 0},
            tables={"Fréchet distance by category": table} if distances else {},
            notes=notes,
        )

    def write_submission(self, images: epath.Path, folder: epath.Path) -> Sequence[epath.Path]:
        """Writes what the original tools read: `<category>/<id>.png`, or `images/*.png` beside `captions.txt`."""
        files = [found[0].path for found in generated_images(self.requests, images)]
        if "category" in self.requests[0].fields:
            names = [f"{request.fields['category']}/{request.id}.png" for request in self.requests]
            return copy_files({folder / name: path for name, path in zip(names, files, strict=True)})
        names = [f"images/{request.index:05d}.png" for request in self.requests]
        written = copy_files({folder / name: path for name, path in zip(names, files, strict=True)})
        captions = folder / "captions.txt"
        captions.write_text("".join(" ".join(request.prompt.split()) + "\n" for request in self.requests))
        return [*written, captions]

    def _groups(self, images: Sequence[ImageFile]) -> dict[str, list[tuple[ImageFile, ImageRequest]]]:
        """The images by category, in the order of the requests."""
        groups: dict[str, list[tuple[ImageFile, ImageRequest]]] = {}
        for image, request in zip(images, self.requests, strict=True):
            groups.setdefault(request.fields.get("category", _WHOLE), []).append((image, request))
        return groups

    def _measure(
        self, network: InceptionNetwork, groups: Mapping[str, Sequence[ImageReference]], what: str, num_folds: int = 1
    ) -> tuple[dict[str, list[Moments]], dict[str, np.ndarray]]:
        """Moments of each fold of each group, and logits of each group."""
        folds, logits = {}, {}
        for group, images in groups.items():
            label = what if group == _WHOLE else f"{what}, {group}"
            progress = self.options.progress(f"{self.name}: {label}")
            folds[group], logits[group] = network.in_folds(images, num_folds, progress)
        return folds, logits

    def _distance(self, whole: Gaussian, real: Gaussian, folds: Mapping[str, Sequence[Moments]]) -> Metric:
        """The distance, with the interval of a jackknife over the folds of the generated images if it is asked for."""
        distance, count = frechet_distance(whole, real), whole.count or 0
        if not self.options.fid_interval:
            return Metric(distance, count)
        stderr = jackknife_error([total(parts) for parts in zip(*folds.values(), strict=True)], real)
        return Metric(distance, count, stderr, (distance - Z_95 * stderr, distance + Z_95 * stderr))

    def _real(self, source: epath.Path, network: InceptionNetwork) -> dict[str, Gaussian]:
        """The real images, as a whole and by category where they are images in folders of these names."""
        if source.suffix == ".npz":
            return {_WHOLE: read_gaussian(source)}
        categories = {request.fields.get("category", _WHOLE) for request in self.requests}
        groups: dict[str, list[ImageReference]] = {}
        for image in images_below(source):
            parent = image.name.replace(":", "/").split("/")[-2]
            groups.setdefault(parent if parent in categories else _WHOLE, []).append(image)
        folds, _ = self._measure(network, dict(sorted(groups.items())), "real")
        moments = {group: total(parts) for group, parts in folds.items()}
        real = {group: Gaussian.of(moments[group], network.origin, f"real images of {group}") for group in moments}
        return {**real, _WHOLE: Gaussian.of(total(moments.values()), network.origin, "the real images")}

    def _clip_scores(self, images: Sequence[ImageFile]) -> tuple[np.ndarray | None, list[str]]:
        if self.options.clip is None:
            return None, []
        return clip_scores(self.name, images, [request.prompt for request in self.requests], self.options)

    def _keep(self, **sets: Gaussian) -> None:
        if self.options.store is not None:
            folder = self.options.store / self.name
            folder.mkdir(parents=True, exist_ok=True)
            for name, images in sets.items():
                write_gaussian(folder / f"{name}.npz", images)


def clip_scores(
    name: str, images: Sequence[ImageReference], texts: Sequence[str], options: MetricOptions
) -> tuple[np.ndarray, list[str]]:
    """The CLIP score of each image and its text, and what a reader must know of them."""
    network = ClipNetwork.from_folder(options.require("clip", name, "a CLIP folder of transformers"))
    scores, num_cut = network(images, texts, options.progress(f"{name}: CLIP"))
    notes = [f"CLIP weights {network.weights}"]
    notes += [f"{num_cut} of {len(texts)} prompts are too long for CLIP and were cut"] * bool(num_cut)
    return scores, notes


def open_coco_fid(path: epath.PathLike, options: MetricOptions, seed: int = 0) -> Distribution:
    """COCO-30K from `captions_val2014.json`: captions drawn at random, whose images are compared with all of val2014.

    Images are resized as in GigaGAN's protocol, which the authors of Janus used. Their draw of captions is not known.

    Args:
        seed: of the draw.

    Raises:
        UserError: the file is damaged.
    """
    path = epath.Path(path)
    annotations = [_annotation(Record(row, f"{path}: annotation {n}")) for n, row in enumerate(_annotations(path))]
    annotations.sort()
    drawn = np.random.default_rng(seed).permutation(len(annotations))[:COCO_CAPTIONS]
    requests = [
        ImageRequest(index, str(annotations[row][0]), annotations[row][2].strip(), 1, {"image_id": annotations[row][1]})
        for index, row in enumerate(drawn)
    ]
    share = f"{len(requests):,} of {len(annotations):,} captions"
    notes = [f"{share}, drawn with seed {seed}; the paper's draw is not known"]
    folders = (path.parent.parent / "val2014", path.parent / "val2014")
    reference = next((folder for folder in folders if folder.is_dir()), None)
    return Distribution(requests, [path], options, "coco_fid", "gigagan", reference, notes)


def open_mjhq_fid(path: epath.PathLike, options: MetricOptions) -> Distribution:
    """MJHQ-30K from `meta_data.json`, whose images lie beside it in `mjhq30k_imgs` or `mjhq30k_imgs.zip`.

    Raises:
        UserError: the file is damaged, or names an unknown category.
    """
    path = epath.Path(path)
    content = read_json(path)
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: expected an object from id to category and prompt")
    requests = []
    for index, (id, values) in enumerate(content.items()):
        record = Record(values, f"{path}: {id}")
        if not id.replace("-", "").replace("_", "").isalnum():
            raise UserError(f"{path}: id {id!r:.40} cannot be the name of a file")
        category = record.one_of("category", MJHQ_CATEGORIES)
        requests.append(ImageRequest(index, id, record.text("prompt").strip(), 1, {"category": category}))
    candidates = (path.parent / "mjhq30k_imgs", path.parent / "mjhq30k_imgs.zip")
    reference = next((candidate for candidate in candidates if candidate.exists()), None)
    return Distribution(requests, [path], options, "mjhq_fid", "clean", reference)


def _annotations(path: epath.Path) -> list[Any]:
    content = read_json(path)
    rows = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path}: has no list of annotations, expected COCO's captions")
    return rows


def _annotation(record: Record) -> tuple[int, int, str]:
    numbers = [record.values.get(key) for key in ("id", "image_id")]
    for key, value in zip(("id", "image_id"), numbers, strict=True):
        if type(value) is not int:
            raise record.error(key, "a whole number")
    return numbers[0], numbers[1], record.text("caption")  # type: ignore[return-value]
