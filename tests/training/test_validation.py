"""Validation while training: which rows are evaluated, and that their numbers are those of one plain computation."""

import dataclasses

import jax
import numpy as np
import pytest

from janus_jax.batches import ImageBatch
from janus_jax.data.record_reader import open_records
from janus_jax.data.records import Record, write_records
from janus_jax.errors import UserError
from janus_jax.models.params import init_params
from janus_jax.training.freezing import merge
from janus_jax.training.latents import make_preparation, open_vae
from janus_jax.training.objectives.base import mean_metrics
from janus_jax.training.plan import make_plan
from janus_jax.training.setup import open_stream, open_tokenizer
from janus_jax.training.validation import Validation, open_held_out, without_rows
from tests.helpers.tiny_runs import MICRO_JANUS, flow_experiment, janus_experiment, vq_experiment

NUM_ROWS = 6  # of batches of 4: the last two rows are padding


def validated(config):
    config.data.held_out = 8
    config.validate.update(every_steps=2, num_rows=NUM_ROWS)
    return config


def held_out_stream(config, process_index=0, process_count=1):
    architecture = make_plan(config).architecture
    return open_held_out(config, architecture, open_tokenizer(config, architecture), process_index, process_count)


@pytest.mark.parametrize(
    "experiment",
    [janus_experiment, vq_experiment, pytest.param(flow_experiment, marks=pytest.mark.slow)],
)
def test_metrics_are_those_of_all_rows_as_one_batch(data_folder, tmp_path, experiment):
    """In one plain computation: no mesh, no micro-batches, no padding. Twice the same, and the state stays."""
    config = validated(experiment(data_folder))
    config.train.micro_batches = 2
    plan = make_plan(config)
    prepare = make_preparation(config, plan.architecture, plan.mesh, open_vae(config, plan.architecture, tmp_path))
    state = plan.new_state(init_params(plan.architecture, seed=3))
    validation = Validation(plan, held_out_stream(config), prepare, NUM_ROWS, 4, 0, 1)
    means = validation.evaluate(state)
    assert validation.evaluate(state) == means
    validation.close()

    stream = held_out_stream(config)
    batches = [prepare(jax.tree.map(jax.numpy.asarray, next(stream)), number) for number in range(2)]
    stream.close()
    rows = jax.tree.map(lambda *parts: np.concatenate(parts)[:NUM_ROWS], *batches)
    total, metrics = jax.jit(plan.objective.__call__)(merge(state.trainable, state.frozen), rows)
    shown = ("loss", "acc", "psnr", "ssim", "code")
    expected = mean_metrics({name: pair for name, pair in metrics.items() if name.startswith(shown)})
    assert means["loss"] == pytest.approx(float(total), rel=1e-5)
    for task in ("understand", "text", "generate"):
        if f"accuracy/{task}" in expected:
            expected[f"perplexity/{task}"] = np.exp(expected[f"loss/{task}"])
    assert means == pytest.approx(expected, rel=1e-5)
    if experiment is janus_experiment:
        tasks = ("understand", "text", "generate")
        assert means.keys() == {"loss", *(f"{kind}/{t}" for kind in ("loss", "accuracy", "perplexity") for t in tasks)}


def test_dropped_held_out_samples_are_among_the_metrics(data_folder, tmp_path):
    """Every second held-out record is bad; how many of them are read for the rows depends on the order."""
    records = [stored.data for stored in open_records(str(data_folder / "generate.array_record"), "x")]
    good = Record.deserialize(records[0])
    bad = dataclasses.replace(good, images=(b"no image",), key="bad")
    write_records(tmp_path / "half.array_record", [good] * 16 + [good, bad] * 4)
    config = validated(vq_experiment(data_folder))
    config.train.micro_batches = 2  # As above, so that the compiled programs are shared.
    config.data.sources.generate, config.data.max_drop_rate = (str(tmp_path / "half.array_record"),), 0.9
    plan = make_plan(config)
    prepare = make_preparation(config, plan.architecture, plan.mesh, None)
    validation = Validation(plan, held_out_stream(config), prepare, NUM_ROWS, 4, 0, 1)
    means = validation.evaluate(plan.new_state(init_params(plan.architecture, seed=3)))
    validation.close()
    assert 0.2 < means["dropped/generate/0"] == means["dropped/generate/0/bad_image"] < 0.8


def test_rows_do_not_depend_on_the_number_of_processes(data_folder):
    config = validated(janus_experiment(data_folder))
    streams = [held_out_stream(config), *(held_out_stream(config, i, 2) for i in range(2))]
    for _ in range(2):
        alone, first, second = (next(stream) for stream in streams)
        joined = jax.tree.map(lambda *parts: np.concatenate(parts), first, second)
        for name, expected, actual in zip(alone._fields, alone, joined, strict=True):
            np.testing.assert_array_equal(actual, expected, err_msg=name)
    for stream in streams:
        stream.close()


def test_held_out_rows_hold_all_tasks_and_no_record_that_is_trained_on(data_folder):
    config = validated(janus_experiment(data_folder))
    config.data.ratio.text = ((0, 0.0), (1000, 1.0))  # not trained on yet
    tokenizer = open_tokenizer(config, MICRO_JANUS)
    keys = []
    streams = held_out_stream(config), open_stream(config, MICRO_JANUS, tokenizer)
    for stream, batches in zip(streams, (4, 120), strict=True):
        keys.append({key for _ in range(batches) for row in stream.next_with_keys()[1] for key in row})
        stream.close()
    held_out, trained = keys
    assert {key.split("/")[0] for key in held_out} == {"digits", "text"} and 16 < len(held_out) <= 24
    assert len(trained) > 400 and not held_out & trained


def test_padding_has_no_weight_and_no_segment(data_folder):
    config = validated(janus_experiment(data_folder))
    stream = held_out_stream(config)
    rows = next(stream)
    stream.close()
    padded = without_rows(rows, np.array([True, False, True, False]))
    for name, before, after in zip(rows._fields, rows, padded, strict=True):
        assert after.dtype == before.dtype
        np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]], err_msg=name)
        assert not np.any(after[[1, 3]]), name
    images = ImageBatch(np.ones((2, 8, 8, 3), np.uint8))
    np.testing.assert_array_equal(without_rows(images, np.array([True, False])).weights, [1.0, 0.0])


def test_nothing_is_opened_without_an_interval_or_held_out_records(data_folder):
    for every_steps, held_out in ((0, 8), (2, 0)):
        config = janus_experiment(data_folder)
        config.data.held_out, config.validate.every_steps = held_out, every_steps
        assert held_out_stream(config) is None


def test_fewer_held_out_records_than_shards_are_refused(data_folder):
    config = validated(janus_experiment(data_folder))
    config.data.held_out = 1
    with pytest.raises(UserError, match=r"data\.held_out=1\b.*data\.num_shards=2\b"):
        held_out_stream(config)
