"""What a batch holds, in numbers and as readable text, for people who check a mixture before they train on it.

Letters: B rows, L tokens per row.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from janus_jax.batches import Modality, PackedBatch
from janus_jax.data.records import TASKS
from janus_jax.data.tokenizer import Tokenizer

UNDERSTAND, TEXT, GENERATE = TASKS


class TokenRun(NamedTuple):
    """Neighbouring tokens of one kind in a sample."""

    # "context" is text without loss and "answer" with loss. The others are images: "und_image", "gen_image", and
    # "condition", the codes of an image that another one is generated from.
    kind: str
    text: str  # Decoded text, or the number of tokens of an image.


class Segment(NamedTuple):
    """One packed sample."""

    task: str
    key: str
    length: int  # Number of tokens.
    runs: list[TokenRun]
    images: list[np.ndarray]  # [size, size, 3] uint8, in order; none of those whose codes are stored.


class Summary(NamedTuple):
    """Counts over some rows."""

    rows: int
    places: int  # rows * L.
    used: int  # Number of places that samples take.
    samples: dict[str, int]  # Per task, as all following counts.
    tokens: dict[str, int]
    supervised: dict[str, int]  # Tokens that carry loss.
    images: dict[str, int]


def summarize(batches: Sequence[PackedBatch]) -> Summary:
    """Counts for each task over all rows of some batches."""
    counts = {name: dict.fromkeys(TASKS, 0) for name in ("samples", "tokens", "supervised", "images")}
    for batch in batches:
        for row in range(len(batch.tokens)):
            for places in _places(batch, row):
                task = _task(batch.modality[row, places])
                counts["samples"][task] += 1
                counts["tokens"][task] += len(places)
                weights = batch.text_weights[row, places] + batch.image_weights[row, places]
                counts["supervised"][task] += int((weights > 0).sum())
                counts["images"][task] += sum(kind.endswith("image") for kind, _ in _runs(batch, row, places))
    rows = sum(len(batch.tokens) for batch in batches)
    places = sum(batch.tokens.size for batch in batches)
    return Summary(rows, places, sum(counts["tokens"].values()), **counts)


def segments(batch: PackedBatch, row: int, keys: Sequence[str], tokenizer: Tokenizer) -> list[Segment]:
    """The samples of one row in a form that people can read; `keys` are those of the samples, in order."""
    result = []
    used = {"und_image": 0, "gen_image": 0}
    pixels = {"und_image": batch.und_pixels, "gen_image": batch.gen_pixels}
    for key, places in zip(keys, _places(batch, row), strict=True):
        runs, images = [], []
        for kind, run in _runs(batch, row, places):
            if kind in used:
                slots = pixels[kind]
                if slots is not None:
                    images.append(np.asarray(slots[row, used[kind]]))
                used[kind] += 1
                is_learned = batch.image_weights[row, run[0] - 1 : run[-1] + 1].any()
                runs.append(TokenRun("condition" if kind == "gen_image" and not is_learned else kind, f"{len(run)}"))
            else:
                ids = batch.tokens[row, run].tolist()
                runs.append(TokenRun(kind, tokenizer.backend.decode(ids, skip_special_tokens=False)))
        result.append(Segment(_task(batch.modality[row, places]), key, len(places), runs, images))
    return result


def _places(batch: PackedBatch, row: int) -> list[np.ndarray]:
    """The positions of each sample of a row."""
    ids = batch.segment_ids[row]
    return [np.flatnonzero(ids == segment) for segment in range(1, int(ids.max()) + 1)]


def _task(modality: np.ndarray) -> str:
    if (modality == Modality.GENERATION_IMAGE).any():
        return GENERATE
    return UNDERSTAND if (modality == Modality.UNDERSTANDING_IMAGE).any() else TEXT


def _runs(batch: PackedBatch, row: int, places: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """(kind, positions) of the runs of a sample. A text token is an answer if the token before it carries its loss."""
    learned = np.append(False, batch.text_weights[row, places[:-1]] > 0)
    modality = batch.modality[row, places]
    kinds = np.where(learned, "answer", "context").astype("<U9")
    kinds[modality == Modality.UNDERSTANDING_IMAGE] = "und_image"
    kinds[modality == Modality.GENERATION_IMAGE] = "gen_image"
    borders = np.flatnonzero(kinds[1:] != kinds[:-1]) + 1
    return [(str(kinds[run[0]]), places[run]) for run in np.split(np.arange(len(places)), borders)]
