"""How sure a score is: standard errors, intervals, comparisons of two runs, and the difference that a set can show.

Questions about one image are not independent, so their errors are clustered (Miller 2024, "Adding error bars to evals",
arXiv 2411.00640). Only NumPy is needed. Everything random has a seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np

from janus_jax.evaluation.benchmark import Metric

Z_95 = 1.959963984540054  # the normal quantile of 0.975
Z_80 = 0.8416212335729143  # the normal quantile of 0.8
BOOTSTRAP_DRAWS = 1000
PAIRED_BOOTSTRAP_DRAWS = 10000
_BLOCK = 1 << 22  # Numbers that a bootstrap holds at a time, 32 MiB.

Statistic = Callable[[np.ndarray], np.ndarray]  # [..., K] sums over questions -> [...] the figure


class PairedDifference(NamedTuple):
    """A minus B on the same questions."""

    difference: float
    stderr: float
    interval: tuple[float, float]  # of 95 %
    p_value: float  # two-sided, of the hypothesis that there is no difference
    count: int  # type: ignore[assignment]


def mean_metric(values: Sequence[float], clusters: Sequence[Hashable] | None = None, scale: float = 1.0) -> Metric:
    """The mean with its standard error, which is clustered where `clusters` name the cluster of each value."""
    numbers = np.asarray(values, np.float64)
    if not len(numbers):
        return Metric(0.0, 0)
    mean, stderr = float(numbers.mean()), standard_error(numbers, clusters)
    if stderr is None:
        return Metric(scale * mean, len(numbers))
    low, high = mean - Z_95 * stderr, mean + Z_95 * stderr
    return Metric(scale * mean, len(numbers), scale * stderr, (scale * low, scale * high))


def rate_metric(right: int, count: int, scale: float = 1.0) -> Metric:
    """A share of independent questions, with Wilson's interval, which also holds near 0 and 1."""
    if not count:
        return Metric(0.0, 0)
    rate = right / count
    stderr = math.sqrt(rate * (1 - rate) / (count - 1)) if count > 1 else None
    low, high = wilson_interval(right, count)
    return Metric(scale * rate, count, None if stderr is None else scale * stderr, (scale * low, scale * high))


def mean_of_metrics(metrics: Sequence[Metric]) -> Metric:
    """The plain mean of independent figures, as GenEval averages its tags; their errors add up in squares."""
    value = sum(metric.value for metric in metrics) / len(metrics)
    count = sum(metric.count for metric in metrics)
    if any(metric.stderr is None for metric in metrics):
        return Metric(value, count)
    stderr = math.sqrt(sum((metric.stderr or 0.0) ** 2 for metric in metrics)) / len(metrics)
    return Metric(value, count, stderr, (value - Z_95 * stderr, value + Z_95 * stderr))


def standard_error(values: Sequence[float] | np.ndarray, clusters: Sequence[Hashable] | None = None) -> float | None:
    """The standard error of the mean, or None for fewer than two values.

    With clusters it is sqrt(s^2 / n + C / n^2), where s^2 is the sample variance (n - 1) and C sums the products of
    residuals over all ordered pairs of different values of a cluster: equation 4 of Miller 2024, as lmms-eval's
    `clustered_stderr` has it.
    """
    numbers = np.asarray(values, np.float64)
    count = len(numbers)
    if count < 2:
        return None
    residuals = numbers - numbers.mean()
    squares = float(residuals @ residuals)
    variance = squares / (count - 1) / count
    if clusters is not None:
        sums = cluster_totals(residuals[:, None], clusters)[:, 0]
        variance += (float(sums @ sums) - squares) / count**2
    return math.sqrt(max(variance, 0.0))


def cluster_totals(rows: np.ndarray, clusters: Sequence[Hashable]) -> np.ndarray:
    """Sums the rows [N, K] of each cluster to [C, K]; clusters are in the order of their first row."""
    if len(rows) != len(clusters):
        raise ValueError(f"{len(clusters)} clusters, expected one for each of {len(rows)} values")
    places: dict[Hashable, int] = {}
    indices = np.fromiter((places.setdefault(cluster, len(places)) for cluster in clusters), np.int64, len(clusters))
    totals = np.zeros((len(places), rows.shape[1]))
    np.add.at(totals, indices, rows)
    return totals


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate, without continuity correction."""
    if not 0 <= right <= count or not count:
        raise ValueError(f"{right} of {count}, expected a share of at least one")
    rate, weight = right / count, Z_95**2 / count
    middle = (rate + weight / 2) / (1 + weight)
    half = Z_95 / (1 + weight) * math.sqrt(rate * (1 - rate) / count + weight / (4 * count))
    return (0.0 if right == 0 else middle - half), (1.0 if right == count else middle + half)


def bootstrap_metric(
    totals: np.ndarray,
    statistic: Statistic,
    count: int,
    draws: int = BOOTSTRAP_DRAWS,
    seed: int = 0,
) -> Metric:
    """A figure that is no mean, such as F1, with a percentile interval from whole clusters sampled with replacement.

    Args:
        totals: [C, K] sums of each cluster, from which `statistic` makes the figure.
        count: Number of questions behind the figure.
    """
    value = float(statistic(totals.sum(axis=0)))
    if len(totals) < 2:
        return Metric(value, count)
    samples = statistic(_resampled(totals, draws, seed))
    low, high = np.quantile(samples, (0.025, 0.975))
    return Metric(value, count, float(samples.std(ddof=1)), (float(low), float(high)))


def paired_difference(
    a: Sequence[float], b: Sequence[float], clusters: Sequence[Hashable] | None = None
) -> PairedDifference:
    """The mean of a - b over the same questions, with Student's t (n - 1), clustered where `clusters` are given."""
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"{len(a)} and {len(b)} values, expected as many of each and at least two")
    differences = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    mean, stderr = float(differences.mean()), standard_error(differences, clusters) or 0.0
    freedom = len(differences) - 1
    t = mean / stderr if stderr else math.inf if mean else 0.0
    half = student_quantile(freedom) * stderr
    return PairedDifference(mean, stderr, (mean - half, mean + half), student_tail(t, freedom), len(differences))


def paired_bootstrap(
    totals_a: np.ndarray,
    totals_b: np.ndarray,
    statistic: Statistic,
    count: int,
    draws: int = PAIRED_BOOTSTRAP_DRAWS,
    seed: int = 0,
) -> PairedDifference:
    """The difference of a figure that is no mean; both runs are resampled by the same clusters, [C, K] each."""
    if totals_a.shape != totals_b.shape or len(totals_a) < 2:
        raise ValueError(f"clusters of shapes {totals_a.shape} and {totals_b.shape}, expected the same, two at least")
    width = totals_a.shape[1]

    def difference(sums: np.ndarray) -> np.ndarray:
        return statistic(sums[..., :width]) - statistic(sums[..., width:])

    both = np.concatenate([totals_a, totals_b], axis=1)
    samples = difference(_resampled(both, draws, seed))
    low, high = np.quantile(samples, (0.025, 0.975))
    # The share of samples on the other side of zero, twice; a sample of itself keeps it above zero.
    tail = (1 + min(int((samples <= 0).sum()), int((samples >= 0).sum()))) / (draws + 1)
    value = float(difference(both.sum(axis=0)))
    return PairedDifference(value, float(samples.std(ddof=1)), (float(low), float(high)), min(1.0, 2 * tail), count)


def mcnemar(only_a: int, only_b: int) -> float:
    """The two-sided exact p-value of McNemar's test: is one run right more often where the runs differ?"""
    count, fewer = only_a + only_b, min(only_a, only_b)
    log_half = count * math.log(0.5)
    tail = math.fsum(
        math.exp(math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) + log_half)
        for k in range(fewer + 1)
    )
    return min(1.0, 2 * tail)


def detectable_difference(stderr: float) -> float:
    """The smallest true difference that a two-sided 5 % test finds with 80 % power.

    Args:
        stderr: Standard error of the difference. For two runs whose answers are independent it is the root of 2 times
            that of one run; a paired comparison has a smaller one.
    """
    return (Z_95 + Z_80) * stderr


def student_tail(t: float, freedom: int) -> float:
    """P(|T| > |t|) of Student's distribution with `freedom` degrees (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(abs(t) / math.sqrt(freedom))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    first = 2 + freedom % 2  # The factors of the series are 1/2, 3/4, ... or 2/3, 4/5, ...
    lower = np.arange(first - 1, freedom - 2, 2, dtype=np.float64)
    series = 1 + float(np.cumprod(lower / (lower + 1) * square).sum())
    if freedom % 2 == 0:
        inside = sine * series
    else:
        inside = 2 / math.pi * (angle + (sine * math.cos(angle) * series if freedom > 1 else 0.0))
    return min(1.0, max(0.0, 1 - inside))


def student_quantile(freedom: int, tail: float = 0.05) -> float:
    """The t with P(|T| > t) = `tail`."""
    low, high = 0.0, 1.0
    while student_tail(high, freedom) > tail:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_tail(middle, freedom) > tail else (low, middle)
    return (low + high) / 2


def _resampled(totals: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Sums [draws, K] of as many clusters as there are, sampled with replacement."""
    generator, clusters = np.random.default_rng(seed), len(totals)
    block = max(1, _BLOCK // clusters)
    shares = np.full(clusters, 1 / clusters)
    return np.concatenate(
        [
            generator.multinomial(clusters, shares, size=min(block, draws - start)) @ totals
            for start in range(0, draws, block)
        ]
    )
