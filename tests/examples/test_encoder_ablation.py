"""The ablation on mosaics: its questions, its SigLIP, equal samples, the probe and the page."""

import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from examples.digits.data import NAMES, load_digits
from examples.digits.encoder_ablation import arms, evaluation, mosaics, report
from examples.digits.encoder_ablation.pretrain_siglip import sigmoid_loss
from tests.helpers import REPOSITORY


@pytest.fixture(scope="module")
def made():
    return mosaics.make_mosaics(load_digits()[1], 40, seed=0)


def test_a_mosaic_shows_its_digits_and_questions_have_the_right_answers(made):
    pixels = mosaics.pixels(made)
    assert pixels.shape == (40, 2 * mosaics.SIDE, 2 * mosaics.SIDE, 3)
    rng = np.random.default_rng(0)
    places = dict(zip(mosaics.PLACES, range(4), strict=True))
    for mosaic in made:
        for kind in mosaics.KINDS:
            question = mosaics.ask(mosaic, kind, rng)
            text = question.text
            if kind == "place":
                expected = mosaic.labels[places[text.removeprefix("Which digit is ").rstrip("?")]]
            elif kind == "count":
                digit = next(i for i, name in enumerate(NAMES) if f" {name} " in text)
                expected = sum(label == digit for label in mosaic.labels)
            else:
                named = [places[place] for place in mosaics.PLACES if place in text]
                assert len(named) == 2
                expected = max(mosaic.labels[place] for place in named)
            assert question.answer == NAMES[expected]
    assert {len(set(mosaic.labels)) for mosaic in made} >= {2, 4}
    quadrants = mosaics.quadrants([made[0].image])
    np.testing.assert_array_equal(np.asarray(quadrants[1]), pixels[0, :16, 16:])


def test_held_out_digits_are_not_those_of_training():
    training, held_out = load_digits()
    seen = {image.tobytes() for image in training.intensities}
    assert sum(image.tobytes() in seen for image in held_out.intensities) < 5  # some scans occur twice in the data set


def test_the_sigmoid_loss_is_that_of_the_paper():
    rng = np.random.default_rng(0)
    images, texts = rng.standard_normal((2, 5, 8)).astype(np.float32)
    labels = np.array([[0, 1], [0, 1], [2, 1], [3, 3], [1, 0]])
    found = sigmoid_loss(*map(jnp.asarray, (images, texts, labels)), jnp.float32(0.7), jnp.float32(-1.5))
    expected = 0.0
    for i in range(5):
        for j in range(5):
            x, y = images[i].astype(np.float64), texts[j].astype(np.float64)
            logit = np.exp(0.7) * x @ y / np.linalg.norm(x) / np.linalg.norm(y) - 1.5
            z = 1 if (labels[i] == labels[j]).all() else -1
            expected += np.log1p(np.exp(-z * logit)) / 5
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_the_probe_reads_what_is_linear_in_the_features_of_a_place():
    rng = np.random.default_rng(0)

    def features(labels):
        """Token (row, column) of a 4 x 4 grid shows the digit of its quadrant, as one-hot numbers with noise."""
        grid = labels.reshape(-1, 2, 2).repeat(2, axis=1).repeat(2, axis=2).reshape(-1, 16)
        return np.eye(10)[grid] + 0.1 * rng.standard_normal((*grid.shape, 10))

    training, held_out = rng.integers(0, 10, (300, 4)), rng.integers(0, 10, (100, 4))
    assert evaluation.linear_probe(features(training), training, features(held_out), held_out) > 0.99
    noise = rng.standard_normal((100, 16, 10))
    assert evaluation.linear_probe(features(training), training, noise, held_out) < 0.3


def test_arms_of_a_task_read_equal_samples_and_others_are_found(tmp_path):
    folder = epath.Path(tmp_path)
    _write_data(folder)
    samples = {arm.letter: arms.count_samples(arms.arm_config(arm, arms.QUICK, 0, folder)) for arm in arms.ARMS}
    arms.require_equal_samples(samples)
    number = arms.QUICK.task_steps * arms.BATCH
    assert {task: read.number for task, read in samples["A"].items()} == dict.fromkeys(arms.TASKS, number)
    assert samples["C"].keys() == {"understand"} and samples["F"].keys() == {"generate"}
    other = arms.count_samples(arms.arm_config(arms.ARMS[4], arms.QUICK, 1, folder))
    with pytest.raises(AssertionError, match="different samples of understand"):
        arms.require_equal_samples(samples | {"E": other})


def _write_data(folder):
    """The data of `run.write_data`, whose module has flags and is not imported here."""
    from examples.digits.data import build_tokenizer
    from janus_jax.data.records import write_records
    from janus_jax.models.presets import JANUS_PRO_TINY

    training = mosaics.make_mosaics(load_digits()[0], arms.QUICK.mosaics, seed=1)
    records = {
        "understand": mosaics.understanding_records(training, 1),
        "generate": mosaics.generation_records(training),
    }
    (folder / "data").mkdir()
    for task, of_task in records.items():
        write_records(folder / "data" / f"{task}.array_record", of_task)
    tokenizer = build_tokenizer(sum(records.values(), []), JANUS_PRO_TINY.llama.vocab_size, JANUS_PRO_TINY.prompt_style)
    tokenizer.save(folder / "data" / "tokenizer.json")


def _report(accuracies):
    """A report with two seeds, in which the final accuracies of an arm are given."""
    made = {}
    for arm in arms.ARMS:
        runs = []
        for seed in range(2):
            point = {"step": 4, "samples": 64}
            value = accuracies[arm.letter][seed]
            if "understand" in arm.tasks:
                point["understanding"] = {"place": value, "count": value, "larger": value, "all": value}
            if "generate" in arm.tasks:
                point["generation"] = value
            samples = {task: {"number": 64, "digest": "ab" * 32} for task in arm.tasks}
            runs.append({"steps": 4, "samples": samples, "points": [point]})
        made[arm.letter] = {"reads": arm.reads, "tasks": arm.tasks, "runs": runs}
    names = ("most_common_answer", "judge_on_real", "judge_on_vq_tokenizer", "judge_on_semantic_tokenizer")
    bounds = dict.fromkeys(names, 0.5)
    return {
        "sizes": arms.FULL._asdict(),
        "seeds": [0, 1],
        "arms": made,
        "linear_probe": {"semantic features": 0.8},
    } | bounds


def test_the_page_has_means_intervals_orders_and_what_is_decided(made):
    accuracies = {
        "A": (0.2, 0.21),
        "B": (0.4, 0.6),
        "C": (0.5, 0.52),
        "D": (0.8, 0.81),
        "E": (0.7, 0.72),
        "F": (0.6, 0.62),
    }
    content = _report(accuracies)
    assert report.order_of(content, "understanding") == ["D", "E", "C", "B", "A"]
    assert report.order_of(content, "generation") == ["D", "F", "B", "A"]
    mean, half = report.interval([0.4, 0.6])
    assert (mean, half) == pytest.approx((0.5, 12.706 * 0.1), rel=1e-4)  # t of one degree of freedom, tabulated
    page = report.render(content, [made[0].image])
    assert "50.0% ± 127.1" in page and "80.5% ± 6.4" in page
    assert "+60.0 ± 0.0</td><td>yes" in page  # D - A, equal for both seeds
    assert page.count("not decided") >= 2  # the differences with B
    assert "<script" not in page and "http" not in page.replace("http://www.w3.org", "")


@pytest.mark.slow
def test_the_command_trains_all_arms_and_goes_on_where_it_stopped(tmp_path):
    command = [sys.executable, "-m", "examples.digits.encoder_ablation.run", f"--output={tmp_path}", "--quick"]
    for seeds in (1, 2):
        subprocess.run([*command, f"--seeds={seeds}"], check=True, timeout=1800, cwd=REPOSITORY)
        content = json.loads((tmp_path / "report.json").read_text())
        assert content["seeds"] == list(range(seeds)) and content["equal_samples"]
        assert {arm: len(found["runs"]) for arm, found in content["arms"].items()} == dict.fromkeys("ABCDEF", seeds)
    assert 0 <= content["linear_probe"]["semantic features"] <= 1
    assert (tmp_path / "report.html").stat().st_size > 10_000
