"""The page of a quickstart run, report.html: one file with its style, charts and images inside, and no scripts.

`render` fills in the page section by section, in the order in which a visitor reads it; the style sheet comes last.
"""

import itertools
import math
import operator
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from janus_jax.reports.html import document, picture, table


class Phase(NamedTuple):
    name: str  # a key of report["seconds"]
    title: str
    note: str  # one sentence on what it trains on
    metrics: list[dict[str, float]]  # the lines of metrics.jsonl
    modules: list[tuple[str, int, int]]  # (module, parameters, trained parameters); the last row is the total


class Question(NamedTuple):
    image: PIL.Image.Image
    question: str
    answer: str  # the model's
    expected: str


class ReportPage(NamedTuple):
    family: str
    report: dict[str, Any]  # the content of report.json
    targets: dict[str, tuple[str, float]]  # key of the report -> (">=" or "<=", bar)
    phases: list[Phase]
    drawings: list[tuple[str, list[PIL.Image.Image]]]  # per class
    real: list[tuple[str, list[PIL.Image.Image]]]  # per class, held out
    reconstructions: list[tuple[PIL.Image.Image, PIL.Image.Image]]  # (original, reconstruction); JanusFlow: none
    questions: list[Question]
    confusion: np.ndarray  # [classes, classes] asked for, read by the judge
    class_names: list[str]
    versions: dict[str, str]
    notes: list[str]  # a paragraph each


class _Result(NamedTuple):
    label: str
    hint: str
    form: str  # of the number, for str.format


RESULTS = {
    "understanding_accuracy": _Result("Reading", "held-out digits that it names with exactly the right word", "{:.1%}"),
    "generation_accuracy": _Result("Drawing", "drawings that the judge reads as the digit asked for", "{:.1%}"),
    "judge_accuracy_on_real": _Result("Judge", "real held-out digits that the judge reads correctly", "{:.1%}"),
    "generation_accuracy_permuted_prompts": _Result("Control", "drawings vs shuffled prompts; chance is 10%", "{:.1%}"),
    "generation_diversity": _Result("Diversity", "spread of drawings of one digit; real digits have 1", "{:.2f}"),
    "vq_codes_used": _Result("Codes used", "entries of the image tokenizer's codebook in use", "{:,.0f}"),
    "vq_reconstruction_psnr": _Result("Reconstruction", "PSNR of the image tokenizer on held-out digits", "{:.1f} dB"),
    "total_seconds": _Result("Time", "from start to report", "{:,.0f} s"),
}
COMPARISONS = {">=": (operator.ge, "≥"), "<=": (operator.le, "≤")}
SHEET_ROWS = 2  # rows of images in a sheet of drawings
SHEET_GAP = 2  # pixels between the images of a sheet

CHART_WIDTH, CHART_HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 466, 36, 248  # of the plot in the chart; around it are ticks and labels
INTERVALS = 6  # of a linear axis, at most about so many
LOG_RANGE = 20  # losses that span a larger factor get a logarithmic axis


def render(page: ReportPage) -> str:
    """The whole HTML document."""
    sections = [
        ("draws", "It draws", _drawings(page)),
        ("reads", "It reads", _questions(page)),
        ("judge", "What the judge read", _confusion(page)),
        ("losses", "Losses", _losses(page)),
        *([("tokenizer", "Image tokenizer", _tokenizer(page))] if page.reconstructions else []),
        *([("steps", "Steps of the solver", _solvers(page))] if "solvers" in page.report else []),
        *([("alignment", "Alignment loss", _alignment(page))] if "alignment" in page.report else []),
        ("modules", "What each phase trains", _modules(page)),
        ("time", "Time", _times(page)),
        ("run", "Settings and versions", _run(page)),
        ("notes", "Notes", "".join(f"<p>{escape(note)}</p>" for note in page.notes)),
    ]
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title, _ in sections)
    body = "".join(f'<section id="{name}"><h2>{title}</h2>{content}</section>' for name, title, content in sections)
    header = f'<header>{_headline(page)}</header><nav aria-label="Sections">{links}</nav>'
    return document("janus_jax quickstart", STYLE, f"{header}<main>{body}</main>")


def _headline(page: ReportPage) -> str:
    cards, passed = "", 0
    for key, (comparison, bar) in page.targets.items():
        value, (meets, symbol) = page.report[key], COMPARISONS[comparison]
        state, verdict = ("pass", "✓ pass") if meets(value, bar) else ("fail", "✗ fail")
        passed += state == "pass"
        label, hint, form = RESULTS.get(key, _Result(key.replace("_", " ").capitalize(), "", "{:g}"))
        cards += (
            f'<li class="{state}"><h2>{escape(label)}</h2><p class="value">{form.format(value)}</p>'
            f'<p class="bar"><strong>{verdict}</strong> <span>target {symbol} {form.format(bar)}</span></p>'
            f"<p>{escape(hint)}</p></li>"
        )
    return (
        '<p class="eyebrow">janus_jax quickstart</p><h1>One small model that reads and draws digits</h1>'
        f'<p class="lead">A {page.family} of {page.phases[-1].modules[-1][1]:,} parameters, trained from scratch in '
        f"{_duration(page.report['total_seconds'])}. <strong>{passed} of {len(page.targets)} targets met.</strong></p>"
        f'<ul class="cards">{cards}</ul>'
    )


def _drawings(page: ReportPage) -> str:
    rows = ""
    for (name, drawn), (_, real), read in zip(page.drawings, page.real, page.confusion, strict=True):
        right = f"{read[page.class_names.index(name)]} of {read.sum()} right"
        rows += (
            f'<tr><th scope="row">{escape(name)}<small>{right}</small></th>'
            f"<td>{picture(_sheet(drawn, SHEET_ROWS), f'{len(drawn)} drawings of {name} by the model')}</td>"
            f"<td>{picture(_sheet(real, SHEET_ROWS), f'{len(real)} real images of {name}')}</td></tr>"
        )
    return (
        f"<p>A row is one prompt, drawn with a guidance weight of {page.report['cfg_weight']:g}. "
        "The smaller group of a row: real digits that the model was not trained on.</p>"
        '<table class="drawings"><thead><tr><th scope="col">asked for</th><th scope="col">drawn by the model</th>'
        f'<th scope="col">real</th></tr></thead><tbody>{rows}</tbody></table>'
    )


def _questions(page: ReportPage) -> str:
    cards = ""
    for image, question, answer, expected in page.questions:
        right = answer == expected
        verdict = "✓ correct" if right else f"✗ wrong, expected “{escape(expected)}”"
        cards += (
            f'<li class="{"pass" if right else "fail"}">{picture(image, f"a handwritten {expected}")}'
            f'<div><p>{escape(question)}</p><p class="answer">{escape(answer) or "(no answer)"}</p>'
            f"<p><strong>{verdict}</strong></p></div></li>"
        )
    return (
        f"<p>{page.report['understanding_accuracy']:.1%} of the held-out digits are named correctly. "
        f'Shown are mistakes first, then some correct answers.</p><ul class="questions">{cards}</ul>'
    )


def _confusion(page: ReportPage) -> str:
    head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in page.class_names)
    rows = ""
    for i, (name, counts) in enumerate(zip(page.class_names, page.confusion, strict=True)):
        cells = ""
        for j, count in enumerate(counts):
            kind = "right" if i == j else "wrong" if count else "none"
            cells += f'<td class="{kind}" style="--heat:{math.sqrt(count / max(counts.sum(), 1)):.3f}">{count}</td>'
        rows += f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'
    return (
        "<p>Rows: the digit asked for. Columns: the digit that the judge, a classifier trained on real digits alone, "
        "reads in the drawing. A model that draws what it is asked for fills the diagonal.</p>"
        '<div class="scroll"><table class="confusion" aria-label="Drawings by digit asked for and digit read">'
        f'<thead><tr><th scope="col">asked for</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _losses(page: ReportPage) -> str:
    figures = "".join(
        f"<figure><figcaption><h3>{escape(phase.title)}</h3><p>{escape(phase.note)}</p></figcaption>"
        f"{_chart(phase)}</figure>"
        for phase in page.phases
    )
    return f'<p>Averages between points; the legend gives the last values.</p><div class="columns">{figures}</div>'


def _chart(phase: Phase) -> str:
    """A line chart of every loss against the step, and its legend."""
    keys = dict.fromkeys(key for line in phase.metrics for key in line if key.split("/")[0] == "loss")
    curves = {key: [(line["step"], line[key]) for line in phase.metrics if key in line] for key in keys}
    values = [value for curve in curves.values() for _, value in curve]
    logarithmic = min(values) > 0 and max(values) / min(values) > LOG_RANGE
    scale, axis = (math.log10, "loss (log scale)") if logarithmic else (float, "loss")
    num_steps = phase.metrics[-1]["step"]
    losses = (_log_ticks if logarithmic else _linear_ticks)(min(values), max(values))

    def x(step: float) -> float:
        return LEFT + (RIGHT - LEFT) * step / num_steps

    def y(loss: float) -> float:
        low, high = scale(losses[0]), scale(losses[-1])
        return BOTTOM - (BOTTOM - TOP) * (scale(loss) - low) / (high - low)

    grid = "".join(
        f'<line x1="{LEFT}" x2="{RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text x="{LEFT - 8}" y="{y(tick):.1f}" dy="0.35em" text-anchor="end">{tick:g}</text>'
        for tick in losses
    )
    for tick in _linear_ticks(0, num_steps)[:-1]:
        grid += f'<text x="{x(tick):.1f}" y="{BOTTOM}" dy="1.4em" text-anchor="middle">{tick:g}</text>'
    lines, legend = "", ""
    for key, curve in curves.items():
        name, (last_step, last_loss) = escape(key.removeprefix("loss/")), curve[-1]
        points = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in curve)
        end = f'<circle cx="{x(last_step):.1f}" cy="{y(last_loss):.1f}" r="3"/>'
        lines += f'<g class="curve {name}"><polyline points="{points}"/>{end}</g>'
        legend += f'<li class="curve {name}">{name} <span>{last_loss:.3g}</span></li>'
    title = escape(f"{phase.title}: {axis} against training step")
    return (
        f'<svg viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT}" role="img" aria-label="{title}"><title>{title}</title>{grid}'
        f'<text x="{(LEFT + RIGHT) / 2}" y="{CHART_HEIGHT - 8}" text-anchor="middle">step</text>'
        f'<text dy="1em">{axis}</text>{lines}</svg><ul class="legend">{legend}</ul>'
    )


def _linear_ticks(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, from at most `low` to the first above `high`."""
    smallest = ((high - low) or abs(high) or 1) / INTERVALS
    power = 10.0 ** math.floor(math.log10(smallest))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= smallest)
    return [step * i for i in range(math.floor(low / step), math.floor(high / step) + 2)]


def _log_ticks(low: float, high: float) -> list[float]:
    """0.1, 0.3, 1, 3, 10, ... from at most `low` to at least `high`."""
    first, last = math.floor(math.log10(low)) - 1, math.floor(math.log10(high)) + 2
    ticks = [digit * 10.0**exponent for exponent in range(first, last) for digit in (1, 3)]
    below, above = max(tick for tick in ticks if tick <= low), min(tick for tick in ticks if tick >= high)
    return [tick for tick in ticks if below <= tick <= above]


def _tokenizer(page: ReportPage) -> str:
    pairs = "".join(picture(_sheet(pair, len(pair)), "") for pair in page.reconstructions)
    return (
        "<p>The tokenizer turns an image into a few codes, which are what the model draws. Above: held-out digits. "
        f"Below: the same digits from their codes. PSNR: {page.report['vq_reconstruction_psnr']:.1f} dB; "
        f"codes in use: {page.report['vq_codes_used']:,.0f}.</p>"
        '<div class="pairs" role="img" aria-label="Pairs of a held-out digit and its reconstruction">'
        f"{pairs}</div>"
    )


def _solvers(page: ReportPage) -> str:
    """JanusFlow: quality against work."""
    tables = ""
    for solver, entries in itertools.groupby(page.report["solvers"], key=operator.itemgetter("solver")):
        rows = [
            (str(entry["steps"]), str(entry["passes"]), f"{entry['accuracy']:.1%}", f"{entry['diversity']:.2f}")
            for entry in entries
        ]
        tables += table(solver.capitalize(), ("steps", "passes", "right", "diversity"), rows)
    return (
        "<p>Drawings of the same model. A step of Heun's method takes two passes through it, one of Euler's takes one."
        f'</p><div class="columns">{tables}</div>'
    )


def _alignment(page: ReportPage) -> str:
    """JanusFlow with --ablation: what the alignment loss brings."""
    rows = []
    for point in page.report["alignment"]:
        arms = ((f"{arm['steps']:,}", f"{arm['accuracy']:.1%}") for arm in (point["with"], point["without"]))
        rows.append((f"{point['tflop']:.2f}", *itertools.chain.from_iterable(arms)))
    head = ("TFLOP", "steps with", "right with", "steps without", "right without")
    return (
        "<p>Two more runs from fresh parameters, one with and one without the alignment loss, on stage 3's data at a "
        "constant learning rate. A row is one amount of compute, counted in operations of the model: the run without "
        f"the loss does more steps for it. {page.report['drawn_images']} drawings each.</p>"
        f'<div class="columns">{table("Drawings that are right", head, rows)}</div>'
    )


def _modules(page: ReportPage) -> str:
    tables = ""
    for phase in page.phases:
        rows = []
        for name, size, trained in phase.modules:
            state = "trained" if trained == size else f"{trained:,} trained" if trained else "frozen"
            rows.append((escape(name), f"{size:,}", state))
        tables += table(phase.title, ("module", "parameters", "state"), rows)
    return f'<p>A frozen module has neither gradients nor optimizer state.</p><div class="columns">{tables}</div>'


def _times(page: ReportPage) -> str:
    titles = {phase.name: phase.title for phase in page.phases}
    seconds: dict[str, float] = page.report["seconds"]
    bars = "".join(
        f"<li><span>{escape(titles.get(name, name.replace('_', ' ').capitalize()))}</span>"
        f'<span>{_duration(value)}</span><b style="--share:{value / max(seconds.values()):.3f}"></b></li>'
        for name, value in seconds.items()
    )
    beside = ", the ablation not counted" if "ablation" in seconds else ""
    return f'<p>{_duration(page.report["total_seconds"])} in all{beside}.</p><ul class="bars">{bars}</ul>'


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}&nbsp;min {rest}&nbsp;s" if minutes else f"{seconds:.1f}&nbsp;s"


def _run(page: ReportPage) -> str:
    numbers = [
        (f"<code>{escape(key)}</code>", f"{value:.4g}" if isinstance(value, float) else escape(str(value)))
        for key, value in page.report.items()
        if isinstance(value, int | float | str)
    ]
    versions = [(escape(name), escape(version)) for name, version in page.versions.items()]
    tables = table("Numbers", ("key", "value"), numbers) + table("Software", ("name", "version"), versions)
    return f'<p>All single numbers of report.json, and what computed them.</p><div class="columns">{tables}</div>'


def _sheet(images: Sequence[PIL.Image.Image], rows: int) -> PIL.Image.Image:
    """Images of one size in a grid with transparent gaps."""
    columns = math.ceil(len(images) / rows)
    width, height = (side + SHEET_GAP for side in images[0].size)
    sheet = PIL.Image.new("RGBA", (columns * width - SHEET_GAP, rows * height - SHEET_GAP))
    for i, image in enumerate(images):
        sheet.paste(image.convert("RGB"), (i % columns * width, i // columns * height))
    return sheet


STYLE = """
:root { --violet: #7c3fbf; }
@media (prefers-color-scheme: dark) { :root { --violet: #c69cff; } }
.pass { --state: var(--green); }
.fail { --state: var(--red); }
li strong { color: var(--state); }
.cards, .questions { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(var(--least), 1fr)); }
.cards { --least: 14rem; }
.questions { --least: 19rem; }
.cards li, .questions li { background: var(--box); border: 1px solid var(--line); border-radius: 0.5rem;
  padding: 1rem; font-size: 0.875rem; line-height: 1.45; color: var(--muted); }
.cards li { border-top: 3px solid var(--state); }
.cards h2 { font-size: 0.95rem; letter-spacing: 0; margin: 0; color: var(--ink); }
.cards .value { font-size: clamp(1.6rem, 5vw, 2.1rem); line-height: 1.3; font-weight: 600; color: var(--ink); }
.cards .bar { margin-bottom: 0.6rem; }
.cards span { white-space: nowrap; }
.questions li { display: flex; gap: 1rem; align-items: center; border-left: 3px solid var(--state); }
.questions div { min-width: 0; overflow-wrap: anywhere; }
.questions .answer { font-size: 1.25rem; font-weight: 600; color: var(--ink); }
.questions img { --scale: 2.5; flex: none; }
.drawings tbody th { font-weight: 600; }
.drawings td { padding: 0.5rem 1.5rem 0.5rem 0; }
.drawings tr > :last-child { padding-left: 1.5rem; padding-right: 0; border-left: 1px solid var(--line); }
#modules tbody tr:last-child > * { font-weight: 600; }
.confusion { font-size: 0.9rem; }
.confusion thead th:not(:first-child) { text-align: center; padding-right: 0; }
.confusion td { --hue: var(--red); min-width: 3.75rem; height: 2.6rem; text-align: center;
  border: 2px solid var(--page); background: color-mix(in srgb, var(--hue) calc(55% * var(--heat)), var(--box)); }
.confusion .right { --hue: var(--green); font-weight: 600; }
.confusion .none { color: var(--muted); }
svg { display: block; width: 100%; margin-top: 0.75rem; stroke-width: 2; fill: none; }
svg text { font-size: 13px; fill: var(--muted); }
svg line { stroke: var(--line); stroke-width: 1; }
polyline { stroke: var(--color); stroke-linejoin: round; }
circle { fill: var(--color); }
.curve { --color: var(--muted); }
.loss { --color: var(--ink); }
.understand, .pixel { --color: var(--blue); }
.text, .codebook { --color: var(--orange); }
.generate, .commitment, .flow { --color: var(--green); }
.alignment { --color: var(--violet); }
.legend { display: flex; flex-wrap: wrap; gap: 0.5rem 1.1rem; margin-top: 0.5rem; }
.legend li { border-left: 1rem solid var(--color); padding-left: 0.4rem; line-height: 1; }
.legend span { color: var(--ink); }
.pairs { display: grid; grid-template-columns: repeat(16, 1fr); gap: 0.4rem; }
.bars li { display: grid; grid-template-columns: 1fr auto; gap: 0.25rem 1rem; margin-bottom: 1rem; max-width: 42rem; }
.bars b { grid-column: 1 / 3; height: 0.5rem; width: calc(100% * var(--share)); background: var(--blue); }
@media (max-width: 45rem) {
  .cards { --least: 10rem; gap: 0.75rem; }
  .drawings thead { display: none; }
  .drawings tr { display: grid; grid-template-columns: 1fr auto; align-items: center; padding-bottom: 1.5rem; }
  .drawings td { grid-row: 2; grid-column: 1 / 3; padding: 0; }
  .drawings tr > :last-child { grid-row: 1; grid-column: 2; border: 0; padding: 0 0 0.5rem; }
  .drawings img { --scale: 1; }
  svg text { font-size: 16px; }
  .confusion td { min-width: 1.75rem; height: 1.9rem; border-width: 1px; }
  .confusion thead span { writing-mode: vertical-rl; }
  .pairs { grid-template-columns: repeat(8, 1fr); }
}
"""
