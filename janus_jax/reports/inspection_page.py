"""The page of `launch.inspect_data`: the first rows as the model gets them, and what the mixture really is."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np
import PIL.Image

from janus_jax.reports.batch_contents import Segment
from janus_jax.reports.html import document, picture, table

THUMBNAIL = 192  # pixels of the longer side
NAMES = {"und_image": "understanding image", "gen_image": "generation image"}


class Fact(NamedTuple):
    label: str
    value: str
    hint: str


class InspectionPage(NamedTuple):
    title: str
    facts: list[Fact]
    tables: list[tuple[str, list[str], list[list[str]]]]  # caption, head, rows of plain text
    dropped: list[tuple[str, str]]  # the first bad samples: source and key, reason
    rows: list[list[Segment]]  # packed rows
    images: list[np.ndarray]  # of an image stream, instead of rows


def render(page: InspectionPage) -> str:
    """The whole HTML document. All text of samples is escaped."""
    cards = "".join(
        f'<li><h2>{escape(fact.label)}</h2><p class="value">{escape(fact.value)}</p><p>{escape(fact.hint)}</p></li>'
        for fact in page.facts
    )
    tables = "".join(
        table(caption, [escape(name) for name in head], [[escape(cell) for cell in row] for row in rows])
        for caption, head, rows in page.tables
    )
    rows = "".join(_row(number, segments) for number, segments in enumerate(page.rows))
    images = "".join(_thumbnail(image, "training image") for image in page.images)
    body = (
        f'<header><p class="eyebrow">janus_jax inspect_data</p><h1>{escape(page.title)}</h1>'
        f'<ul class="cards">{cards}</ul></header><main>'
        f'<section><h2>Mixture</h2><div class="columns">{tables}</div></section>'
    )
    if page.dropped:
        dropped = "".join(f"<dt>{escape(key)}</dt><dd>{escape(reason)}</dd>" for key, reason in page.dropped)
        body += f"<section><h2>First dropped samples</h2><dl>{dropped}</dl></section>"
    if rows:
        legend = '<span class="answer">text with loss</span> <span>text without</span> <span class="chip">image</span>'
        body += f'<section><h2>Rows</h2><p class="key">{legend}</p>{rows}</section>'
    if images:
        body += f'<section><h2>Images</h2><div class="images">{images}</div></section>'
    return document(page.title, STYLE, body + "</main>")


def _row(number: int, segments: Sequence[Segment]) -> str:
    length = sum(segment.length for segment in segments)
    samples = "".join(_segment(segment) for segment in segments)
    return f"<h3>Row {number}: {len(segments)} samples, {length:,} tokens</h3><ol>{samples}</ol>"


def _segment(segment: Segment) -> str:
    text = "".join(
        f'<span class="chip">{NAMES[kind]}, {escape(content)} tokens</span>'
        if kind in NAMES
        else f'<span class="{kind}">{escape(content)}</span>'
        for kind, content in segment.runs
    )
    images = "".join(_thumbnail(image, f"image of {segment.key}") for image in segment.images)
    return (
        f'<li class="{segment.task}"><p><strong>{segment.task}</strong> <code>{escape(segment.key)}</code> '
        f'{segment.length:,} tokens</p><div class="images">{images}</div><pre>{text}</pre></li>'
    )


def _thumbnail(pixels: np.ndarray, description: str) -> str:
    image = PIL.Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return picture(image, description)


STYLE = """
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); margin-top: 2rem; }
.cards li { background: var(--box); border: 1px solid var(--line); border-top: 3px solid var(--blue);
  border-radius: 0.5rem; padding: 1rem; font-size: 0.875rem; line-height: 1.45; color: var(--muted); }
.cards h2 { font-size: 0.95rem; letter-spacing: 0; margin: 0; color: var(--ink); }
.cards .value { font-size: 1.6rem; font-weight: 600; color: var(--ink); }
.columns { grid-template-columns: minmax(0, 1fr); }
.columns :is(th, td) { overflow-wrap: normal; white-space: nowrap; }
dl { font-size: 0.9rem; overflow-wrap: anywhere; }
dd { color: var(--muted); margin-bottom: 0.5rem; }
section h3 { margin: 2rem 0 0.75rem; }
ol { display: grid; gap: 0.75rem; }
ol li { --state: var(--orange); background: var(--box); border: 1px solid var(--line);
  border-left: 3px solid var(--state); border-radius: 0.5rem; padding: 0.75rem 1rem; min-width: 0; }
ol li p { font-size: 0.875rem; color: var(--muted); }
ol li strong { color: var(--state); }
.understand { --state: var(--blue); }
.generate { --state: var(--green); }
pre { font: 0.875rem/1.6 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; max-height: 24rem; overflow-y: auto; margin-top: 0.5rem; color: var(--muted); }
.answer { color: var(--ink); background: color-mix(in srgb, var(--green) 22%, transparent); border-radius: 0.2rem; }
.chip { color: var(--ink); background: color-mix(in srgb, var(--blue) 18%, transparent); border-radius: 0.2rem;
  padding: 0 0.35rem; }
.key span { margin-right: 0.75rem; }
.images { display: flex; flex-wrap: wrap; gap: 0.5rem; }
.images img { --scale: 1; image-rendering: auto; border-radius: 0.25rem; margin-top: 0.5rem; }
"""
