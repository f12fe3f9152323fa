"""Statistics of scores against SciPy and lmms-eval (golden file), and against closed forms."""

import json
import math

import numpy as np
import pytest

from janus_jax.evaluation import statistics
from janus_jax.evaluation.benchmark import Metric
from tests.helpers.golden_evaluation import GOLDEN, expected

WANT = expected("statistics")
ROWS = [json.loads(line) for line in (GOLDEN / "statistics/scores.jsonl").read_text().splitlines()]
CLUSTERS = [row["cluster"] for row in ROWS]


def column(name):
    return [row[name] for row in ROWS]


@pytest.mark.parametrize("name", ["a", "b", "soft_a", "soft_b"])
def test_standard_errors(name):
    assert statistics.standard_error(column(name)) == pytest.approx(WANT["se"][name], abs=1e-9)
    metric = statistics.mean_metric(column(name), CLUSTERS, scale=100)
    assert metric.value == pytest.approx(100 * WANT["mean"][name], abs=1e-9)
    assert metric.stderr == pytest.approx(100 * WANT["clustered_se"][name], abs=1e-9)
    assert metric.count == WANT["n"] and metric.interval[1] - metric.value == pytest.approx(1.959964 * metric.stderr)


def test_clusters_of_one_question_change_nothing_but_equal_copies_do():
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    plain = statistics.standard_error(values)
    assert statistics.standard_error(values, range(5)) == pytest.approx(plain, abs=1e-15)
    # Each question asked twice: the error is nearly that of five questions, not that of ten.
    twice = statistics.standard_error(values * 2, list(range(5)) * 2)
    assert twice == pytest.approx(plain, rel=0.12) and twice > 1.3 * statistics.standard_error(values * 2)


@pytest.mark.parametrize("row", WANT["wilson95_table"], ids=lambda row: f"{row['right']}/{row['n']}")
def test_wilson(row):
    low, high = statistics.wilson_interval(row["right"], row["n"])
    assert (low, high) == (pytest.approx(row["low"], abs=1e-9), pytest.approx(row["high"], abs=1e-9))
    metric = statistics.rate_metric(row["right"], row["n"], scale=100)
    assert metric.interval == (pytest.approx(100 * low), pytest.approx(100 * high))


@pytest.mark.parametrize(("names", "key"), [(("a", "b"), "a_minus_b"), (("soft_a", "soft_b"), "soft")])
def test_paired_difference(names, key):
    a, b = map(column, names)
    plain, want = statistics.paired_difference(a, b), WANT["paired"][key]
    assert plain.difference == pytest.approx(want["mean_diff"], abs=1e-9)
    assert plain.stderr == pytest.approx(want["se_diff"], abs=1e-9)
    assert plain.p_value == pytest.approx(want["p_value"], abs=1e-9)
    assert plain.interval == (pytest.approx(want["ci_lower"], abs=1e-9), pytest.approx(want["ci_upper"], abs=1e-9))
    clustered = statistics.paired_difference(a, b, CLUSTERS)
    assert clustered.stderr == pytest.approx(WANT["clustered_se_of_the_difference"][key], abs=1e-9)


def test_equal_runs_do_not_differ():
    same = statistics.paired_difference(column("a"), column("a"), CLUSTERS)
    assert (same.difference, same.stderr, same.p_value) == (0, 0, 1)


def test_mcnemar():
    a, b = np.array(column("a")), np.array(column("b"))
    only_a, only_b = int((a > b).sum()), int((b > a).sum())
    assert (only_a, only_b) == (WANT["mcnemar"]["only_a_right"], WANT["mcnemar"]["only_b_right"])
    assert statistics.mcnemar(only_a, only_b) == pytest.approx(WANT["mcnemar"]["exact_p"], abs=1e-9)
    for row in WANT["mcnemar_table"]:
        assert statistics.mcnemar(row["only_a"], row["only_b"]) == pytest.approx(row["exact_p"], abs=1e-9)
    assert statistics.mcnemar(0, 0) == 1


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 552, 100_001])
def test_student(freedom):
    from scipy import stats  # comes with JAX

    for t in (0.0, 0.3, -1.9, 2.5, 40.0):
        assert statistics.student_tail(t, freedom) == pytest.approx(2 * stats.t.sf(abs(t), freedom), abs=1e-9)
    assert statistics.student_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=1e-7)


def f1(sums):
    """Of true positives, false positives, false negatives."""
    true, false, missed = np.moveaxis(sums, -1, 0)
    return 2 * true / np.maximum(2 * true + false + missed, 1)


def test_bootstrap_of_a_mean_agrees_with_the_clustered_error():
    rows = np.stack([column("soft_a"), np.ones(len(ROWS))], axis=1)
    metric = statistics.bootstrap_metric(
        statistics.cluster_totals(rows, CLUSTERS), lambda sums: sums[..., 0] / sums[..., 1], len(ROWS), draws=4000
    )
    assert metric.value == pytest.approx(WANT["mean"]["soft_a"], abs=1e-12)
    assert metric.stderr == pytest.approx(WANT["clustered_se"]["soft_a"], rel=0.05)
    assert metric.interval[0] < metric.value < metric.interval[1]


def test_bootstrap_depends_on_its_seed_alone():
    totals = np.random.default_rng(0).integers(0, 5, (50, 3)).astype(float)
    first, again = (statistics.bootstrap_metric(totals, f1, 600) for _ in range(2))
    assert first == again != statistics.bootstrap_metric(totals, f1, 600, seed=1)


def test_paired_bootstrap():
    """Agrees with the paired clustered error for a mean, and cannot tell a run from itself."""
    count = np.ones(len(ROWS))
    a, b = (statistics.cluster_totals(np.stack([column(name), count], 1), CLUSTERS) for name in ("soft_a", "soft_b"))

    def mean(sums):
        return sums[..., 0] / sums[..., 1]

    found = statistics.paired_bootstrap(a, b, mean, len(ROWS), draws=4000)
    assert found.difference == pytest.approx(WANT["paired"]["soft"]["mean_diff"], abs=1e-12)
    assert found.stderr == pytest.approx(WANT["clustered_se_of_the_difference"]["soft"], rel=0.06)
    assert 0.01 < found.p_value < 0.1
    assert statistics.paired_bootstrap(a, a, mean, len(ROWS), draws=100).p_value == 1


def test_mean_of_metrics_and_power():
    overall = statistics.mean_of_metrics([Metric(80, 100, 3.0), Metric(60, 50, 4.0)])
    assert (overall.value, overall.count, overall.stderr) == (70, 150, 2.5)
    # With 80 % power the true difference lies 1.96 + 0.84 standard errors from zero.
    assert statistics.detectable_difference(1.0) == pytest.approx(2.8016, abs=1e-4)


def test_too_few_values_have_no_error():
    assert statistics.mean_metric([]) == Metric(0.0, 0)
    assert statistics.mean_metric([0.5], ["x"], scale=100) == Metric(50.0, 1)
    assert math.isclose(statistics.rate_metric(1, 1).interval[0], 0.20654931437723745)
