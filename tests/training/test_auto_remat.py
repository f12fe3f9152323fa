"""Predicted peaks against those of compiled TPU programs, and the policy that is chosen by them."""

import importlib
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from janus_jax.compile_check.program import topology_devices
from janus_jax.training import auto_remat
from janus_jax.training.auto_remat import ACCELERATOR_POLICIES, CPU_POLICIES, RematChoice, plan_with_remat
from janus_jax.training.memory import predicted_peak
from janus_jax.training.plan import make_plan
from janus_jax.training.start import open_run
from tests.helpers import REPOSITORY
from tests.helpers.tiny_runs import janus_experiment

# Peaks of `launch.compile_check` by the compiler that each names; those of libtpu 0.0.46.3 are rounded to 0.1 GB.
COMPILED = json.loads((REPOSITORY / "tests/data_files/compiled_peaks.json").read_text())
GB = 10**9


def config_of(config, stage, **fields):
    result = importlib.import_module(f"configs.{config}").get_config(stage)
    result.update_from_flattened_dict(fields)
    return result


def compiled(row):
    name = f"{row['config']} {row['stage']} {row['topology']} {row['fields']['remat']} {row['libtpu']}"
    quick = row["stage"] == "text_only" and row["topology"] in ("v5p-128", "v6e-64") and row["jax"] == "0.10.2"
    quick |= (row["stage"], row["topology"]) in {("stage2", "v5e-64"), ("stage2", "v5e-8")}
    marks = [] if quick else [pytest.mark.slow]
    if "missed" in row:
        marks.append(pytest.mark.xfail(reason=row["missed"], strict=True))
    return pytest.param(row, id=name, marks=marks)


@pytest.mark.parametrize("row", [compiled(row) for row in COMPILED])
def test_the_predicted_peak_is_close_to_the_compiled_one_and_hardly_below_it(row):
    pytest.importorskip("libtpu", reason="the TPU compiler, of Linux only")
    config = config_of(row["config"], row["stage"], **row["fields"])
    ratio = predicted_peak(config, make_plan(config, topology_devices(row["topology"]))) / row["peak"]
    assert 0.97 <= ratio <= 1.10


@pytest.mark.parametrize(
    ("stage", "topology", "rows", "policy"),
    [
        ("text_only", "v5p-128", 256, "projections"),
        ("text_only", "v6e-64", 256, "attention"),
        pytest.param("stage2", "v5e-64", 64, "attention", marks=pytest.mark.slow),
        pytest.param("stage3", "v5p-16", 16, "projections", marks=pytest.mark.slow),
    ],
)
def test_the_policy_of_a_slice_is_the_fastest_that_leaves_a_tenth_of_its_memory(stage, topology, rows, policy):
    pytest.importorskip("libtpu", reason="the TPU compiler, of Linux only")
    fields = {"train.batch_size": rows, "data.stored_codes": True}
    plan, choice = plan_with_remat(config_of("janus_pro_7b", stage, **fields), topology_devices(topology))
    assert plan.execution.remat == choice.policy == policy
    assert choice.predicted[policy] <= 0.9 * choice.memory
    assert all(size > 0.9 * choice.memory for name, size in choice.predicted.items() if name != policy)
    assert (
        f"{policy}, predicted {choice.predicted[policy] / GB:.1f} of {choice.memory / GB:.1f} GB" in choice.describe()
    )


@pytest.fixture
def choose(data_folder, monkeypatch):
    """The choice for a device of this memory, if the policies of a platform need 80, 40, 20, ... GB."""

    def choose(memory, platform="cpu", remat="auto", **options):
        policies = CPU_POLICIES if platform == "cpu" else ACCELERATOR_POLICIES
        needed = {policy: (80 * GB) >> index for index, policy in enumerate(policies)}
        monkeypatch.setattr(auto_remat, "memory_of", lambda devices: memory)
        monkeypatch.setattr(auto_remat, "needed_bytes", lambda config, plan: needed[config.remat])
        config = janus_experiment(data_folder)
        config.remat = remat
        return plan_with_remat(config, jax.devices()[:1], **options)

    return choose


@pytest.mark.parametrize(
    ("memory", "policy"),
    [
        (90, "none"),
        (88, "projections"),
        (45, "projections"),
        (44, "attention"),
        (12, "context"),
        (6, "full"),
        (1, "full"),
    ],
)
def test_the_first_policy_that_leaves_a_tenth_is_taken_and_otherwise_the_smallest(choose, memory, policy):
    plan, choice = choose(memory * GB)
    assert plan.execution.remat == choice.policy == policy
    assert list(choice.predicted) == list(CPU_POLICIES[: CPU_POLICIES.index(policy) + 1])
    assert ("more than the 90 %" in choice.describe()) == (memory == 1)


def test_a_check_also_says_what_the_policies_that_take_less_would_need(choose):
    _, choice = choose(45 * GB, compare=True)
    predicted = {name: (80 * GB) >> i for i, name in enumerate(CPU_POLICIES)}
    assert choice == RematChoice("projections", predicted, 45 * GB)
    assert "projections, predicted 40.0 of 45.0 GB" in choice.describe() and "none 80.0, attention 20.0" in (
        choice.describe()
    )


def test_where_the_memory_is_unknown_the_smallest_is_taken_and_said(choose):
    plan, choice = choose(None)
    assert plan.execution.remat == choice.policy == "full" and "not known" in choice.describe()


def test_a_policy_that_is_named_is_taken_without_a_question(choose):
    plan, choice = choose(1, remat="dots")
    assert (plan.execution.remat, choice) == ("dots", None)


def test_processes_choose_by_the_smallest_memory(monkeypatch):
    devices = [SimpleNamespace(device_kind="cpu", platform="cpu")]
    monkeypatch.setattr(auto_remat, "total_bytes", lambda devices: 5 * GB)
    assert auto_remat.memory_of(devices) == 5 * GB
    monkeypatch.setattr(auto_remat.jax, "process_count", lambda: 2)
    gathered = {"others": 3 * GB}
    monkeypatch.setattr(
        auto_remat.multihost_utils, "process_allgather", lambda own: np.array([own, gathered["others"]], np.float32)
    )
    assert auto_remat.memory_of(devices) == 3 * GB
    gathered["others"] = 0  # unknown there
    assert auto_remat.memory_of(devices) is None
    tpus = [SimpleNamespace(device_kind="TPU v5p", num_cores=2)] * 2
    assert auto_remat.memory_of(tpus) == 95 << 30  # by the table, without asking


def test_a_run_says_what_it_took(data_folder, tmp_path, capsys):
    config = janus_experiment(data_folder)
    config.remat = config.data.workers = config.data.num_shards = "auto"
    run, _ = open_run(config, tmp_path / "run")
    run.stream.close()
    assert run.plan.execution.remat == "none"
    said = capsys.readouterr().out
    assert "remat auto: none, predicted 0." in said and "data auto: 4 logical shards, read by " in said
    assert "mesh auto" not in said  # one device has no choice
