"""Samples while training: what a run shows is what its saved checkpoint answers and generates, and training goes on."""

import dataclasses

import numpy as np
import PIL.Image
import pytest

from examples.digits import data as digits
from janus_jax.data.prompts import Message
from janus_jax.data.records import write_records
from janus_jax.errors import UserError
from janus_jax.evaluation.training_samples import sample_actions
from janus_jax.inference.loading import from_pretrained
from janus_jax.training.loop import train
from janus_jax.training.metrics_log import read_metrics
from tests.helpers.tiny_runs import (
    cache_folder,
    flow_experiment,
    janus_experiment,
    micro_world,
    vq_experiment,
    write_digit_files,
)

CAPTIONS = ("a handwritten two", "the digit nine")
NUM_STEPS = 2


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    return write_digit_files(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module", autouse=True)
def world(tmp_path_factory):
    with micro_world(cache_folder(tmp_path_factory)):
        yield


def sampled(config):
    config.train.num_steps = NUM_STEPS
    config.sample.update(every_steps=1, num_images=2, prompts=CAPTIONS)
    return config


def losses(workdir):
    return [line["loss"] for line in read_metrics(workdir)]


def test_a_run_shows_what_its_checkpoint_answers_and_generates(data_folder, tmp_path):
    """Greedy answers and sampled codes of the stacked training parameters equal those of a loaded model."""
    config = sampled(janus_experiment(data_folder))
    config.log_every = 1
    train(config, tmp_path / "with", actions=sample_actions(config))
    folder = tmp_path / "with" / "samples"
    assert sorted(path.name for path in folder.iterdir()) == ["step-000001", "step-000002"]
    names = {f"answer-{i:02}.txt" for i in range(4)} | {
        f"image-0{i}.{kind}" for i in range(2) for kind in ("png", "txt")
    }
    assert {path.name for path in (folder / "step-000002").iterdir()} == names

    model = from_pretrained(tmp_path / "with")
    expected = model.generate_images(list(CAPTIONS), 2, seed=config.seed)
    for i, caption in enumerate(CAPTIONS):
        assert (folder / "step-000002" / f"image-{i:02}.txt").read_text() == caption
        shown = np.asarray(PIL.Image.open(folder / "step-000002" / f"image-{i:02}.png"))
        images = np.concatenate([np.asarray(image) for image in expected[2 * i : 2 * i + 2]], axis=1)
        np.testing.assert_allclose(shown.astype(int), images.astype(int), rtol=0, atol=1)
    record = digits.understanding_records(digits.load_digits()[0])[0]
    question = record.messages[0].text.removeprefix("<image>\n")
    answer = model.chat(digits.to_image(digits.load_digits()[0].intensities[0]), question, max_new_tokens=64)
    text = (folder / "step-000002" / "answer-00.txt").read_text()
    assert text == f"question: <image>\n{question}\n\nanswer: {answer}\n\nexpected: {record.messages[1].text}"

    config = sampled(janus_experiment(data_folder))
    config.log_every, config.sample.every_steps = 1, 0
    assert list(sample_actions(config)) == []
    train(config, tmp_path / "without")
    assert losses(tmp_path / "with") == losses(tmp_path / "without")


@pytest.mark.parametrize("experiment", [vq_experiment, pytest.param(flow_experiment, marks=pytest.mark.slow)])
def test_other_models_show_reconstructions_or_generated_images(data_folder, tmp_path, experiment):
    config = sampled(experiment(data_folder))
    train(config, tmp_path, actions=sample_actions(config))
    files = {path.name for path in (tmp_path / "samples" / "step-000002").iterdir()}
    if experiment is vq_experiment:
        assert files == {"reconstructions.png"}
        originals, reconstructions = np.split(
            np.asarray(PIL.Image.open(tmp_path / "samples" / "step-000002" / "reconstructions.png")), 2
        )
        first = digits.to_image(digits.load_digits()[0].intensities[0]).resize((8, 8))
        assert originals.shape == reconstructions.shape == (8, 16, 3)
        assert np.abs(originals[:, :8].astype(int) - np.asarray(first)).mean() < 16  # resized by another filter
    else:
        assert {"image-00.png", "image-01.png", "answer-00.txt"} <= files


def test_a_prompt_that_does_not_fit_is_refused_before_the_first_step(data_folder, tmp_path):
    config = sampled(janus_experiment(data_folder))
    config.sample.prompts = ("nine " * 200,)
    with pytest.raises(UserError, match="exceed the context of 128"):
        train(config, tmp_path, actions=sample_actions(config))
    assert not (tmp_path / "samples").exists()


def test_records_that_cannot_be_asked_are_passed_over(data_folder, tmp_path):
    """A damaged image, a control token and a question longer than the context end no run that trains."""
    records = digits.understanding_records(digits.load_digits()[0])[:20]
    answer = records[0].messages[1]
    bad = [
        dataclasses.replace(records[0], images=(b"no image",)),
        dataclasses.replace(records[1], messages=(Message("user", "<image>\n<image_placeholder> what?"), answer)),
        dataclasses.replace(records[2], messages=(Message("user", "<image>\n" + "nine " * 200), answer)),
    ]
    write_records(tmp_path / "records.array_record", [*bad, *records[3:]])
    config = sampled(janus_experiment(data_folder))
    config.train.num_steps, config.sample.prompts = 1, ()
    config.data.sources.understand = (str(tmp_path / "records.array_record"),)
    train(config, tmp_path / "run", actions=sample_actions(config))
    shown = sorted((tmp_path / "run" / "samples" / "step-000001").iterdir())
    questions = [path.read_text().split("\n\nanswer:")[0] for path in shown]
    assert questions == [f"question: {record.messages[0].text}" for record in records[3:7]]


def test_a_task_without_a_share_is_not_asked_about(data_folder, tmp_path):
    """Its sources need not exist, as in training."""
    config = sampled(janus_experiment(data_folder))
    config.train.num_steps, config.sample.prompts = 1, ()
    config.data.sources.understand, config.data.ratio.understand = ("nothing-*.array_record",), 0.0
    train(config, tmp_path, actions=sample_actions(config))
    assert not (tmp_path / "samples").exists()


def test_an_image_tokenizer_without_a_readable_image_is_refused(data_folder, tmp_path):
    records = digits.generation_records(digits.load_digits()[0])[:20]
    bad = [dataclasses.replace(record, images=(b"no image",)) for record in records]
    write_records(tmp_path / "records.array_record", bad)
    config = sampled(vq_experiment(data_folder))
    config.data.sources.generate = (str(tmp_path / "records.array_record"),)
    with pytest.raises(UserError, match="data.sources.generate"):
        train(config, tmp_path / "run", actions=sample_actions(config))


def test_too_little_memory_for_samples_ends_no_run(data_folder, tmp_path, monkeypatch, caplog):
    config = sampled(janus_experiment(data_folder))
    monkeypatch.setattr("janus_jax.inference.memory.free_bytes", lambda devices: 10)
    train(config, tmp_path, actions=sample_actions(config))
    assert len(losses(tmp_path)) >= 1
    assert "no samples after step 2: the request needs" in caplog.text
