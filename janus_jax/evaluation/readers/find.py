"""Finds benchmarks below a folder: by the names of files, then by the columns of parquet and TSV files.

Names of folders carry no meaning. Two sources of one benchmark are an error that lists them: `--data` may then name
one of the files.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from etils import epath

from janus_jax.errors import UserError
from janus_jax.evaluation.readers import parquet, parquet_items, tsv
from janus_jax.evaluation.readers.image_folders import ImageFolders
from janus_jax.evaluation.readers.records import first_ten
from janus_jax.evaluation.scores.yes_no import MME_COGNITION, MME_PERCEPTION

MAX_DEPTH = 5
MAX_IMAGES = 200  # A folder of more images is not searched for benchmarks.
_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")

OFFICIAL, PARQUET, TSV = "official", "parquet", "tsv"
LAST = 90  # rank of a split that nobody evaluates unless it is all there is
SEVERAL_FILES = ("pope", "mme", "chartqa")  # benchmarks of which one file alone can be scored

# Benchmark, name of the file, role of the file. A group `role` in the name is the role.
_NAMES = [
    ("pope", r"coco_pope_(?P<role>random|popular|adversarial)\.jsonl?", ""),
    ("mme", rf"(?P<role>{'|'.join((*MME_PERCEPTION, *MME_COGNITION))})\.txt", ""),
    ("seed", r"seed-bench\.json", "questions"),
    ("vqav2", r"v2_openended_mscoco_(?P<split>[\w-]+)_questions\.json", "questions"),
    ("vqav2", r"v2_mscoco_(?P<split>[\w-]+)_annotations\.json", "annotations"),
    ("gqa", r"testdev_balanced_questions\.json", "questions"),
    ("mmvet", r"mm-vet\.json", "questions"),
    ("textvqa", r"textvqa_[\d.]+_(?P<split>val)\.json", "questions"),
    ("chartqa", r"test_(?P<role>human|augmented)\.json", ""),
    ("coco_captions", r"dataset_coco\.json", "questions"),
    ("coco_captions", r"captions_(?P<split>val2014)\.json", "questions"),
    ("flickr30k", r"dataset_flickr30k\.json", "questions"),
]
_TSV_NAMES = [
    ("pope", r"pope\.tsv"),
    ("mme", r"mme\.tsv"),
    ("mmbench", r"mmbench_(?P<split>(dev|test)(_(en|cn))?)(_v11)?(_legacy)?(_\d{8})?\.tsv"),
    ("seed", r"seedbench_img\.tsv"),
    ("gqa", r"gqa_testdev_balanced\.tsv"),
    ("mmmu", r"mmmu_(?P<split>dev_val|test)\.tsv"),
    ("mmvet", r"mmvet\.tsv"),
    ("textvqa", r"textvqa_val\.tsv"),
    ("chartqa", r"chartqa_test\.tsv"),
    ("coco_captions", r"coco_val\.tsv"),
]
_REFUSED = {
    r"llava_.*\.jsonl": "a file of LLaVA's questions, whose texts differ from the benchmark's (TextVQA's hold OCR "
    "tokens); give the benchmark's own file"
}
# Fields near the beginning of a renamed JSON file.
_KEYS = {
    "seed": ("data_id", "choice_a", "question_type_id"),
    "gqa": ("imageId", "isBalanced", "structural"),
    "mmvet": ("imagename", "capability"),
    "textvqa": ("image_id", "image_classes", "answers"),
}
_HEAD_BYTES = 1 << 16
# Splits in the order of preference; the papers report the first. A train split is never evaluated.
_SPLITS: Mapping[str, Sequence[str]] = {
    "vqav2": ("val2014", "validation", "val", "test-dev2015", "testdev", "test2015", "test"),
    "mmbench": ("dev_en", "dev", "dev_cn", "test_en", "test", "test_cn"),
    "mmmu": ("validation", "val", "dev_val", "test"),
    "textvqa": ("val", "validation"),
    "coco_captions": ("", "val2014", "val", "validation"),
    "gqa": ("testdev",),
}
_SHARD = re.compile(r"(?P<split>.+?)-\d{5}-of-\d{5}\.parquet")


class Source(NamedTuple):
    """Files that together are one benchmark."""

    benchmark: str
    layout: str
    split: str
    files: Mapping[str, Sequence[epath.Path]]  # role -> files

    @property
    def paths(self) -> list[epath.Path]:
        return [path for paths in self.files.values() for path in paths]

    @property
    def rank(self) -> int:
        """Place of the split in the order of preference."""
        splits = _SPLITS.get(self.benchmark, ())
        return splits.index(self.split) if self.split in splits else LAST if splits else 0


class Found(NamedTuple):
    """What lies below a folder."""

    data: epath.Path
    sources: tuple[Source, ...]
    folders: ImageFolders
    refused: Mapping[str, str]  # file -> why it is no benchmark

    @property
    def benchmarks(self) -> list[str]:
        return sorted({source.benchmark for source in self.sources})

    def source(self, benchmark: str) -> Source:
        """The one source of a benchmark, of the preferred split. Raises UserError for none and for two."""
        sources = [source for source in self.sources if source.benchmark == benchmark]
        if not sources:
            refused = "".join(f"; {path} is {reason}" for path, reason in list(self.refused.items())[:3])
            have = ", ".join(self.benchmarks) or "no benchmark"
            raise UserError(f"--data={self.data}: no files of {benchmark}, only of {have}{refused}")
        best = min(source.rank for source in sources)
        chosen = [source for source in sources if source.rank == best]
        if len(chosen) > 1:
            listed = "; ".join(f"{source.layout}: {first_ten(source.paths)}" for source in chosen)
            raise UserError(
                f"--data={self.data}: {len(chosen)} sources of {benchmark}, expected one ({listed}); "
                "name one of the files in --data"
            )
        return chosen[0]


def find(data: epath.PathLike) -> Found:
    """Everything that is recognised below a folder, or the benchmark that a file belongs to.

    Raises:
        UserError: the path is missing, a file fits two benchmarks, a parquet or TSV file is damaged, or the named file
            is no benchmark.
    """
    data = epath.Path(data)
    if not data.exists():
        raise UserError(f"--data={data} is missing")
    top = data if data.is_dir() else data.parent
    folders, files = _walk(top)
    refused = {str(path): reason for path in files for pattern, reason in _REFUSED.items() if _fits(pattern, path)}
    if data.is_dir():
        sources = _sources(files)
        for source in sources:
            if not _is_whole(source):
                refused |= {str(path): "without its file of questions" for path in source.paths}
        sources = [source for source in sources if _is_whole(source)]
        return Found(data, tuple(sources), ImageFolders(tuple(folders)), refused)
    if str(data) in refused:
        raise UserError(f"--data={data} is {refused[str(data)]}")
    beside = [path for path in files if path.suffix == data.suffix]
    sources = [_only(source, data) for source in _sources(beside) if data in source.paths]
    if any(not _is_whole(source) for source in sources):
        raise UserError(f"--data={data} is without its file of questions")
    sources = sources or list(_renamed([data], ()))
    if not sources:
        raise UserError(f"--data={data}: not recognised as a file of a benchmark, by its name or its columns")
    return Found(data, tuple(sources), ImageFolders(tuple(folders)), {})


def _sources(files: Sequence[epath.Path]) -> list[Source]:
    sources = [*_official(files), *_tsv(files), *_parquet(files)]
    return [*sources, *_renamed(files, {source.benchmark for source in sources})]


def _is_whole(source: Source) -> bool:
    """Whether there are questions, not only the annotations of VQAv2."""
    return "annotations" not in source.files or "questions" in source.files


def _only(source: Source, file: epath.Path) -> Source:
    """The source without its other files, where one file can be scored alone."""
    if source.layout != OFFICIAL or source.benchmark not in SEVERAL_FILES:
        return source
    return source._replace(files={role: paths for role, paths in source.files.items() if file in paths})


def _walk(top: epath.Path) -> tuple[list[epath.Path], list[epath.Path]]:
    """Folders to MAX_DEPTH, and the files of those that hold few images."""
    folders, files, level = [], [], [top]
    for _ in range(MAX_DEPTH + 1):
        below: list[epath.Path] = []
        for folder in level:
            folders.append(folder)
            inside: list[epath.Path] = []
            inner: list[epath.Path] = []
            images = 0
            for path in _entries(folder):
                if _has_file_ending(path):
                    inside.append(path)
                    images += path.suffix.lower() in _IMAGE_ENDINGS
                elif path.is_dir():
                    inner.append(path)
                else:
                    images += 1  # SEED-Bench's images have no ending
                if images > MAX_IMAGES:
                    break
            else:
                below += inner
                files += inside
        level = sorted(below)
    return folders, sorted(files)


def _entries(folder: epath.Path) -> Iterator[epath.Path]:
    try:
        yield from folder.iterdir()
    except OSError as error:
        raise UserError(f"--data: {folder} cannot be read ({error.strerror or error})") from error


def _has_file_ending(path: epath.Path) -> bool:
    """Whether the name is that of a file, so that the file system need not be asked."""
    return path.suffix.lower() in (".json", ".jsonl", ".txt", ".tsv", ".parquet", *_IMAGE_ENDINGS)


def _fits(pattern: str, path: epath.Path) -> re.Match[str] | None:
    return re.fullmatch(pattern, path.name, re.IGNORECASE)


def _official(files: Sequence[epath.Path]) -> Iterator[Source]:
    groups: dict[tuple[str, str], dict[str, list[epath.Path]]] = {}
    for path in files:
        for benchmark, pattern, role in _NAMES:
            if match := _fits(pattern, path):
                named = match.groupdict()
                split = (named.get("split") or "").lower()
                roles = groups.setdefault((benchmark, split), {})
                roles.setdefault(_role(benchmark, named.get("role") or role), []).append(path)
    for (benchmark, split), roles in groups.items():
        if split.startswith("train"):
            continue
        if all(len(paths) == 1 for paths in roles.values()):
            yield Source(benchmark, OFFICIAL, split, roles)
            continue
        # A role that is there twice: each folder is a source of its own.
        for folder in sorted({path.parent for paths in roles.values() for path in paths}):
            inside = {role: [path for path in paths if path.parent == folder] for role, paths in roles.items()}
            yield Source(benchmark, OFFICIAL, split, {role: paths for role, paths in inside.items() if paths})


def _renamed(files: Sequence[epath.Path], known: Collection[str]) -> Iterator[Source]:
    """Files of JSON that are recognised by their fields, of benchmarks that no name was found for."""
    for path in files:
        if path.suffix.lower() != ".json" or "train" in path.name.lower():
            continue
        if any(_fits(pattern, path) for _, pattern, _ in _NAMES):
            continue
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
        fits = [name for name, keys in _KEYS.items() if all(f'"{key}"'.encode() in head for key in keys)]
        if len(fits) > 1:
            raise UserError(f"{path}: its fields fit {' and '.join(fits)}, expected one benchmark")
        if fits and fits[0] not in known:
            yield Source(fits[0], OFFICIAL, "", {"questions": [path]})


def _role(benchmark: str, role: str) -> str:
    """Names of tasks keep their capitals, whatever those of the file are."""
    if benchmark != "mme":
        return role.lower()
    return next(task for task in (*MME_PERCEPTION, *MME_COGNITION) if task.lower() == role.lower())


def _tsv(files: Sequence[epath.Path]) -> Iterator[Source]:
    for path in files:
        if path.suffix.lower() != ".tsv":
            continue
        named = [(name, match) for name, pattern in _TSV_NAMES if (match := _fits(pattern, path))]
        if named:
            benchmark, match = named[0]
            yield Source(benchmark, TSV, (match.groupdict().get("split") or "").lower(), {"rows": [path]})
        elif {"hint", "A", "B", "question", "l2-category"} <= set(tsv.read_header(path)):
            yield Source("mmbench", TSV, "", {"rows": [path]})


def _parquet(files: Sequence[epath.Path]) -> Iterator[Source]:
    """Shards of one split in one folder belong together; MMMU's subjects lie in one folder each."""
    groups: dict[tuple[epath.Path, str], list[epath.Path]] = {}
    for path in files:
        if path.suffix.lower() == ".parquet":
            match = _SHARD.fullmatch(path.name)
            groups.setdefault((path.parent, match["split"] if match else path.stem), []).append(path)
    merged: dict[tuple[str, epath.Path, str], list[epath.Path]] = {}
    for (folder, split), paths in groups.items():
        fits = parquet_items.benchmarks_with_columns(str(paths[0]), parquet.schema(str(paths[0])))
        if len(fits) > 1:
            raise UserError(f"{paths[0]}: its columns fit {' and '.join(fits)}, expected one benchmark")
        if not fits or split == "train":
            continue
        if fits[0] == "mmmu":
            folder = folder.parent
        elif fits[0] == "pope":  # lmms-lab's config "Full" has one file per category
            split = "test" if split in ("random", "popular", "adversarial") else split
        merged.setdefault((fits[0], folder, split), []).extend(paths)
    pictures = {key: paths for key, paths in merged.items() if key[0] == "gqa_images"}
    for (benchmark, _, split), paths in merged.items():
        if benchmark == "gqa_images":
            continue
        roles = {"rows": sorted(paths)}
        if benchmark == "gqa":
            beside = [found for key, found in pictures.items() if key[2] == split]
            if len(beside) != 1:
                raise UserError(
                    f"{paths[0]}: {len(beside)} tables of images for GQA's split {split!r}, expected one "
                    f"({first_ten([path for found in beside for path in found])})"
                )
            roles["images"] = sorted(beside[0])
        yield Source(benchmark, PARQUET, split, roles)
