"""Finds what of a benchmark is in training data: the same images, nearly the same images, and the same questions.

COCO val2014, from which POPE takes its images, is part of COCO train2017, for example. Prepared ArrayRecord files are
read once, on the CPU. The figures of a benchmark without what was found are printed beside the others.
"""

import dataclasses
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from janus_jax.data.images import decode_image
from janus_jax.data.record_reader import RecordSource
from janus_jax.data.records import Record
from janus_jax.errors import UserError
from janus_jax.evaluation.benchmark import Benchmark, ImageBenchmark, Question
from janus_jax.phases import phase

MAX_DISTANCE = 4  # Number of bits of 64 in which the hashes of images that count as nearly the same may differ.
READING_THREADS = 8
CHUNK = 256  # Number of records that are read at a time.
MIN_WORDS = 4  # Shorter questions, such as "What is this?", are the same in every data set and tell nothing.
_HASH_SIZE = 8


class ImageHash(NamedTuple):
    """The marks by which two images are compared."""

    sha256: bytes  # of the decoded pixels, so that another file format or other metadata does not hide an image
    difference: int  # 64 bits, one for each pair of neighbours of a tiny grey image: is the right one brighter?


@dataclasses.dataclass
class Overlap:
    """What was found of one benchmark.

    Attributes:
        same_images, similar_images, same_questions: index of a request -> key of a record of the training data.
    """

    benchmark: str
    requests: int
    same_images: dict[int, str] = dataclasses.field(default_factory=dict)
    similar_images: dict[int, str] = dataclasses.field(default_factory=dict)
    same_questions: dict[int, str] = dataclasses.field(default_factory=dict)

    @property
    def indices(self) -> set[int]:
        """Requests of which anything was found."""
        return {*self.same_images, *self.similar_images, *self.same_questions}

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "found": sorted(self.indices)}


class Searched(NamedTuple):
    """How much of the training data was read."""

    records: int
    images: int
    unreadable: int  # records or images that could not be read


class Index:
    """The images and questions of some benchmarks, in a form in which training data can be looked up quickly."""

    def __init__(self, benchmarks: Sequence[Benchmark | ImageBenchmark]):
        """Reads all images of the benchmarks; those that cannot be read are left out, since no model sees them."""
        self.overlaps = [Overlap(benchmark.name, len(benchmark.requests)) for benchmark in benchmarks]
        self._questions: dict[str, list[tuple[int, int]]] = {}  # normalised text -> (benchmark, index)
        owners: dict[ImageHash, list[tuple[int, int]]] = {}
        for place, benchmark in enumerate(benchmarks):
            for request in benchmark.requests:
                text = normalise(request.prompt)
                if len(text.split()) >= MIN_WORDS:
                    self._questions.setdefault(text, []).append((place, request.index))
            for found, indices in _hashes_of_benchmark(benchmark):
                owners.setdefault(found, []).extend((place, index) for index in indices)
        self._owners = list(owners.values())
        self._by_pixels = {found.sha256: row for row, found in enumerate(owners)}
        self._differences = np.array([found.difference for found in owners], np.uint64)

    def search(self, source: RecordSource) -> Searched:
        """Looks up every record, and adds what is found to `overlaps`."""
        images = unreadable = 0
        with (
            ThreadPoolExecutor(READING_THREADS) as pool,
            phase("searching training data", len(source), " records") as advance,
        ):
            for start in range(0, len(source), CHUNK):
                rows = range(start, min(start + CHUNK, len(source)))
                for record, found in pool.map(lambda row: _read(source[row].data), rows):
                    if record is None:
                        unreadable += 1
                        continue
                    images += sum(each is not None for each in found)
                    unreadable += sum(each is None for each in found)
                    self._add(record, [each for each in found if each is not None])
                advance(len(rows))
        return Searched(len(source), images, unreadable)

    def _add(self, record: Record, images: Iterable[ImageHash]) -> None:
        for message in record.messages:
            if message.role == "user":
                for place, index in self._questions.get(normalise(message.text), ()):
                    self.overlaps[place].same_questions.setdefault(index, record.key)
        for image in images:
            row = self._by_pixels.get(image.sha256)
            if row is not None:
                for place, index in self._owners[row]:
                    self.overlaps[place].same_images.setdefault(index, record.key)
            elif len(self._differences):
                distances = np.bitwise_count(self._differences ^ np.uint64(image.difference))
                for similar in np.flatnonzero(distances <= MAX_DISTANCE):
                    for place, index in self._owners[similar]:
                        self.overlaps[place].similar_images.setdefault(index, record.key)


def hash_image(image: PIL.Image.Image) -> ImageHash:
    """The hashes of an RGB image."""
    pixels = np.asarray(image)
    digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()
    grey = np.asarray(image.convert("L").resize((_HASH_SIZE + 1, _HASH_SIZE), PIL.Image.Resampling.LANCZOS), np.int16)
    bits = np.packbits(grey[:, 1:] > grey[:, :-1])
    return ImageHash(digest, int.from_bytes(bits.tobytes(), "big"))


def normalise(text: str) -> str:
    """Lower-case words without punctuation, as one line."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).lower().replace("<image>", " ")))


def without_overlap(samples: Sequence[Mapping[str, Any]], overlap: Overlap) -> tuple[float, int] | None:
    """The mean score in percent of the samples of which nothing was found, and their number; None if there are none."""
    rest = [sample["score"] for sample in samples if sample["index"] not in overlap.indices]
    rest = [value for value in rest if value is not None]
    return (100 * sum(rest) / len(rest), len(rest)) if rest else None


def _hashes_of_benchmark(benchmark: Benchmark | ImageBenchmark) -> Iterator[tuple[ImageHash, list[int]]]:
    """The hashes of each distinct image of the questions, with the indices of the questions that show it."""
    shown: dict[str, tuple[Any, list[int]]] = {}
    for request in benchmark.requests:
        for image in request.images if isinstance(request, Question) else ():
            shown.setdefault(image.name, (image, []))[1].append(request.index)
    with ThreadPoolExecutor(READING_THREADS) as pool:
        hashes = pool.map(lambda entry: _hash_data(entry[0].read, entry[0].name), shown.values())
        for found, (_, indices) in zip(hashes, shown.values(), strict=True):
            if found is not None:
                yield found, indices


def _read(data: bytes | None) -> tuple[Record | None, list[ImageHash | None]]:
    """A record and the hashes of its images; None for what cannot be read."""
    if data is None:
        return None, []
    try:
        record = Record.deserialize(data)
    except UserError:
        return None, []
    return record, [_hash_data(lambda image=image: image, record.key) for image in record.images]


def _hash_data(read: Any, name: str) -> ImageHash | None:
    try:
        return hash_image(decode_image(read(), name))
    except UserError:
        return None
