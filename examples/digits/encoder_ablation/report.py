"""The page of the ablation, report.html: one file with its style, charts and images inside, and no scripts."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import PIL.Image

from janus_jax.evaluation.statistics import student_quantile
from janus_jax.reports.html import Card, cards, document, picture, table

# Janus, Table 5: POPE and MMBench in percent, FID on COCO (lower is better); a dash where the arm has no such task.
PAPER = {
    "A": ("60.1", "35.0", "8.72"),
    "B": ("82.4", "52.7", "7.11"),
    "C": ("83.9", "62.1", "–"),
    "D": ("87.0", "69.4", "8.53"),
    "E": ("85.9", "70.6", "–"),
    "F": ("–", "–", "8.92"),
}
PAPER_ORDER = {"understanding": "D, E, C, B, A (POPE)", "generation": "B, D, A, F (FID)"}
# Differences between two arms that the paper's argument rests on: (first arm, second arm, question that it answers).
PAIRS = {
    "understanding": (
        ("D", "A", "Does SigLIP read better than the codes that generation uses?"),
        ("B", "A", "Do semantic features read better than codes?"),
        ("D", "B", "Do separate encoders read better than one semantic tokenizer?"),
        ("C", "B", "Does generating, too, cost the semantic tokenizer accuracy?"),
        ("E", "D", "Does generating, too, cost Janus accuracy?"),
    ),
    "generation": (
        ("D", "F", "Does reading, too, cost Janus images?"),
        ("D", "A", "Do separate encoders generate better than one VQ tokenizer?"),
        ("D", "B", "Do separate encoders generate better than one semantic tokenizer?"),
    ),
}
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 480, 300, 50, 466, 16, 258  # of a chart and of its plot


def render(report: dict[str, Any], examples: Sequence[PIL.Image.Image]) -> str:
    """The whole HTML document.

    Args:
        report: the content of report.json.
        examples: some held-out mosaics.
    """
    sections = [
        ("order", "Order of the arms", _order(report)),
        ("curves", "Accuracy against samples", _curves(report)),
        ("differences", "Differences", _differences(report)),
        ("kinds", "Kinds of questions", _kinds(report)),
        ("probe", "Linear probe", _probe(report)),
        ("samples", "Equal samples", _samples(report)),
        ("limits", "What this can show", _limits(report, examples)),
    ]
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title, _ in sections)
    body = "".join(f'<section id="{name}"><h2>{title}</h2>{content}</section>' for name, title, content in sections)
    header = f'<header>{_headline(report)}</header><nav aria-label="Sections">{links}</nav>'
    return document("janus_jax ablation", STYLE, f"{header}<main>{body}</main>")


def final(report: dict[str, Any], arm: str, measure: str) -> list[float]:
    """The accuracy of each seed of an arm at the end; empty where the arm does not have the task.

    Args:
        measure: "understanding" or "generation".
    """
    return [_value(run["points"][-1], measure) for run in report["arms"][arm]["runs"] if measure in run["points"][-1]]


def order_of(report: dict[str, Any], measure: str) -> list[str]:
    """The arms with a task from the best mean over seeds to the worst."""
    means = {arm: np.mean(values) for arm in report["arms"] if (values := final(report, arm, measure))}
    return sorted(means, key=lambda arm: -means[arm])


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half of its 95 % confidence interval by Student's t; infinite for one value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.inf
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean, student_quantile(len(values) - 1) * error


def _value(point: dict[str, Any], measure: str) -> float:
    value = point[measure]
    return value["all"] if measure == "understanding" else value


def _headline(report: dict[str, Any]) -> str:
    entries = []
    for measure, label in (("understanding", "Reading"), ("generation", "Generation")):
        hint = f"arms from the best mean to the worst; the paper: {PAPER_ORDER[measure]}"
        entries.append(Card(f"{label}: order", " ".join(order_of(report, measure)), hint))
    seeds = len(report["seeds"])
    probe = report["linear_probe"]
    entries.append(Card("Probe", f"{probe['semantic features']:.1%}", "digits read linearly from semantic features"))
    return (
        '<p class="eyebrow">janus_jax ablation</p><h1>One encoder for both tasks, or two?</h1>'
        f'<p class="lead">The six arms of Janus, Table 5, on mosaics of real digits: {seeds} '
        f"{'seed' if seeds == 1 else 'seeds'} each, equal samples for each task. Nothing was tuned until the order of "
        f"the paper appeared.</p>{cards(entries)}"
    )


def _order(report: dict[str, Any]) -> str:
    rows = []
    for name, arm in report["arms"].items():
        pope, mmbench, fid = PAPER[name]
        ours = [_percent(final(report, name, measure)) for measure in ("understanding", "generation")]
        tasks = " + ".join(arm["tasks"])
        rows.append((name, escape(arm["reads"]), tasks, pope, mmbench, ours[0], fid, ours[1]))
    head = ("arm", "reads images by", "tasks", "POPE", "MMBench", "ours: right answers", "FID", "ours: right digits")
    return (
        "<p>The paper's figures are beside ours. They measure other things at another scale, so only orders can be "
        "compared. Ours are means over seeds with 95 % confidence intervals. An answer without a look at the image "
        f"would reach {report['most_common_answer']:.1%}. The judge of generated digits reads "
        f"{report['judge_on_real']:.1%} of real ones right, and {report['judge_on_vq_tokenizer']:.1%} "
        f"({report['judge_on_semantic_tokenizer']:.1%}) after the VQ (semantic) tokenizer.</p>"
        f"{table('Paper and ours', head, rows)}"
        f"<p>Order in reading: paper {PAPER_ORDER['understanding']}; ours "
        f"{', '.join(order_of(report, 'understanding'))}. Order in generation: paper {PAPER_ORDER['generation']}; ours "
        f"{', '.join(order_of(report, 'generation'))}.</p>"
    )


def _curves(report: dict[str, Any]) -> str:
    titles = {"understanding": "Right answers", "generation": "Right digits in generated mosaics"}
    charts = "".join(
        f"<figure><figcaption><h3>{title}</h3></figcaption>{_chart(report, measure, title)}</figure>"
        for measure, title in titles.items()
    )
    text = "Each point is the mean over seeds; bars are 95 % confidence intervals. The axis counts samples of the task."
    return f'<p>{text}</p><div class="columns">{charts}</div>'


def _chart(report: dict[str, Any], measure: str, title: str) -> str:
    """Accuracy against samples of the task, a curve per arm, as an SVG element with a legend."""
    curves = {}
    for name, arm in report["arms"].items():
        runs = [run["points"] for run in arm["runs"] if measure in run["points"][-1]]
        if runs:
            curves[name] = [
                (points[0]["samples"], *interval([_value(point, measure) for point in points]))
                for points in zip(*runs, strict=True)
            ]
    most = max(samples for curve in curves.values() for samples, _, _ in curve)

    def x(samples: float) -> float:
        return LEFT + (RIGHT - LEFT) * samples / most

    def y(share: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * min(max(share, 0.0), 1.0)

    grid = "".join(
        f'<line x1="{LEFT}" x2="{RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y(tick):.1f}" dy="0.35em" text-anchor="end">{tick:.0%}</text>'
        for tick in (0, 0.25, 0.5, 0.75, 1)
    )
    lines, legend = "", ""
    for name, curve in curves.items():
        points = " ".join(f"{x(samples):.1f},{y(mean):.1f}" for samples, mean, _ in curve)
        bars = "".join(
            f'<line class="bar" x1="{x(samples):.1f}" x2="{x(samples):.1f}" y1="{y(mean - half):.1f}" '
            f'y2="{y(mean + half):.1f}"/>'
            for samples, mean, half in curve
            if math.isfinite(half)
        )
        circles = "".join(f'<circle cx="{x(samples):.1f}" cy="{y(mean):.1f}" r="3"/>' for samples, mean, _ in curve)
        lines += f'<g class="arm-{name}"><polyline points="{points}"/>{bars}{circles}</g>'
        legend += f'<li class="arm-{name}">{name} <span>{curve[-1][1]:.1%}</span></li>'
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title} against samples">{grid}'
        f'<text x="{LEFT}" y="{BOTTOM}" dy="1.4em">0</text>'
        f'<text x="{RIGHT}" y="{BOTTOM}" dy="1.4em" text-anchor="end">{most:,} samples</text>'
        f'{lines}</svg><ul class="legend">{legend}</ul>'
    )


def _differences(report: dict[str, Any]) -> str:
    tables = ""
    for measure, pairs in PAIRS.items():
        rows = []
        for first, second, question in pairs:
            both = zip(final(report, first, measure), final(report, second, measure), strict=True)
            mean, half = interval([a - b for a, b in both])
            verdict = "not decided"
            if math.isfinite(half) and abs(mean) > half:
                verdict = "yes" if mean > 0 else "no, the other way round"
            spread = f" ± {100 * half:.1f}" if math.isfinite(half) else ""
            rows.append((f"{first} − {second}", escape(question), f"{100 * mean:+.1f}{spread}", verdict))
        tables += table(measure.capitalize(), ("arms", "question", "points", "answer"), rows)
    return (
        "<p>Differences of accuracy in percentage points, paired by seed, with 95 % confidence intervals. An interval "
        f"that contains zero decides nothing, and one seed has no interval.</p>{tables}"
    )


def _kinds(report: dict[str, Any]) -> str:
    kinds = ("place", "count", "larger")
    rows = []
    for name, arm in report["arms"].items():
        runs = [run["points"][-1] for run in arm["runs"] if "understanding" in run["points"][-1]]
        if runs:
            rows.append((name, *(_percent([point["understanding"][kind] for point in runs]) for kind in kinds)))
    head = ("arm", "which digit is there", "how many times", "which is larger")
    return f"<p>Right answers to each kind of question at the end.</p>{table('Right answers', head, rows)}"


def _probe(report: dict[str, Any]) -> str:
    rows = [(escape(name), f"{value:.1%}") for name, value in report["linear_probe"].items()]
    return (
        "<p>A linear classifier reads the digit at a place from the features of its 2 x 2 tokens: ridge regression in "
        "closed form, fitted on training mosaics and tested on held-out ones. It compares what each encoder gives to "
        f"the language model.</p>{table('Held-out digits', ('features', 'right'), rows)}"
    )


def _samples(report: dict[str, Any]) -> str:
    rows = []
    for name, arm in report["arms"].items():
        run = arm["runs"][0]
        counts = [run["samples"].get(task, {"number": 0, "digest": "–"}) for task in ("understand", "generate")]
        cells = [f"{count['number']:,} <code>{count['digest'][:8]}</code>" for count in counts]
        rows.append((name, f"{run['steps']:,}", *cells))
    return (
        "<p>Every arm with a task reads the same samples of it in the same order. The program reads the streams again, "
        "compares numbers and SHA-256 of keys and tokens, and writes no page where they differ. This is the first "
        f"seed.</p>{table('Samples', ('arm', 'steps', 'to understand', 'to generate'), rows)}"
    )


def _limits(report: dict[str, Any], examples: Sequence[PIL.Image.Image]) -> str:
    sizes = report["sizes"]
    images = "".join(picture(image, "a held-out mosaic") for image in examples)
    return (
        f'<div class="mosaics">{images}</div>'
        f"<p>The models have under two million parameters. SigLIP saw {sizes['siglip_steps']:,} steps of captions, the "
        f"tokenizers {sizes['tokenizer_steps']:,} steps of the same images; both are shared by all seeds, so the "
        "intervals cover the language model's start and the order of the data alone. SigLIP's captions name the digits "
        "at their places, which is close to the first kind of question. Mosaics of training digits are seen in "
        "training, those of held-out digits only here. A shared adaptor of codes and a constant learning rate are our "
        "choices, since the paper states neither.</p>"
    )


def _percent(values: Sequence[float]) -> str:
    if not values:
        return "–"
    mean, half = interval(values)
    return f"{mean:.1%}" + (f" ± {100 * half:.1f}" if math.isfinite(half) else "")


STYLE = """
svg { display: block; width: 100%; margin-top: 0.75rem; stroke-width: 2; fill: none; }
svg text { font-size: 13px; fill: var(--muted); }
svg line { stroke: var(--line); stroke-width: 1; }
svg .bar { stroke: var(--color); stroke-width: 1.5; }
polyline { stroke: var(--color); stroke-linejoin: round; }
circle { fill: var(--color); }
.arm-A { --color: var(--red); }
.arm-B { --color: var(--orange); }
.arm-C { --color: #b58900; }
.arm-D { --color: var(--blue); }
.arm-E { --color: #7c3fbf; }
.arm-F { --color: var(--green); }
.legend { display: flex; flex-wrap: wrap; gap: 0.5rem 1.1rem; margin-top: 0.5rem; }
.legend li { border-left: 1rem solid var(--color); padding-left: 0.4rem; line-height: 1; }
td { padding: 0.4rem 1rem 0.4rem 0; }
section > .scroll { margin-bottom: 1.75rem; }
.mosaics { display: flex; flex-wrap: wrap; gap: 0.75rem; margin-bottom: 1.75rem; }
"""
