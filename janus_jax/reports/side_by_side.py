"""A page that shows the images of several sources side by side, a row for each prompt."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import PIL.Image

from janus_jax.reports.html import document, picture, table

LONGEST_SIDE = 288  # Pixels of an image on the page.


class Row(NamedTuple):
    """One prompt."""

    prompt: str
    images: Sequence[PIL.Image.Image | None]  # one per source
    verdicts: Sequence[str]  # what the score of each source says of its image; "" for nothing


def render(title: str, sources: Sequence[str], scores: Sequence[Sequence[str]], rows: Sequence[Row], note: str) -> str:
    """The whole HTML document.

    Args:
        scores: a table of the figures of each source, the head first; empty for none.
        note: one sentence about the rows.
    """
    figures = ""
    if scores:
        head, *others = [[escape(cell) for cell in row] for row in scores]
        figures = table("Figures of the sources", head, others)
    body = (
        f'<header><p class="eyebrow">janus_jax comparison</p><h1>{escape(title)}</h1>'
        f'<p class="lead">{escape(note)}</p>{figures}</header>'
        f"<main><section>{''.join(_row(row, sources) for row in rows)}</section></main>"
    )
    return document(title, STYLE, body)


def _row(row: Row, sources: Sequence[str]) -> str:
    figures = "".join(
        f"<figure>{picture(image, f'{source}: {row.prompt}', LONGEST_SIDE) if image else '<p>no image</p>'}"
        f"<figcaption>{escape(source)}<p>{escape(verdict)}</p></figcaption></figure>"
        for source, image, verdict in zip(sources, row.images, row.verdicts, strict=True)
    )
    return f'<article><h3>{escape(row.prompt)}</h3><div class="sources">{figures}</div></article>'


STYLE = """
section { margin-top: 3rem; }
article { border-top: 1px solid var(--line); padding: 1rem 0 1.5rem; }
.sources { display: flex; gap: 0.75rem; margin-top: 0.5rem; overflow-x: auto; }
.sources figure { flex: 0 0 min(18rem, 44vw); min-width: 0; }
.sources img { --scale: 1; image-rendering: auto; border-radius: 0.25rem; width: 100%; }
figcaption { font-size: 0.875rem; overflow-wrap: anywhere; }
"""
