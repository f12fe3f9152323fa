"""The plan of a benchmark: its requests, divided into batches once and for all.

A plan is computed from the requests alone. It knows no process, device or time, so that any number of workers make the
same batches, and a batch that one worker did not finish can be done by another one with the same result.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from janus_jax.data.preparation.hashes import hash_json
from janus_jax.evaluation.benchmark import ImageRequest, Question

BUCKET_BYTES = 64  # Prompts are sorted by their length in UTF-8 in multiples of this, which are some 16 tokens.


class PlannedBatch(NamedTuple):
    """Requests that are sent to the model together."""

    number: int  # from 0; names the file of its results
    bucket: int  # length bucket of its first, longest prompt
    groups: tuple[tuple[int, ...], ...]  # positions of equal requests; the first is asked, and stands for all of them

    @property
    def positions(self) -> list[int]:
        """The positions of all its requests in the list of requests, in the order of the batch."""
        return [position for group in self.groups for position in group]


class Plan(NamedTuple):
    """All batches of a benchmark, in the order in which they are done."""

    batches: tuple[PlannedBatch, ...]

    @property
    def num_requests(self) -> int:
        return sum(len(batch.positions) for batch in self.batches)

    @property
    def num_distinct(self) -> int:
        """Number of requests without repetitions."""
        return sum(len(batch.groups) for batch in self.batches)

    @property
    def sha256(self) -> str:
        """Differs for any other division, order or number of requests."""
        return hash_json([batch.groups for batch in self.batches])


def make_plan(requests: Sequence[Question] | Sequence[ImageRequest], rows: int) -> Plan:
    """Divides requests into batches of up to `rows` answers or images.

    Prompts of similar length are put together, so that little of a batch is padding, and the longest come first, so
    that a batch that does not fit the memory fails at once. A batch has questions with the same number of images, or
    requests for the same number of images. Equal questions are answered once: POPE's 9,000 are 5,127 distinct ones.
    Equal requests for images are kept apart, since each stands for images of its own.

    Args:
        requests: of one kind.
        rows: of a batch; a request for more images than that is a batch of its own.
    """
    if rows < 1:
        raise ValueError(f"rows={rows}, expected at least 1")
    groups = sorted(_equal_requests(requests), key=lambda group: _order(requests[group[0]], group[0]))
    batches: list[PlannedBatch] = []
    start = 0
    while start < len(groups):
        first = requests[groups[start][0]]
        size = rows if isinstance(first, Question) else max(1, rows // first.num_images)
        end = start
        while end < min(start + size, len(groups)) and _num_images(requests[groups[end][0]]) == _num_images(first):
            end += 1
        batches.append(PlannedBatch(len(batches), _bucket(first), tuple(groups[start:end])))
        start = end
    return Plan(tuple(batches))


def _equal_requests(requests: Sequence[Question] | Sequence[ImageRequest]) -> Iterator[tuple[int, ...]]:
    """The positions of each distinct request."""
    positions: dict[object, list[int]] = {}
    for position, request in enumerate(requests):
        equal: object = position
        if isinstance(request, Question):
            equal = (request.prompt, *(image.name for image in request.images))
        positions.setdefault(equal, []).append(position)
    return map(tuple, positions.values())


def _order(request: Question | ImageRequest, position: int) -> tuple[int, int, int]:
    return -_num_images(request), -_bucket(request), position


def _bucket(request: Question | ImageRequest) -> int:
    return len(request.prompt.encode()) // BUCKET_BYTES


def _num_images(request: Question | ImageRequest) -> int:
    return len(request.images) if isinstance(request, Question) else request.num_images
