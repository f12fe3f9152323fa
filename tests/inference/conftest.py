"""One small model for all tests of decoding, with real tokens and images.

Compiling takes nearly all of the time of these tests. Every test therefore uses the session's pipeline, and batches of
few different shapes, whose programs a process compiles once.
"""

import PIL.Image
import pytest

from examples.digits import data as digits
from janus_jax.inference.janus import JanusPipeline
from janus_jax.inference.padding import Buckets
from tests.helpers.small_models import DECODED, random_params

BUCKETS = Buckets(prompt=32, answer=16)  # small ones, since a CPU's program has a branch for each part of the cache


@pytest.fixture(scope="session")
def tokenizer():
    return digits.build_tokenizer(digits.text_records(), DECODED.llama.vocab_size, DECODED.prompt_style)


@pytest.fixture(scope="session")
def pipeline(tokenizer):
    return JanusPipeline(DECODED, random_params(DECODED, seed=12), tokenizer, buckets=BUCKETS)


@pytest.fixture(scope="session")
def saved(pipeline, tmp_path_factory):
    """The folder of the model."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pictures():
    """Three images of different colours and sizes, none of them square."""
    colours = [(20, (250, 10, 10)), (30, (10, 10, 240)), (40, (240, 240, 20))]
    return [PIL.Image.new("RGB", (25, height), colour) for height, colour in colours]
