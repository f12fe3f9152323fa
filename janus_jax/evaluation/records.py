"""Files of finished batches: one JSON line per request, written as a whole, and the check that all are there.

    OUTPUT/<benchmark>/batches/000123.jsonl           the results of batch 123
    OUTPUT/<benchmark>/images/00042/00001.png         image 1 of the request with index 42

A batch is finished when its file exists: the file appears in one step, after the images of the batch. Nothing in it
depends on who wrote it or when, so that two workers that did the same batch wrote the same bytes.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from etils import epath

from janus_jax.data.preparation.hashes import hash_file
from janus_jax.errors import UserError
from janus_jax.evaluation.benchmark import Answer, ImageRequest, Question
from janus_jax.evaluation.plan import Plan, PlannedBatch
from janus_jax.storage import write_whole

MAX_NAMED = 10  # Number of indices that a message lists.


class AnswerRecord(NamedTuple):
    """What is stored of one answer."""

    index: int  # type: ignore[assignment]  # hides a method of tuples, as in `benchmark`
    text: str
    num_tokens: int | None  # None for an answer that another program wrote
    finish: str  # "stop" or "length"; "" with an error or where it is unknown
    error: str = ""
    images: tuple[str, ...] = ()  # SHA-256 of each encoded image of the question
    converted: bool = False  # see `Answer`

    def to_answer(self) -> Answer:
        return Answer(self.index, self.text, self.num_tokens, self.finish, self.error, self.converted)


class ImagesRecord(NamedTuple):
    """What is stored of the images of one request, besides the images."""

    index: int  # type: ignore[assignment]
    images: tuple[str, ...]  # SHA-256 of each PNG file, by the number of the image
    error: str = ""  # why there are no images


Record = AnswerRecord | ImagesRecord


class BatchFolder:
    """The results of one benchmark in the output of a run."""

    def __init__(self, folder: epath.Path, requests: Sequence[Question] | Sequence[ImageRequest], plan: Plan):
        """Args: folder: OUTPUT/<benchmark>, which may not exist yet; requests and plan: those of the run."""
        self.batches, self.images = folder / "batches", folder / "images"
        self._requests, self._plan = requests, plan
        self._kind: type[Record] = ImagesRecord if isinstance(requests[0], ImageRequest) else AnswerRecord

    def create(self) -> None:
        """Makes the folders, if they do not exist."""
        self.batches.mkdir(parents=True, exist_ok=True)

    def finished(self) -> set[int]:
        """Numbers of the finished batches."""
        names = [path.name for path in self.batches.iterdir()] if self.batches.exists() else []
        return {int(match[1]) for name in names if (match := re.fullmatch(r"(\d{6,})\.jsonl", name))}

    def is_finished(self, number: int) -> bool:
        """Whether a batch is finished."""
        return self._file(number).exists()

    def write(self, batch: PlannedBatch, records: Sequence[Record]) -> None:
        """Writes the results of a batch, one per request, in the order of its positions.

        Raises ValueError when they are of other requests.
        """
        expected = [self._requests[position].index for position in batch.positions]
        found = [record.index for record in records]
        if found != expected:
            raise ValueError(f"batch {batch.number}: results of the indices {found}, expected {expected}")
        lines = (json.dumps(record._asdict(), ensure_ascii=False) for record in records)
        write_whole(self._file(batch.number), "".join(f"{line}\n" for line in lines), shared=True)

    def write_images(self, index: int, images: Iterable[bytes]) -> ImagesRecord:
        """Writes the PNG files of one request; returns its record, which is yet to be written with its batch."""
        folder = self.images / f"{index:05d}"
        folder.mkdir(parents=True, exist_ok=True)
        hashes = []
        for number, png in enumerate(images):
            write_whole(folder / f"{number:05d}.png", png, shared=True)
            hashes.append(hashlib.sha256(png).hexdigest())
        return ImagesRecord(index, tuple(hashes))

    def read(self, partial: bool = False) -> dict[int, Record]:
        """The results of all requests, by index in the order of the requests.

        Args:
            partial: batches may be missing; their requests are left out.

        Raises:
            UserError: a file is damaged, or a request is missing, repeated or none of the benchmark's. Up to
                `MAX_NAMED` indices are named.
        """
        present = self.finished()
        numbers = {batch.number for batch in self._plan.batches}
        read = [record for number in sorted(present) for record in self._read_batch(number)]
        of_plan = [batch for batch in self._plan.batches if batch.number in present or not partial]
        expected = {self._requests[position].index for batch in of_plan for position in batch.positions}
        counts = Counter(record.index for record in read)
        problems = {
            "missing": expected - counts.keys(),
            "repeated": {index for index, count in counts.items() if count > 1},
            "not of the benchmark": counts.keys() - expected,
        }
        described = [f"{_some(indices)} {what}" for what, indices in problems.items() if indices]
        if described:
            raise UserError(f"{self.batches}: the results are not complete: {'; '.join(described)}")
        if present - numbers:
            raise UserError(f"{self.batches}: batches {_some(present - numbers)} are not of the plan")
        by_index = {record.index: record for record in read}
        return {request.index: by_index[request.index] for request in self._requests if request.index in by_index}

    def check_images(self, records: Iterable[Record]) -> None:
        """Raises UserError for the first image file that is missing, or is not the one that its record describes."""
        for record in records:
            for number, sha256 in enumerate(record.images):
                path = self.images / f"{record.index:05d}" / f"{number:05d}.png"
                if not path.exists():
                    raise UserError(f"{path}: missing; delete the batch file of index {record.index} to have it again")
                if hash_file(path) != sha256:
                    raise UserError(f"{path}: is not the image that was generated (its SHA-256 is another one)")

    def _read_batch(self, number: int) -> list[Record]:
        path = self._file(number)
        try:
            return [self._parse(json.loads(line)) for line in path.read_text().removesuffix("\n").split("\n")]
        except (ValueError, TypeError, KeyError) as error:  # not UTF-8, not JSON, another form
            raise UserError(f"{path}: damaged ({error}); delete the file, and its batch will be done again") from error

    def _parse(self, fields: Any) -> Record:
        types = {"index": int, "num_tokens": int, "images": list, "converted": bool}
        if not isinstance(fields, dict) or fields.keys() != set(self._kind._fields):
            raise ValueError(f"expected an object with the fields {', '.join(self._kind._fields)}")
        for name, value in fields.items():
            if not isinstance(value, types.get(name, str)):
                raise ValueError(f"{name}={value!r}, expected {types.get(name, str).__name__}")
        return self._kind(**{**fields, "images": tuple(fields["images"])})

    def _file(self, number: int) -> epath.Path:
        return self.batches / f"{number:06d}.jsonl"


def _some(indices: Iterable[int]) -> str:
    """Up to `MAX_NAMED` numbers as text."""
    indices = sorted(indices)
    more = f" and {len(indices) - MAX_NAMED} more" if len(indices) > MAX_NAMED else ""
    return f"{', '.join(map(str, indices[:MAX_NAMED]))}{more}"
