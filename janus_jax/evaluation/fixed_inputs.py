"""The questions and images that a run is shown while it trains: the same ones at every step and in every process."""

import itertools
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from janus_jax.data.dropped_samples import DroppedSample, SampleError
from janus_jax.data.images import CENTRE
from janus_jax.data.record_reader import StoredRecord
from janus_jax.data.records import Record
from janus_jax.data.sample_builder import open_record, square_image
from janus_jax.errors import UserError
from janus_jax.training.plan import tasks
from janus_jax.training.setup import open_sources

MAX_BAD_RECORDS = 100  # records that are tried in vain before fewer inputs are used


def understanding_records(config: ConfigDict, count: int) -> Iterator[Record]:
    """The first understanding records: `count` of them and some to replace those that cannot be used.

    There are none in a run without this task, whose sources nobody opens.
    """
    if "understand" not in tasks(config):
        return
    for stored in _stored_records(config, "understand", count):
        try:
            yield open_record(stored)
        except SampleError:  # the stream counts and reports it
            continue


def first_square_images(config: ConfigDict, size: int, count: int) -> np.ndarray:
    """The centres of the first images of an image tokenizer's run, [count, size, size, 3] uint8.

    Raises UserError when none of the first records has an image that can be read.
    """
    rng = np.random.default_rng(0)  # not used by central crops
    samples = (square_image(stored, rng, size, CENTRE) for stored in _stored_records(config, "generate", count))
    readable = (sample.sample["pixels"] for sample in samples if not isinstance(sample, DroppedSample))
    pixels = list(itertools.islice(readable, count))
    if not pixels:
        raise UserError("config.sample: none of the first images of data.sources.generate can be read")
    return np.stack(pixels)


def _stored_records(config: ConfigDict, task: str, count: int) -> Iterator[StoredRecord]:
    """The first `count` records of a task, and some to replace bad ones; held-out records if the run keeps any."""
    data = config.data
    if not data.sources[task]:
        return iter(())
    sources = open_sources(data.sources[task], f"data.sources.{task}", data.held_out, data.held_out > 0)
    records = (source[i] for source, _ in sources for i in range(len(source)))
    return itertools.islice(records, count + MAX_BAD_RECORDS)
