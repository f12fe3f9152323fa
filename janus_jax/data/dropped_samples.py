"""Samples that cannot be used: why one was dropped, and a bounded report of how many were, by reason.

A bad sample never stops a run by itself, and it never disappears silently: it is counted under a reason.
"""

import collections
import enum
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from janus_jax.errors import UserError

MAX_EXAMPLES = 10
MAX_NOTES = 100  # Different notes that are told apart.
OTHER_NOTES = "other notes"
NOTABLE_RATE = 0.01  # A source that loses more than this fraction is pointed out at the end of a run.
MAX_TEXT = 200  # Characters of a key or detail that a report keeps: both come from untrusted files.


class Reason(enum.StrEnum):
    """All reasons for dropping a sample. The list is closed, so that reports are small and comparable between runs."""

    MISSING_FILE = "missing_file"  # A file that the sample names does not exist or cannot be read.
    PATH_ESCAPE = "path_escape"  # A path leaves its root folder, is absolute, or holds a NUL byte.
    TOO_LARGE = "too_large"  # A limit on bytes or characters is exceeded.
    CORRUPT = "corrupt"  # An archive, compressed stream, file or row group is damaged; what follows is lost too.
    BAD_TEXT = "bad_text"  # Bytes are not text in UTF-8, nor in UTF-16 or UTF-32 with a byte order mark.
    BAD_JSON = "bad_json"  # The text is not JSON.
    UNREAD_FILE = "unread_file"  # The data set holds a file or folder that its format does not read.
    BAD_FIELD = "bad_field"  # A field is missing or has the wrong type.
    BAD_ROLES = "bad_roles"  # The messages do not alternate between user and assistant.
    IMAGE_COUNT = "image_count"  # The number of image markers differs from the number of images.
    NO_TEXT = "no_text"  # There is no caption, no answer, or the document is empty.
    NO_IMAGE = "no_image"  # The task needs an image and there is none.
    MISSING_IMAGE = "missing_image"  # An image is announced, by a marker or an empty field, but there is none.
    UNREAD_MEDIA = "unread_media"  # A video, sound or image that the format does not read: the text alone is wrong.
    BAD_IMAGE = "bad_image"  # The image cannot be decoded: unknown format, truncated, or unsupported mode.
    IMAGE_SHAPE = "image_shape"  # The image has more pixels or a more extreme aspect ratio than allowed.
    SPECIAL_TOKEN = "special_token"  # A text holds a control token of the prompts.
    TOO_LONG = "too_long"  # The sample has more tokens or images than a row holds.
    BAD_RECORD = "bad_record"  # The record breaks another rule of `Record.validate`.


class SampleError(Exception):
    """Raised while one sample is read or built; caught at its border, where it becomes a `DroppedSample`."""

    def __init__(self, reason: Reason, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class DroppedSample(NamedTuple):
    """A sample that was dropped."""

    key: str  # Data set and sample id.
    reason: Reason
    detail: str  # One line.


class Note(NamedTuple):
    """Something about a sample that was passed over without losing the sample. Notes of the same text are counted."""

    text: str


class DropReport:
    """Counts for one data source: samples seen, samples dropped by reason, and the first few dropped ones.

    The report holds at most one number per `Reason` and MAX_EXAMPLES short examples, however long the source is. It is
    not thread-safe: give each thread or process its own report and `merge` them in a fixed order, since the order
    decides which examples are the first.
    """

    def __init__(self) -> None:
        self.seen = 0
        self.reasons: collections.Counter[Reason] = collections.Counter()
        self.examples: list[DroppedSample] = []

    @property
    def dropped(self) -> int:
        return self.reasons.total()

    @property
    def rate(self) -> float:
        """Fraction of the samples seen that were dropped; 0 before the first sample."""
        return self.dropped / self.seen if self.seen else 0.0

    def keep(self) -> None:
        self.seen += 1

    def drop(self, sample: DroppedSample) -> None:
        self.seen += 1
        self.reasons[sample.reason] += 1
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(DroppedSample(one_line(sample.key), sample.reason, one_line(sample.detail)))

    def merge(self, other: "DropReport") -> None:
        """Adds what another report counted after this one."""
        self.seen += other.seen
        self.reasons += other.reasons
        self.examples = (self.examples + other.examples)[:MAX_EXAMPLES]

    def check(self, max_rate: float, name: str, at_least: int = 1) -> None:
        """Raises UserError with the first examples when more than `max_rate` of the samples were dropped.

        Args:
            max_rate: Largest allowed fraction, from 0 to 1.
            name: Flag or config field of the limit, with the source it applies to if there are several.
            at_least: Number of drops from which on the rate is checked, since a rate over few samples means little.
        """
        if self.dropped >= at_least and self.rate > max_rate:
            raise UserError(
                f"{name}={max_rate}: {self.dropped} of {self.seen} samples dropped; first: {self.describe_examples()}"
            )

    def describe_reasons(self) -> str:
        """The counts on one line, in alphabetical order."""
        return ", ".join(f"{reason} {count:,}" for reason, count in sorted(self.reasons.items()))

    def describe_examples(self) -> str:
        """The examples on one line."""
        return "; ".join(f"{sample.key}: {sample.reason} ({sample.detail})" for sample in self.examples)

    def notable_loss(self, name: str) -> str:
        """A line for the end of a run, in bold on a terminal, if more than NOTABLE_RATE was dropped; otherwise ""."""
        if self.rate <= NOTABLE_RATE:
            return ""
        dropped = f"{self.dropped:,} of {self.seen:,} samples dropped ({self.describe_reasons()})"
        line = f"{name} lost {self.rate:.1%}: {dropped}"
        return f"\x1b[1m{line}\x1b[0m" if sys.stdout.isatty() else line

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON; reasons come in the order of `Reason`."""
        return {
            "seen": self.seen,
            "dropped": self.dropped,
            "reasons": {str(reason): self.reasons[reason] for reason in Reason if self.reasons[reason]},
            "examples": [list(sample) for sample in self.examples],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "DropReport":
        """Inverse of `to_json`. Raises ValueError, KeyError or TypeError for anything that `to_json` did not write."""
        report = cls()
        report.seen = int(values["seen"])
        report.reasons.update({Reason(reason): int(count) for reason, count in values["reasons"].items()})
        report.examples = [DroppedSample(key, Reason(reason), detail) for key, reason, detail in values["examples"]]
        return report


class NoteCounts:
    """Counts notes by their text. It holds a bounded number of texts, since these may come from untrusted files."""

    def __init__(self) -> None:
        self._counts: collections.Counter[str] = collections.Counter()

    def add(self, note: Note, count: int = 1) -> None:
        text = one_line(note.text)
        self._counts[text if text in self._counts or len(self._counts) < MAX_NOTES else OTHER_NOTES] += count

    def merge(self, counts: Mapping[str, int]) -> None:
        """Adds what `to_json` of another one gave."""
        for text, count in counts.items():
            self.add(Note(text), count)

    def to_json(self) -> dict[str, int]:
        return dict(sorted(self._counts.items()))


def one_line(text: str) -> str:
    """Makes a text short and printable: no control character or lone surrogate reaches a terminal or a JSON file."""
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[: MAX_TEXT + 1])
    return shown if len(shown) <= MAX_TEXT else shown[: MAX_TEXT - 3] + "..."
