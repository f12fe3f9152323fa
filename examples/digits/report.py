"""The page of a quickstart run, report.html: one file with its style, charts and images inside, and no scripts.

`render` fills in the page section by section, in the order in which a visitor reads it. The style sheet comes last.
"""

import itertools
import math
import operator
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from examples.digits import loss_chart
from janus_jax.reports.html import Card, cards, document, picture, table


class Phase(NamedTuple):
    """One training run of the quickstart: the image tokenizer or a stage."""

    name: str  # a key of report["seconds"]
    title: str
    note: str  # one sentence on the data
    metrics: list[dict[str, float]]  # the lines of metrics.jsonl
    modules: list[tuple[str, int, int]]  # (module, parameters, trained parameters); the last entry is the total


class Question(NamedTuple):
    """A question about an image, with the answer of the model."""

    image: PIL.Image.Image
    question: str
    answer: str
    expected: str


class ReportPage(NamedTuple):
    """Everything that the page shows."""

    family: str
    report: dict[str, Any]  # the content of report.json
    targets: dict[str, tuple[str, float]]  # key of the report -> (">=" or "<=", bar)
    phases: list[Phase]
    generated: list[tuple[str, list[PIL.Image.Image]]]  # (class, images generated for it)
    real: list[tuple[str, list[PIL.Image.Image]]]  # (class, held-out images of it)
    reconstructions: list[tuple[PIL.Image.Image, PIL.Image.Image]]  # (original, reconstruction); JanusFlow: none
    questions: list[Question]
    confusion: np.ndarray  # [classes, classes] number of images by class asked for and class that the judge reads
    class_names: list[str]
    versions: dict[str, str]
    notes: list[str]  # one paragraph each


class _Label(NamedTuple):
    """How a target is shown."""

    name: str
    hint: str
    form: str  # for str.format


LABELS = {
    "understanding_accuracy": _Label("Reading", "held-out digits that it names with exactly the right word", "{:.1%}"),
    "generation_accuracy": _Label("Generation", "images that the judge reads as the digit asked for", "{:.1%}"),
    "generation_accuracy_permuted_prompts": _Label(
        "Control", "images compared with shuffled prompts; chance is 10%", "{:.1%}"
    ),
    "generation_diversity": _Label("Diversity", "spread of the images of one digit; real digits have 1", "{:.2f}"),
}
COMPARISONS = {">=": (operator.ge, "≥"), "<=": (operator.le, "≤")}
SHEET_ROWS = 2  # Number of rows of images in a sheet.
SHEET_GAP = 2  # Number of pixels between the images of a sheet.


def render(page: ReportPage) -> str:
    """The whole HTML document."""
    sections = [
        ("generates", "It generates", _generated(page)),
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
    return document("janus_jax quickstart", STYLE + loss_chart.STYLE, f"{header}<main>{body}</main>")


def _headline(page: ReportPage) -> str:
    entries = []
    for key, (comparison, bar) in page.targets.items():
        value, (meets, symbol), label = page.report[key], COMPARISONS[comparison], LABELS[key]
        state, verdict = ("pass", "✓ pass") if meets(value, bar) else ("fail", "✗ fail")
        limit = f"target {symbol} {escape(label.form.format(bar))}"
        target = f'<p class="bar"><strong>{verdict}</strong> <span>{limit}</span></p>'
        entries.append(Card(label.name, label.form.format(value), label.hint, target, state))
    passed = sum(card.state == "pass" for card in entries)
    return (
        '<p class="eyebrow">janus_jax quickstart</p><h1>One small model that reads and generates digits</h1>'
        f'<p class="lead">A {page.family} of {page.phases[-1].modules[-1][1]:,} parameters, trained from scratch in '
        f"{_duration(page.report['total_seconds'])}. <strong>{passed} of {len(entries)} targets met.</strong></p>"
        f"{cards(entries)}"
    )


def _generated(page: ReportPage) -> str:
    rows = ""
    for (name, generated), (_, real), read in zip(page.generated, page.real, page.confusion, strict=True):
        right = f"{read[page.class_names.index(name)]} of {read.sum()} right"
        rows += (
            f'<tr><th scope="row">{escape(name)}<small>{right}</small></th>'
            f"<td>{picture(_sheet(generated, SHEET_ROWS), f'{len(generated)} images of {name} by the model')}</td>"
            f"<td>{picture(_sheet(real, SHEET_ROWS), f'{len(real)} real images of {name}')}</td></tr>"
        )
    return (
        f"<p>Each row belongs to one prompt; the guidance weight is {page.report['cfg_weight']:g}. "
        "The smaller group of a row shows real digits that the model was not trained on.</p>"
        '<table class="generated"><thead><tr><th scope="col">asked for</th><th scope="col">generated by the model</th>'
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
        f'Mistakes are shown first, then some correct answers.</p><ul class="questions">{cards}</ul>'
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
        "<p>A row is the digit asked for. A column is the digit that the judge, a classifier trained on real digits "
        "only, reads in the image. A model that generates what it is asked for fills the diagonal.</p>"
        '<div class="scroll"><table class="confusion" aria-label="Images by digit asked for and digit read">'
        f'<thead><tr><th scope="col">asked for</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _losses(page: ReportPage) -> str:
    figures = "".join(
        f"<figure><figcaption><h3>{escape(phase.title)}</h3><p>{escape(phase.note)}</p></figcaption>"
        f"{loss_chart.loss_chart(phase.title, phase.metrics)}</figure>"
        for phase in page.phases
    )
    text = "A point is the average since the point before. The legend gives the last values."
    return f'<p>{text}</p><div class="columns">{figures}</div>'


def _tokenizer(page: ReportPage) -> str:
    pairs = "".join(picture(_sheet(pair, len(pair)), "") for pair in page.reconstructions)
    return (
        "<p>The tokenizer turns an image into a few codes, and the model generates such codes. Above: held-out digits. "
        f"Below: the same digits decoded from their codes. PSNR: {page.report['vq_reconstruction_psnr']:.1f} dB; "
        f"codes in use: {page.report['vq_codes_used']:,.0f}.</p>"
        '<div class="pairs" role="img" aria-label="Pairs of a held-out digit and its reconstruction">'
        f"{pairs}</div>"
    )


def _solvers(page: ReportPage) -> str:
    """JanusFlow: quality of the images against the work for them."""
    tables = ""
    for solver, entries in itertools.groupby(page.report["solvers"], key=operator.itemgetter("solver")):
        rows = [
            (str(entry["steps"]), str(entry["passes"]), f"{entry['accuracy']:.1%}", f"{entry['diversity']:.2f}")
            for entry in entries
        ]
        tables += table(solver.capitalize(), ("steps", "passes", "right", "diversity"), rows)
    return (
        "<p>Images of the same model. A step of Heun's method takes two passes through the model, a step of Euler's "
        f'takes one.</p><div class="columns">{tables}</div>'
    )


def _alignment(page: ReportPage) -> str:
    """JanusFlow with --ablation: accuracy with and without the alignment loss."""
    rows = []
    for point in page.report["alignment"]:
        arms = ((f"{arm['steps']:,}", f"{arm['accuracy']:.1%}") for arm in (point["with"], point["without"]))
        rows.append((f"{point['tflop']:.2f}", *itertools.chain.from_iterable(arms)))
    head = ("TFLOP", "steps with", "right with", "steps without", "right without")
    return (
        "<p>Two more runs start from fresh parameters, one with and one without the alignment loss, on the data of "
        "stage 3 at a constant learning rate. A row compares them after the same number of operations of the model. "
        "The run without the loss has taken more steps by then, because each of its steps costs less. "
        f"Each accuracy is that of {page.report['drawn_images']} images.</p>"
        f'<div class="columns">{table("Images that are right", head, rows)}</div>'
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
    exception = ", without the ablation" if "ablation" in seconds else ""
    return f'<p>{_duration(page.report["total_seconds"])} in all{exception}.</p><ul class="bars">{bars}</ul>'


def _duration(seconds: float) -> str:
    minutes, remainder = divmod(round(seconds), 60)
    return f"{minutes}&nbsp;min {remainder}&nbsp;s" if minutes else f"{seconds:.1f}&nbsp;s"


def _run(page: ReportPage) -> str:
    numbers = [
        (f"<code>{escape(key)}</code>", f"{value:.4g}" if isinstance(value, float) else escape(str(value)))
        for key, value in page.report.items()
        if isinstance(value, int | float | str)
    ]
    versions = [(escape(name), escape(version)) for name, version in page.versions.items()]
    tables = table("Numbers", ("key", "value"), numbers) + table("Software", ("name", "version"), versions)
    text = "All single numbers of report.json, and the software that computed them."
    return f'<p>{text}</p><div class="columns">{tables}</div>'


def _sheet(images: Sequence[PIL.Image.Image], rows: int) -> PIL.Image.Image:
    """Images of the same size in a grid with transparent gaps."""
    columns = math.ceil(len(images) / rows)
    width, height = (side + SHEET_GAP for side in images[0].size)
    sheet = PIL.Image.new("RGBA", (columns * width - SHEET_GAP, rows * height - SHEET_GAP))
    for i, image in enumerate(images):
        sheet.paste(image.convert("RGB"), (i % columns * width, i // columns * height))
    return sheet


STYLE = """
.pass { --state: var(--green); }
.fail { --state: var(--red); }
li strong { color: var(--state); }
.questions { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); }
.questions li { background: var(--box); border: 1px solid var(--line); border-radius: 0.5rem;
  padding: 1rem; font-size: 0.875rem; line-height: 1.45; color: var(--muted); }
.cards .bar { margin-bottom: 0.6rem; }
.cards span { white-space: nowrap; }
.questions li { display: flex; gap: 1rem; align-items: center; border-left: 3px solid var(--state); }
.questions div { min-width: 0; overflow-wrap: anywhere; }
.questions .answer { font-size: 1.25rem; font-weight: 600; color: var(--ink); }
.questions img { --scale: 2.5; flex: none; }
.generated tbody th { font-weight: 600; }
.generated td { padding: 0.5rem 1.5rem 0.5rem 0; }
.generated tr > :last-child { padding-left: 1.5rem; padding-right: 0; border-left: 1px solid var(--line); }
#modules tbody tr:last-child > * { font-weight: 600; }
.confusion { font-size: 0.9rem; }
.confusion thead th:not(:first-child) { text-align: center; padding-right: 0; }
.confusion td { --hue: var(--red); min-width: 3.75rem; height: 2.6rem; text-align: center;
  border: 2px solid var(--page); background: color-mix(in srgb, var(--hue) calc(55% * var(--heat)), var(--box)); }
.confusion .right { --hue: var(--green); font-weight: 600; }
.confusion .none { color: var(--muted); }
.pairs { display: grid; grid-template-columns: repeat(16, 1fr); gap: 0.4rem; }
.bars li { display: grid; grid-template-columns: 1fr auto; gap: 0.25rem 1rem; margin-bottom: 1rem; max-width: 42rem; }
.bars b { grid-column: 1 / 3; height: 0.5rem; width: calc(100% * var(--share)); background: var(--blue); }
@media (max-width: 45rem) {
  .cards { --least: 10rem; gap: 0.75rem; }
  .generated thead { display: none; }
  .generated tr { display: grid; grid-template-columns: 1fr auto; align-items: center; padding-bottom: 1.5rem; }
  .generated td { grid-row: 2; grid-column: 1 / 3; padding: 0; }
  .generated tr > :last-child { grid-row: 1; grid-column: 2; border: 0; padding: 0 0 0.5rem; }
  .generated img { --scale: 1; }
  .confusion td { min-width: 1.75rem; height: 1.9rem; border-width: 1px; }
  .confusion thead span { writing-mode: vertical-rl; }
  .pairs { grid-template-columns: repeat(8, 1fr); }
}
"""
