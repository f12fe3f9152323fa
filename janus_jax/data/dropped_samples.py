"""Bad samples: why one was dropped, and the bounded report of how many were, by reason.

A sample that cannot be used is counted, never raised over and never lost silently.
"""

import collections
import enum
from collections.abc import Mapping
from typing import Any, NamedTuple

from janus_jax.errors import UserError

MAX_EXAMPLES = 10
MAX_TEXT = 200  # characters of a key or detail that a report keeps: both come from untrusted files


class Reason(enum.StrEnum):
    """Every reason there is, so that a report of counts is bounded and comparable between runs."""

    MISSING_FILE = "missing_file"  # a file that the sample names is not there, or cannot be read
    PATH_ESCAPE = "path_escape"  # a path that leaves its root, is absolute, or holds a NUL byte
    TOO_LARGE = "too_large"  # over a limit on bytes or characters
    CORRUPT = "corrupt"  # a damaged archive, compressed stream, shard or row group: what follows is lost too
    BAD_JSON = "bad_json"  # not JSON
    UNREAD_FILE = "unread_file"  # a file or folder of the data set that its format does not read
    BAD_FIELD = "bad_field"  # a field is missing or of another type
    BAD_ROLES = "bad_roles"  # turns do not alternate between user and assistant
    IMAGE_COUNT = "image_count"  # the number of markers is not the number of images
    NO_TEXT = "no_text"  # no caption, no answer, empty document
    NO_IMAGE = "no_image"  # the task needs an image and there is none
    BAD_IMAGE = "bad_image"  # cannot be decoded: foreign, truncated, unsupported mode
    IMAGE_SHAPE = "image_shape"  # more pixels or a more extreme aspect ratio than allowed
    SPECIAL_TOKEN = "special_token"  # a text holds a control token of the prompts, which it must not give
    TOO_LONG = "too_long"  # more tokens or images than a row holds
    BAD_RECORD = "bad_record"  # any other broken rule of `Record.validate`


class Bad(NamedTuple):
    """A sample that was dropped."""

    key: str  # data set and sample id
    reason: Reason
    detail: str  # one line


class DropReport:
    """Counts of one source: samples seen, dropped by reason, and the first few offenders.

    At most one number per `Reason` and MAX_EXAMPLES short examples, however long the source. Not thread-safe: give
    each thread or process its own and `merge` them in a fixed order, on which "first" depends.
    """

    def __init__(self) -> None:
        self.seen = 0
        self.reasons: collections.Counter[Reason] = collections.Counter()
        self.examples: list[Bad] = []

    @property
    def dropped(self) -> int:
        return self.reasons.total()

    @property
    def rate(self) -> float:
        """Dropped part of the samples seen; 0 before the first."""
        return self.dropped / self.seen if self.seen else 0.0

    def keep(self) -> None:
        self.seen += 1

    def drop(self, bad: Bad) -> None:
        self.seen += 1
        self.reasons[bad.reason] += 1
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(Bad(one_line(bad.key), bad.reason, one_line(bad.detail)))

    def merge(self, other: "DropReport") -> None:
        """Adds what another report counted after this one."""
        self.seen += other.seen
        self.reasons += other.reasons
        self.examples = (self.examples + other.examples)[:MAX_EXAMPLES]

    def check(self, max_rate: float, name: str, at_least: int = 1) -> None:
        """Raises UserError with the first offenders when more than `max_rate` of the samples are bad.

        Args:
            max_rate: 0 .. 1.
            name: flag or field of the limit, with its source if there are several.
            at_least: drops below this number never abort, since early in a stream a rate means little.
        """
        if self.dropped >= at_least and self.rate > max_rate:
            raise UserError(
                f"{name}={max_rate}: {self.dropped} of {self.seen} samples dropped; first: {self.offenders()}"
            )

    def offenders(self) -> str:
        """The examples on one line."""
        return "; ".join(f"{bad.key}: {bad.reason} ({bad.detail})" for bad in self.examples)

    def to_json(self) -> dict[str, Any]:
        """Plain values, in the order of `Reason`."""
        return {
            "seen": self.seen,
            "dropped": self.dropped,
            "reasons": {str(reason): self.reasons[reason] for reason in Reason if self.reasons[reason]},
            "examples": [list(bad) for bad in self.examples],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "DropReport":
        """Inverse of `to_json`. Raises ValueError, KeyError or TypeError on anything else."""
        report = cls()
        report.seen = int(values["seen"])
        report.reasons.update({Reason(reason): int(count) for reason, count in values["reasons"].items()})
        report.examples = [Bad(key, Reason(reason), detail) for key, reason, detail in values["examples"]]
        return report


def one_line(text: str) -> str:
    """Printable and bounded: control characters and lone surrogates must not reach a terminal or a JSON file."""
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[: MAX_TEXT + 1])
    return shown if len(shown) <= MAX_TEXT else shown[: MAX_TEXT - 3] + "..."
