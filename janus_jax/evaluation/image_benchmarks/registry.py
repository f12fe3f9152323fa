"""The benchmarks of images by name, and how their files are found below a folder."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from janus_jax.errors import UserError
from janus_jax.evaluation.benchmark import ImageBenchmark
from janus_jax.evaluation.image_benchmarks.clip_score import open_clip_score
from janus_jax.evaluation.image_benchmarks.distribution import open_coco_fid, open_mjhq_fid
from janus_jax.evaluation.image_benchmarks.dpg import QUESTIONS_FILE, open_dpg
from janus_jax.evaluation.image_benchmarks.geneval import open_geneval
from janus_jax.evaluation.image_benchmarks.options import MetricOptions
from janus_jax.evaluation.image_benchmarks.reconstruction import open_reconstruction
from janus_jax.phases import phase

OPENERS: Mapping[str, Callable[..., ImageBenchmark]] = {
    "geneval": open_geneval,
    "dpg": open_dpg,
    "coco_fid": open_coco_fid,
    "mjhq_fid": open_mjhq_fid,
    "clip_score": open_clip_score,
    "reconstruction": open_reconstruction,
}
# Names of the file, or folder, that a benchmark is read from, the best first. The last two benchmarks take any prompts
# or images, so a folder never holds them by itself: a user names them.
_NAMES: Mapping[str, Sequence[str]] = {
    "geneval": ("evaluation_metadata.jsonl",),
    "dpg": (QUESTIONS_FILE, "dpg_prompts.jsonl"),
    "coco_fid": ("captions_val2014.json",),
    "mjhq_fid": ("meta_data.json",),
    "clip_score": ("prompts.txt", "prompts.jsonl"),
    "reconstruction": (),
}
_ONLY_BY_NAME = ("coco_fid", "clip_score", "reconstruction")  # COCO's captions are a benchmark of questions as well
_CHOOSES_NUMBER = ("geneval", "clip_score")


def found_names(folders: Sequence[epath.Path]) -> list[str]:
    """The benchmarks whose files lie in one of the folders, without those that a user has to name."""
    return [name for name in OPENERS if name not in _ONLY_BY_NAME and _candidates(name, folders)]


def load(
    data: epath.PathLike,
    folders: Sequence[epath.Path],
    names: Sequence[str],
    options: MetricOptions,
    num_images: int | None = None,
) -> list[ImageBenchmark]:
    """Opens benchmarks.

    Args:
        data: the file or folder that a user named; a file is that of the one benchmark.
        folders: the folders below it, in which files are looked for.
        names: keys of `OPENERS`.
        num_images: images per prompt, for the benchmarks that leave it open; None takes their own number.

    Raises:
        UserError: there is no file, or more than one, of a benchmark; a file is damaged; or the number of images is
            asked of a benchmark that has a fixed one.
    """
    return [_open(name, _find(name, epath.Path(data), folders), options, num_images) for name in names]


def _open(name: str, path: epath.Path, options: MetricOptions, num_images: int | None) -> ImageBenchmark:
    more: dict[str, Any] = {}
    if num_images is not None:
        if name not in _CHOOSES_NUMBER:
            raise UserError(f"--num_images={num_images}: {name} has a fixed number of images per prompt")
        more["num_images"] = num_images
    with phase(f"opening {name}"):
        return OPENERS[name](path, options, **more)


def _find(name: str, data: epath.Path, folders: Sequence[epath.Path]) -> epath.Path:
    if data.is_file() or name == "reconstruction":
        return data
    candidates = _candidates(name, folders)
    if not candidates:
        expected = " or ".join(_NAMES[name])
        raise UserError(f"--data={data}: no files of {name} (expected {expected})")
    if len(candidates) > 1:
        listed = ", ".join(map(str, candidates))
        raise UserError(f"--data={data}: {len(candidates)} sources of {name} ({listed}); name one of them in --data")
    return candidates[0]


def _candidates(name: str, folders: Sequence[epath.Path]) -> list[epath.Path]:
    """The files of the best name that is there."""
    for file_name in _NAMES[name]:
        found = [folder / file_name for folder in folders if (folder / file_name).exists()]
        if found:
            return found
    return []
