"""Images and questions of a benchmark are found in training records, also after another encoding or resizing."""

import dataclasses
import io

import numpy as np
import PIL.Image
import pytest

from janus_jax.data.prompts import Message
from janus_jax.data.record_reader import open_records
from janus_jax.data.records import Record, write_records
from janus_jax.evaluation.benchmark import Question
from janus_jax.evaluation.contamination import MAX_DISTANCE, Index, hash_image, normalise, without_overlap
from tests.helpers.yes_no_benchmark import to_png, yes_no


def photo(seed, size=(64, 48)):
    """A smooth image with structure of its own."""
    rng = np.random.default_rng(seed)
    return PIL.Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize(size, PIL.Image.Resampling.BICUBIC)


@dataclasses.dataclass(frozen=True)
class PhotoImage:
    name: str
    seed: int

    def read(self):
        return to_png(photo(self.seed))


def jpeg(image):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=60)
    return buffer.getvalue()


def record(key, text, image):
    messages = (Message("user", f"<image>\n{text}"), Message("assistant", "yes"))
    return Record(task="understand", messages=messages, images=(image,), key=key)


@pytest.fixture
def benchmark():
    questions = [
        Question(
            index, str(index), f"Is there a {thing} in it?", (PhotoImage(f"{index % 4}.png", index % 4),), "yes", ""
        )
        for index, thing in enumerate(["cat", "dog", "tree", "house", "boat", "road"])
    ]
    return yes_no((), questions)


@pytest.fixture
def found(benchmark, tmp_path):
    flat = PIL.Image.new("RGB", (20, 20), "white")
    records = [
        record("same pixels", "What does the image show?", to_png(photo(0))),
        record("another encoding and size", "And this?", jpeg(photo(1, (90, 70)))),
        record("other image", "Is there a BOAT, in it", to_png(photo(7))),
        record("damaged", "Why?", b"no image"),
        record("flat", "What is it?", to_png(flat)),
    ]
    write_records(tmp_path / "understand-0.array_record", records)
    index = Index([benchmark])
    searched = index.search(open_records(str(tmp_path / "*.array_record"), "--contamination"))
    assert searched == (5, 4, 1)
    return index.overlaps[0]


def test_what_is_in_the_records_is_found_and_nothing_else(found):
    assert found.same_images == {0: "same pixels", 4: "same pixels"}
    assert found.similar_images == {1: "another encoding and size", 5: "another encoding and size"}
    assert found.same_questions == {4: "other image"}
    assert found.indices == {0, 1, 4, 5}
    assert found.to_json()["found"] == [0, 1, 4, 5]


def test_the_score_of_the_rest_is_that_of_the_others(found):
    samples = [{"index": index, "score": float(index == 2)} for index in range(6)]
    assert without_overlap(samples, found) == (50.0, 2)
    assert without_overlap(samples[:2], found) is None


def test_hashes_of_other_photos_are_far_apart_and_those_of_copies_are_near():
    hashes = [hash_image(photo(seed)) for seed in range(20)]
    apart = [(a.difference ^ b.difference).bit_count() for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(apart) > MAX_DISTANCE
    for seed in range(20):
        copy = hash_image(PIL.Image.open(io.BytesIO(jpeg(photo(seed, (200, 150))))))
        assert (copy.difference ^ hashes[seed].difference).bit_count() <= MAX_DISTANCE
        assert copy.sha256 != hashes[seed].sha256


def test_questions_are_compared_by_their_words():
    assert normalise("<image>\nIs  it a CAT?") == "is it a cat"
    assert normalise("ﬁne, É!") == "fine é"
