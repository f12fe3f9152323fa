"""lmms-eval's own command runs a local task with a small model, offline, and gets the answers of the pipeline."""

import json
import os
import subprocess
import sys
import types
from typing import Any

import PIL.Image
import pytest

from examples.digits import data as digits
from janus_jax.errors import UserError
from janus_jax.inference.janus import JanusPipeline
from tests.helpers import REPOSITORY
from tests.helpers.small_models import DECODED, random_params

pytest.importorskip("lmms_eval", reason="lmms-eval is no dependency of this project")
pytestmark = pytest.mark.slow

COLOURS = ["red", "blue", "green", "white", "black"]
TASK = """task: colours
dataset_path: json
dataset_kwargs:
  data_files: {questions}
test_split: train
output_type: generate_until
doc_to_visual: !function colours.images
doc_to_text: !function colours.question
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 6
  temperature: 0
  until: ["never"]
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
FUNCTIONS = """import PIL.Image


def images(doc):
    return [PIL.Image.new("RGB", (12, 10), doc["colour"])]


def question(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]
"""
# What `pip install` of this project would write; lmms-eval looks for the entry point.
ENTRY_POINTS = "[lmms_eval.models]\njanus_jax = janus_jax.evaluation.lmms_eval:manifest\n"


@pytest.fixture(scope="module")
def pipeline():
    tokenizer = digits.build_tokenizer(digits.text_records(), DECODED.llama.vocab_size, DECODED.prompt_style)
    return JanusPipeline(DECODED, random_params(DECODED, seed=12), tokenizer)


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lmms_eval")
    pipeline.save_pretrained(folder / "model")
    rows = [{"question": f"Is it {colour}?", "colour": colour, "answer": "yes"} for colour in COLOURS]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "colours.py").write_text(FUNCTIONS)
    installed = folder / "site" / "janus_jax-0.1.0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: janus_jax\nVersion: 0.1.0\n")
    (installed / "entry_points.txt").write_text(ENTRY_POINTS)
    return folder


def run(folder):
    (folder / "colours.yaml").write_text(TASK.format(questions=folder / "questions.jsonl"))
    arguments = {
        "model": "janus_jax",
        "model_args": f"pretrained={folder / 'model'}",
        "tasks": "colours",
        "include_path": folder,
        "batch_size": "2",
        "output_path": folder / "results",
    }
    flags = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    environment = os.environ | {
        "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{folder / 'site'}",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "cache"),
        "JAX_PLATFORMS": "cpu",
    }
    return subprocess.run(
        [sys.executable, "-m", "lmms_eval", *flags, "--log_samples"],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_its_command_gets_the_answers_of_the_pipeline(folder, pipeline):
    done = run(folder)
    assert done.returncode == 0, done.stderr[-3000:]
    (samples,) = (folder / "results").rglob("*samples_colours.jsonl")
    found = {sample["doc_id"]: sample["filtered_resps"] for sample in map(json.loads, samples.read_text().splitlines())}
    images = [[PIL.Image.new("RGB", (12, 10), colour)] for colour in COLOURS]
    expected = pipeline.chat(images, [f"Is it {colour}?" for colour in COLOURS], max_new_tokens=6)
    assert [found[number] for number in range(len(COLOURS))] == expected
    assert len(set(expected)) > 1


def test_tasks_and_settings_that_it_does_not_have_are_refused(monkeypatch):
    from janus_jax.evaluation.lmms_eval import JanusJax

    requests: Any = [types.SimpleNamespace(task_name="colours")]
    model: Any = None
    with pytest.raises(UserError, match="task colours asks for log-likelihoods"):
        JanusJax.loglikelihood(model, requests)
    with pytest.raises(UserError, match="task colours has several rounds"):
        JanusJax.generate_until_multi_round(model, requests)
    with pytest.raises(UserError, match="batch_size=auto"):
        JanusJax("model", batch_size="auto")
    with pytest.raises(UserError, match="mesh=1,1,4"):
        JanusJax("model", mesh="1,1,4")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="WORLD_SIZE=2"):
        JanusJax("model")
