"""Every config resolves to its committed text, so that a changed number is a reviewed diff.

To regenerate after an intended change: `PYTHONPATH=. python tests/configs/test_config_files.py`.
"""

import importlib
import json
import pathlib
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from janus_jax.data.mixture import check_schedule
from janus_jax.errors import UserError
from janus_jax.models.presets import JANUS_PRO_1B, PRESETS
from janus_jax.training.architecture import model_config
from janus_jax.training.plan import computed_tasks, tasks
from janus_jax.training.setup import check_config, execution, num_shards, num_workers

GOLDEN = pathlib.Path(__file__).parent / "golden"
STAGES = ("stage1", "stage2", "stage3")
JANUS = ("janus_1p3b", "janus_pro_1b", "janus_pro_7b")
RUNS = [(name, f"{stage}{debug}") for name in JANUS for stage in (*STAGES, "text_only") for debug in ("", ":debug")]
RUNS += [("finetune", f"{name}{debug}") for name in ("checkpoint", *JANUS) for debug in ("", ":debug")]
RUNS += [("finetune", f"checkpoint:{variant}") for variant in ("lora", "lora_understand", "lora_generate:debug")]
RUNS += [("finetune", f"checkpoint:{variant}") for variant in ("edit", "lora_edit:debug")]
RUNS += [("finetune", "janusflow_1p3b"), ("finetune", "janusflow_1p3b:lora")]
RUNS += [("janusflow_1p3b", stage) for stage in STAGES]
RUNS += [("quickstart", phase) for phase in ("tokenizer", *STAGES)] + [
    ("vq16", stage) for stage in (None, "imagenet", "finetune")
]
RUNS += [("semantic_vq16", stage) for stage in ("imagenet", "pretrain")]
RUNS += [("ablation", arm) for arm in "abcdef"]
RUNS += [("quickstart_flow", stage) for stage in (*STAGES, "ablation")]


def resolve(name, stage):
    get_config = importlib.import_module(f"configs.{name}").get_config
    return get_config(stage) if stage else get_config()


def as_text(config):
    return json.dumps(json.loads(config.to_json()), indent=2, sort_keys=True) + "\n"


def golden_file(name, stage):
    return GOLDEN / ("_".join([name, *(stage or "").split(":")]).rstrip("_") + ".json")


@pytest.mark.parametrize(("name", "stage"), RUNS)
def test_resolved_config_equals_the_golden_file(name, stage):
    config = resolve(name, stage)
    check_config(config, JANUS_PRO_1B if config.model == "checkpoint" else model_config(config))
    assert as_text(config) == golden_file(name, stage).read_text()


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


# JanusFlow, Table 1: learning rate, warm-up, steps, batch, understanding : text : generation at the end.
FLOW = {
    "stage1": (1e-4, 2_000, 10_000, 512, (50, 0, 50)),
    "stage2": (1e-4, 2_000, 390_000, 512, (14, 6, 80)),
    "stage3": (2e-5, 1_000, 26_000, 256, (21, 9, 70)),
}


@pytest.mark.parametrize("stage", FLOW)
def test_numbers_of_janusflow_are_those_of_its_table(stage):
    config = resolve("janusflow_1p3b", stage)
    train = config.train
    ratio = [config.data.ratio[task] for task in ("understand", "text", "generate")]
    if stage == "stage2":  # the first 10,000 steps build understanding
        assert [share[0] for share in ratio] == [(0, 30.0), (0, 20.0), (0, 50.0)]
        ratio = [dict(share)[10_000] for share in ratio]
    assert (train.learning_rate, train.warmup_steps, train.num_steps, train.batch_size, tuple(ratio)) == FLOW[stage]
    assert (train.schedule, train.weight_decay, train.clip_norm, train.ema) == ("constant", 0.0, 1.0, 0.99)
    assert config.data.drop_condition == 0.1 and config.data.crop.random and config.loss.alignment_layer == 6
    attention = {platform: execution(config, model_config(config), platform).attention for platform in ("tpu", "cpu")}
    assert attention == {"tpu": "flash", "cpu": "xla"}


@pytest.mark.parametrize("name", [*JANUS, "janusflow_1p3b", "quickstart", "vq16", "semantic_vq16"])
def test_an_unknown_stage_is_named(name):
    with pytest.raises(UserError, match="stage9"):
        resolve(name, "stage9")


@pytest.mark.parametrize(("name", "stage"), RUNS)
def test_an_unknown_key_is_refused(name, stage):
    config = resolve(name, stage)
    with pytest.raises((KeyError, AttributeError)):
        config.train.learning_rat = 1.0


def parsed(monkeypatch, *arguments):
    """The config as a command gets it."""
    argv = ["train", "--config=configs/janus_pro_1b.py:stage2", *arguments]
    monkeypatch.setattr(sys, "argv", argv)  # the parser looks there for the fields that are set
    monkeypatch.chdir(pathlib.Path(__file__).parents[2])
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values)
    values(argv)
    return holder.value


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("0", 0),
        ("0.5", 0.5),
        ("1e-2", 0.01),
        ("((0,1.0),(2,0.0))", ((0, 1.0), (2, 0.0))),
        ("[[0, 1], [500, 3]]", ((0, 1.0), (500, 3.0))),
    ],
)
def test_a_share_is_a_number_or_a_schedule_on_the_command_line(monkeypatch, argument, expected):
    config = parsed(monkeypatch, f"--config.data.ratio.text={argument}", "--config.data.ratio.understand=0")
    assert check_schedule("data.ratio.text", config.data.ratio.text) == expected
    assert config.data.ratio.understand == 0 and config.data.ratio.generate == 5.0


def test_a_share_can_be_assigned_a_schedule_and_a_word_is_refused(monkeypatch):
    config = resolve("quickstart", "stage3")
    config.data.ratio.text = ((0, 1.0), (2, 0.0))
    assert config.data.to_dict()["ratio"]["text"] == ((0, 1.0), (2, 0.0))
    config = parsed(monkeypatch, "--config.data.ratio.text=some")
    with pytest.raises(UserError, match=r"^data\.ratio\.text='some': expected a weight of 0 or more"):
        check_schedule("data.ratio.text", config.data.ratio.text)


@pytest.mark.parametrize(("rows", "shards"), [(512, 128), (16, 16), (96, 32), (7, 1)])
def test_logical_shards_follow_from_the_rows_alone(rows, shards):
    config = resolve("janus_pro_1b", "stage2")
    config.train.batch_size = rows
    assert num_shards(config) == shards
    config.data.num_shards = 7
    assert num_shards(config) == 7


@pytest.mark.parametrize(
    ("cores", "platform", "processes", "workers"),
    [(208, "tpu", 16, 8), (24, "tpu", 1, 8), (8, "cpu", 1, 2), (2, "cpu", 1, 0), (2, "tpu", 4, 1), (8, "tpu", 128, 1)],
)
def test_workers_take_a_part_of_the_cores_and_share_the_shards(monkeypatch, cores, platform, processes, workers):
    """128 logical shards, of which every process has an equal part."""
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(cores)))
    config = resolve("janus_pro_1b", "stage2")
    assert num_workers(config, processes, platform) == workers
    config.data.workers = 3
    assert num_workers(config, processes, platform) == 3


def test_auto_is_a_default_that_numbers_and_words_on_the_command_line_replace(monkeypatch):
    config = parsed(monkeypatch, "--config.data.workers=2", "--config.mesh.data=4", "--config.remat=full")
    assert (config.data.workers, config.data.num_shards) == (2, "auto")
    assert config.mesh.to_dict() == {"data": 4, "fsdp": -1, "tensor": "auto"} and config.remat == "full"
    check_config(config, JANUS_PRO_1B)
    config = parsed(monkeypatch, "--config.data.workers=many", "--config.data.num_shards=auto")
    with pytest.raises(UserError, match=r"^config\.data\.workers='many', expected 0 to 1024, or 'auto'"):
        check_config(config, JANUS_PRO_1B)
    config = parsed(monkeypatch, "--config.data.num_shards=0")
    with pytest.raises(UserError, match=r"^config\.data\.num_shards=0, expected 1 to 65536"):
        check_config(config, JANUS_PRO_1B)


def test_weights_of_sources_can_be_schedules_on_the_command_line(monkeypatch):
    config = parsed(monkeypatch, '--config.data.sources.text=("a-*", ("b-*", 2), ("c-*", ((0, 1.0), (9, 0.0))))')
    assert config.data.sources.text == ("a-*", ("b-*", 2), ("c-*", ((0, 1.0), (9, 0.0))))


def test_pairs_of_images_need_the_encoder_and_a_model_of_codes():
    config = resolve("finetune", "checkpoint:edit")
    assert tasks(config) == ("generate",)
    assert computed_tasks(config, tasks(config)) == ("understand", "generate")
    with pytest.raises(UserError, match="condition_images=True, but the model .* is no Janus"):
        check_config(config, PRESETS["janusflow_1p3b"])
    with pytest.raises(UserError, match="janusflow_1p3b has no edit"):
        resolve("finetune", "janusflow_1p3b:edit")
    config.data.condition_images = False
    assert computed_tasks(config, tasks(config)) == ("generate",)


if __name__ == "__main__":
    for run in RUNS:
        golden_file(*run).write_text(as_text(resolve(*run)))
