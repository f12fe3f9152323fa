"""Benchmarks while training: the figures are those of the saved checkpoint, and mistakes are told before any step."""

import dataclasses
import json

import PIL.Image
import pytest

from janus_jax.errors import UserError
from janus_jax.evaluation import registry
from janus_jax.evaluation.model_answers import Decoding, ModelAnswers, published_generation
from janus_jax.evaluation.training_benchmarks import benchmark_measures
from janus_jax.inference.loading import from_pretrained
from janus_jax.models.presets import PRESETS
from janus_jax.training.loop import train
from janus_jax.training.metrics_log import read_metrics
from tests.helpers.tiny_runs import (
    MICRO_JANUS,
    cache_folder,
    janus_experiment,
    micro_world,
    vq_experiment,
    write_digit_files,
)


@pytest.fixture(scope="module", autouse=True)
def world(tmp_path_factory):
    with micro_world(cache_folder(tmp_path_factory)):
        yield


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    return write_digit_files(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def pope(tmp_path_factory):
    """Six questions in POPE's form about two images."""
    folder = tmp_path_factory.mktemp("pope")
    for number, colour in enumerate(["red", "blue"]):
        PIL.Image.new("RGB", (20, 16), colour).save(folder / f"{number}.jpg")
    lines = [
        {"question_id": n, "image": f"{n % 2}.jpg", "text": f"Is it {n}?", "label": "yes" if n % 3 else "no"}
        for n in range(6)
    ]
    (folder / "coco_pope_random.json").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.mark.slow
def test_a_run_reports_the_figure_of_its_checkpoint(data_folder, pope, tmp_path, monkeypatch):
    longer = dataclasses.replace(
        MICRO_JANUS.llama, max_length=512
    )  # the questions and answers do not fit the usual context
    monkeypatch.setitem(PRESETS, "micro_janus", dataclasses.replace(MICRO_JANUS, llama=longer))
    config = janus_experiment(data_folder)
    config.train.num_steps, config.log_every = 2, 1
    config.benchmarks.update(every_steps=2, names=("pope",), data=str(pope), limit=5, rows=2)
    train(config, tmp_path / "run", measures=benchmark_measures(config))
    first, last = read_metrics(tmp_path / "run")
    assert not any(name.startswith("eval/") for name in first)

    (benchmark,) = registry.load(pope, ["pope"])
    benchmark = benchmark.first(5)
    model = from_pretrained(tmp_path / "run")
    decoding = Decoding(published_generation(model.config), benchmark.max_new_tokens, benchmark.system_prompt)
    records = ModelAnswers(model, decoding).answer(benchmark.requests)
    scores = benchmark.score([record.to_answer() for record in records])
    assert last["eval/pope_f1_random"] == pytest.approx(scores.metrics["f1_random"].value)
    assert last["eval/pope_unanswered"] == sum(bool(record.error) for record in records)


@pytest.mark.parametrize(
    ("experiment", "fields", "named"),
    [
        (janus_experiment, {"names": ("pop",)}, "pop"),
        (janus_experiment, {"names": ()}, "benchmarks.names"),
        (janus_experiment, {"data": "none"}, "none"),
        (janus_experiment, {"rows": 0}, "benchmarks.rows=0"),
        (vq_experiment, {}, "image tokenizer"),
        (janus_experiment, {}, "context of 128 tokens"),
    ],
)
def test_mistakes_are_told_before_any_step(data_folder, pope, tmp_path, experiment, fields, named):
    config = experiment(data_folder)
    config.benchmarks.update({"every_steps": 1, "names": ("pope",), "data": str(pope)} | fields)
    with pytest.raises(UserError, match=named):
        train(config, tmp_path / "run", measures=benchmark_measures(config))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_run_without_benchmarks_pays_nothing(data_folder):
    assert list(benchmark_measures(janus_experiment(data_folder))) == []
