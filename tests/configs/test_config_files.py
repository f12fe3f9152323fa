"""Every config resolves to its committed text, so that a changed number is a reviewed diff.

To regenerate after an intended change: `python tests/configs/test_config_files.py`.
"""

import importlib
import json
import pathlib

import pytest

from janus_jax.errors import UserError

GOLDEN = pathlib.Path(__file__).parent / "golden"
STAGES = ("stage1", "stage2", "stage3")
RUNS = [(name, stage) for name in ("janus_1p3b", "janus_pro_1b", "janus_pro_7b") for stage in STAGES]
RUNS += [("janus_pro_7b", "text_only"), ("janus_1p3b", "stage1:debug"), ("janus_pro_7b", "stage2:debug")]
RUNS += [("finetune", "janus_pro_1b"), ("vq16", None), *(("quickstart", phase) for phase in ("tokenizer", *STAGES))]


def resolve(name, stage):
    get_config = importlib.import_module(f"configs.{name}").get_config
    return get_config(stage) if stage else get_config()


def as_text(config):
    return json.dumps(json.loads(config.to_json()), indent=2, sort_keys=True) + "\n"


def golden_file(name, stage):
    return GOLDEN / ("_".join([name, *(stage or "").split(":")]).rstrip("_") + ".json")


@pytest.mark.parametrize(("name", "stage"), RUNS)
def test_resolved_config_equals_the_golden_file(name, stage):
    assert as_text(resolve(name, stage)) == golden_file(name, stage).read_text()


# Janus, Table 1; Janus-Pro, Table 2: learning rate, schedule, warm-up, steps, batch, decay, data ratio
PAPERS = {
    ("janus_1p3b", "stage1"): (1e-3, "cosine", 300, 10_000, 256, 0.0, (1, 0, 1)),
    ("janus_1p3b", "stage2"): (1e-4, "constant", 5_000, 180_000, 512, 0.0, (2, 3, 5)),
    ("janus_1p3b", "stage3"): (2e-5, "constant", 0, 24_000, 256, 0.1, (7, 3, 10)),
    ("janus_pro_1b", "stage1"): (1e-3, "constant", 600, 20_000, 256, 0.0, (1, 0, 3)),
    ("janus_pro_1b", "stage2"): (1e-4, "constant", 5_000, 270_000, 512, 0.0, (2, 3, 5)),
    ("janus_pro_1b", "stage3"): (4e-5, "constant", 0, 80_000, 128, 0.0, (5, 1, 4)),
    ("janus_pro_7b", "stage1"): (1e-3, "constant", 600, 20_000, 256, 0.0, (1, 0, 3)),
    ("janus_pro_7b", "stage2"): (1e-4, "constant", 5_000, 270_000, 512, 0.0, (2, 3, 5)),
    ("janus_pro_7b", "stage3"): (4e-5, "constant", 0, 40_000, 128, 0.0, (5, 1, 4)),
}


@pytest.mark.parametrize(("name", "stage"), PAPERS)
def test_numbers_are_those_of_the_papers_tables(name, stage):
    config = resolve(name, stage)
    train, ratio = config.train, config.data.ratio
    assert (
        train.learning_rate,
        train.schedule,
        train.warmup_steps,
        train.num_steps,
        train.batch_size,
        train.weight_decay,
        (ratio.understand, ratio.text, ratio.generate),
    ) == PAPERS[name, stage]
    assert (train.b1, train.b2, train.clip_norm, config.data.drop_condition) == (0.9, 0.95, 1.0, 0.1)


@pytest.mark.parametrize("name", ["janus_1p3b", "janus_pro_1b", "janus_pro_7b", "quickstart"])
def test_an_unknown_stage_is_named(name):
    with pytest.raises(UserError, match="stage9"):
        resolve(name, "stage9")


@pytest.mark.parametrize(("name", "stage"), RUNS)
def test_an_unknown_key_is_refused(name, stage):
    config = resolve(name, stage)
    with pytest.raises((KeyError, AttributeError)):
        config.train.learning_rat = 1.0


if __name__ == "__main__":
    for run in RUNS:
        golden_file(*run).write_text(as_text(resolve(*run)))
