"""The page of `launch.inspect_data`: the first rows as the model gets them, and the mixture that they really have."""

from collections.abc import Sequence
from html import escape

import numpy as np
import PIL.Image

from janus_jax.reports.batch_contents import Segment
from janus_jax.reports.html import cards, document, picture, table
from janus_jax.reports.inspection import Inspection

THUMBNAIL = 192  # Length of the longer side in pixels
NAMES = {
    "und_image": "understanding image",
    "gen_image": "generation image",
    "condition": "codes of a condition image",
}


def render(inspection: Inspection) -> str:
    """The whole HTML document. The text of samples comes from strangers, so all of it is escaped."""
    tables = "".join(
        table(caption, [escape(name) for name in head], [[escape(cell) for cell in row] for row in rows])
        for caption, head, rows in inspection.tables
    )
    body = (
        f'<header><p class="eyebrow">janus_jax inspect_data</p><h1>{escape(inspection.title)}</h1>'
        f"{cards(inspection.cards)}</header><main>"
        f'<section><h2>Mixture</h2><div class="columns">{tables}</div></section>'
    )
    if inspection.dropped:
        samples = "".join(f"<dt>{escape(key)}</dt><dd>{escape(reason)}</dd>" for key, reason in inspection.dropped)
        body += f"<section><h2>First dropped samples</h2><dl>{samples}</dl></section>"
    if inspection.rows:
        legend = (
            '<span class="answer">text with loss</span> <span>text without loss</span> <span class="chip">image</span>'
        )
        rows = "".join(_row(number, samples) for number, samples in enumerate(inspection.rows))
        body += f'<section><h2>Rows</h2><p class="key">{legend}</p>{rows}</section>'
    if inspection.images:
        images = "".join(_thumbnail(image, "training image") for image in inspection.images)
        body += f'<section><h2>Images</h2><div class="images">{images}</div></section>'
    return document(inspection.title, STYLE, body + "</main>")


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
.cards { --least: 9rem; margin-top: 2rem; }
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
