"""What a benchmark is: a list of requests to a model, and a pure function that scores what came back.

A benchmark asks either questions (text answers) or for images. It knows nothing of models, batches, hosts or resume:
these belong to the runner. A file of predictions that another program wrote is scored in the same way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from etils import epath

# Fields of a NamedTuple that are named `index` and `count` hide methods of tuples, of which mypy complains.


class ImageReference(Protocol):
    """An image of a benchmark that is read only when it is needed."""

    @property
    def name(self) -> str:
        """Shown in reports, such as "COCO_val2014_000000000042.jpg"; equal names are equal images."""
        ...

    def read(self) -> bytes:
        """The encoded image. Raises UserError when it is missing or larger than an image may be."""
        ...


class Question(NamedTuple):
    """A question that a model answers with text."""

    # The place in the order of the benchmark's files, from 0: the key of everything that is stored. Places of questions
    # that are not asked, such as those about videos, are left out.
    index: int  # type: ignore[assignment]
    id: str  # the benchmark's own name of it, text as it stands in the file
    prompt: str  # what the user says, without roles; the images come before it
    images: tuple[ImageReference, ...]
    gold: Any  # the right answer as JSON: text, list of texts, option letter
    cluster: str  # questions of one cluster share an image or a base question, and are not independent
    fields: Mapping[str, Any] = {}  # what the score needs besides, as JSON: category, options, answer type


class ImageRequest(NamedTuple):
    """A prompt for which a model generates images, or an image that its image tokenizer reconstructs."""

    index: int  # type: ignore[assignment]
    id: str
    prompt: str
    num_images: int
    fields: Mapping[str, Any] = {}
    image: ImageReference | None = None  # the image to reconstruct; its prompt is empty


class Answer(NamedTuple):
    """The text that a model gave to a question."""

    index: int  # type: ignore[assignment]
    text: str
    num_tokens: int | None = None  # None: unknown, the answer comes from a file of predictions
    finish: str = ""  # "stop", "length" (truncated), or "" where it is unknown
    error: str = ""  # why there is no answer, such as an unreadable image; the answer then counts as wrong
    converted: bool = False  # whether the text has passed what the benchmark does to answers before an upload


class SampleScore(NamedTuple):
    """How one answer, or the images of one request, were read and what they earn."""

    index: int  # type: ignore[assignment]
    parsed: str | None  # what was read out of the answer; None: undecided, which counts as wrong
    score: float | None  # its share in the headline figure, mostly 0 or 1; None: nothing here can score it
    fields: Mapping[str, Any] = {}  # further readings, such as {"lenient": 1.0}


class Metric(NamedTuple):
    """One figure of a benchmark in the unit of its paper, with how sure it is."""

    value: float
    count: int  # type: ignore[assignment]  # of questions, prompts or images behind it
    stderr: float | None = None  # None: not known
    interval: tuple[float, float] | None = None  # of 95 %


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a benchmark says about a list of answers."""

    headline: str  # the name in `metrics` that is compared with the paper; "" if nothing here can score the answers
    metrics: Mapping[str, Metric]
    samples: Sequence[SampleScore]  # in the order of the requests
    counts: Mapping[str, int]  # such as {"undecided": 3, "truncated": 0, "unreadable": 0}
    tables: Mapping[str, Sequence[Sequence[Any]]] = dataclasses.field(default_factory=dict)  # title -> rows, head first
    notes: Sequence[str] = ()  # sentences that a reader of the figures must know, such as "first 100, not comparable"


class Benchmark(Protocol):
    """A benchmark of questions, made from files by `evaluation.readers` and named in `evaluation.registry`."""

    @property
    def name(self) -> str:
        """Its name, such as "pope"."""
        ...

    @property
    def files(self) -> Sequence[epath.Path]:
        """What it was read from; part of the identity of a run."""
        ...

    @property
    def requests(self) -> Sequence[Question]: ...

    def score(self, answers: Sequence[Answer]) -> Scores:
        """Scores one answer per request, in the order of the requests. Pure; touches no model and no JAX device."""
        ...

    def write_submission(self, answers: Sequence[Answer], folder: epath.Path) -> Sequence[epath.Path]:
        """Writes the answers as the benchmark's official server or script reads them."""
        ...

    def read_submission(self, path: epath.Path) -> Sequence[Answer]:
        """Reads such a file back. Raises UserError for missing, repeated or extra questions, naming up to ten."""
        ...


class ImageBenchmark(Protocol):
    """A benchmark of generated images, which lie as `folder/<index>/<number>.png`, both with five digits."""

    @property
    def name(self) -> str: ...

    @property
    def files(self) -> Sequence[epath.Path]: ...

    @property
    def requests(self) -> Sequence[ImageRequest]: ...

    def score(self, folder: epath.Path) -> Scores:
        """Scores a complete folder of images. Raises UserError when images are missing, naming up to ten."""
        ...

    def write_submission(self, images: epath.Path, folder: epath.Path) -> Sequence[epath.Path]:
        """Writes a complete folder of images as the benchmark's official script reads them."""
        ...
