"""The scores of the quickstart for stand-ins of models whose right and wrong answers are known."""

import numpy as np
import pytest

from examples.digits import data as digits
from examples.digits.benchmark import BATCH, Judge, evaluate_generation, evaluate_understanding


@pytest.fixture(scope="module")
def splits():
    return digits.load_digits()


class Reader:
    """Knows the labels of `shown`, and answers every `wrong`-th question with a mistake."""

    def __init__(self, shown, wrong, mistake):
        images = [digits.to_image(intensities) for intensities in shown.intensities]
        self._labels = {image.tobytes(): label for image, label in zip(images, shown.labels, strict=True)}
        self._wrong, self._mistake = wrong, mistake
        self.questions, self.sizes = [], []

    def chat(self, images, prompt, *, max_new_tokens):
        assert max_new_tokens >= 1
        answers = []
        for (image,), question in zip(images, prompt, strict=True):
            name = digits.NAMES[self._labels[image.tobytes()]]
            answers.append(self._mistake(name) if len(self.questions) % self._wrong == 0 else name)
            self.questions.append(question)
        self.sizes.append(len(images))
        return answers


@pytest.mark.parametrize(
    "mistake",
    [lambda name: "nine" if name == "one" else "one", lambda name: name.upper(), lambda name: f"{name}.", lambda _: ""],
    ids=["other digit", "capitals", "full stop", "nothing"],
)
def test_only_exact_names_count_as_read(splits, mistake):
    held_out = splits[1]
    reader = Reader(held_out, wrong=4, mistake=mistake)
    result = evaluate_understanding(reader, held_out)
    assert result.accuracy == 270 / 360
    np.testing.assert_array_equal(result.labels, held_out.labels)
    assert result.questions == reader.questions
    assert [reader.questions.count(question) for question in digits.QUESTIONS] == [120, 120, 120]
    assert sum(reader.sizes) == 360
    assert max(reader.sizes) <= BATCH


class Painter:
    """Returns real held-out images; `choose(n, i)` says which digit image i shows when digit n is asked for."""

    def __init__(self, held_out, choose, same=False):
        self._held_out, self._choose, self._same = held_out, choose, same
        self.orders = []

    def generate_images(self, prompts, num_images, *, cfg_weight, seed, prompt_numbers):
        (prompt,), (asked,) = prompts, prompt_numbers
        assert digits.NAMES[asked] in prompt
        self.orders.append((prompt, num_images, cfg_weight, seed))
        images = []
        for i in range(num_images):
            places = np.flatnonzero(self._held_out.labels == self._choose(asked, i))
            images.append(digits.to_image(self._held_out.intensities[places[0 if self._same else i]]))
        return images


@pytest.fixture(scope="module")
def score(splits):
    training, held_out = splits
    judge = Judge(training)

    def score(choose, same=False):
        painter = Painter(held_out, choose, same)
        result = evaluate_generation(painter, judge, training, images_per_class=20, cfg_weight=2.0, seed=3)
        assert painter.orders == [(digits.CAPTIONS[0].format(name), 20, 2.0, 3) for name in digits.NAMES]
        np.testing.assert_array_equal(result.confusion.sum(axis=1), [20] * 10)
        assert np.trace(result.confusion) / 200 == result.accuracy
        return result

    return score


def test_real_digits_are_accurate_and_diverse(score):
    result = score(lambda asked, i: asked)
    assert result.accuracy >= 0.97
    assert result.accuracy_permuted <= 0.2
    assert 0.9 < result.diversity < 1.1
    np.testing.assert_array_equal(result.labels, np.repeat(np.arange(10), 20))


def test_a_painter_that_ignores_the_prompt_is_at_chance_either_way(score):
    result = score(lambda asked, i: 7)
    assert 0.09 <= result.accuracy <= 0.11
    assert result.confusion[:, 7].sum() >= 190


def test_a_painter_that_swaps_digits_is_found_out_by_the_confusion(score):
    result = score(lambda asked, i: (asked + 1) % 10)
    assert result.accuracy <= 0.03
    assert sum(result.confusion[n, (n + 1) % 10] for n in range(10)) >= 194


def test_a_painter_of_one_image_per_digit_has_no_diversity(score):
    result = score(lambda asked, i: asked, same=True)
    assert result.diversity == pytest.approx(0, abs=1e-6)
