"""Building blocks of the HTML pages that commands write.

A page is one file: its style and its images are inside, and it has no scripts.
"""

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import PIL.Image


class Card(NamedTuple):
    """One number with its meaning. All fields but `verdict` are plain text."""

    label: str
    value: str
    hint: str
    verdict: str = ""  # HTML between value and hint
    state: str = ""  # CSS class; a class that sets --state colours the edge of the card


def document(title: str, style: str, body: str) -> str:
    """A whole HTML document.

    Args:
        style: CSS that follows the shared `STYLE`.
        body: HTML.
    """
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head><body>{body}</body></html>\n"
    )


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls by itself where the page is narrow.

    Args:
        head: HTML of the column headers.
        rows: HTML of the cells; the first cell of a row is the header of the row.
    """
    columns = "".join(f'<th scope="col">{name}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>' for name, *cells in rows
    )
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def cards(entries: Sequence[Card]) -> str:
    """A list of cards side by side; each is at least --least wide."""
    items = "".join(
        f'<li class="{card.state}"><h2>{escape(card.label)}</h2><p class="value">{escape(card.value)}</p>'
        f"{card.verdict}<p>{escape(card.hint)}</p></li>"
        for card in entries
    )
    return f'<ul class="cards">{items}</ul>'


def picture(image: PIL.Image.Image, description: str, longest_side: int | None = None) -> str:
    """An `img` element that holds the image itself. CSS shows it at --scale times its size in pixels.

    Args:
        longest_side: makes a photo of at most this size of it, which is stored as JPEG. None keeps every pixel (PNG).
    """
    buffer = io.BytesIO()
    if longest_side is None:
        kind = "png"
        image.save(buffer, "PNG", optimize=True)
    else:
        kind, image = "jpeg", image.convert("RGB")  # a copy
        image.thumbnail((longest_side, longest_side))
        image.save(buffer, "JPEG", quality=80, optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<img alt="{escape(description)}" width="{image.width}" height="{image.height}" '
        f'style="--width:{image.width}px" src="data:image/{kind};base64,{data}">'
    )


STYLE = """
:root { color-scheme: light dark; --page: #fafaf8; --box: #fff; --ink: #1d2126; --muted: #5c6470; --line: #e2e4e7;
  --blue: #2563c9; --orange: #c2560c; --green: #16794a; --red: #b4261f; }
@media (prefers-color-scheme: dark) { :root { --page: #121519; --box: #1a1e24; --ink: #e8eaed; --muted: #9ba4b0;
  --line: #2d333b; --blue: #79a9ff; --orange: #f0a35e; --green: #5ecb92; --red: #ff8b80; } }
* { box-sizing: border-box; margin: 0; padding: 0; list-style: none; }
body { max-width: 70rem; margin: auto; padding: 4rem 1.5rem 6rem; background: var(--page); color: var(--ink);
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: break-word; }
h1 { font-size: clamp(1.9rem, 5vw, 2.75rem); line-height: 1.15; letter-spacing: -0.02em; text-wrap: balance; }
h2 { font-size: 1.6rem; line-height: 1.25; letter-spacing: -0.01em; margin-bottom: 0.5rem; }
h3, caption { font-size: 1.05rem; font-weight: 600; text-align: left; }
small, thead, figcaption p, .legend { font-size: 0.8125rem; font-weight: 400; color: var(--muted); }
small { display: block; }
section { margin-top: 5rem; }
section > p { max-width: 42rem; margin-bottom: 1.75rem; color: var(--muted); }
.eyebrow { color: var(--blue); font-weight: 600; margin-bottom: 0.5rem; }
.lead { font-size: 1.15rem; margin: 1rem 0 2.5rem; max-width: 42rem; }
nav { display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; margin-top: 2.5rem; font-size: 0.9375rem; }
a { color: var(--blue); text-decoration: none; }
img { --scale: 2; display: block; width: calc(var(--scale) * var(--width)); max-width: 100%; height: auto;
  image-rendering: pixelated; }
.cards { --least: 14rem; display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(var(--least), 1fr)); }
.cards li { background: var(--box); border: 1px solid var(--line); border-top: 3px solid var(--state, var(--blue));
  border-radius: 0.5rem; padding: 1rem; font-size: 0.875rem; line-height: 1.45; color: var(--muted); }
.cards h2 { font-size: 0.95rem; letter-spacing: 0; margin: 0; color: var(--ink); }
.cards .value { font-size: clamp(1.6rem, 5vw, 2.1rem); line-height: 1.3; font-weight: 600; color: var(--ink); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; }
th { font-weight: 400; text-align: left; padding: 0.4rem 1rem 0.4rem 0; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 3rem 3.5rem; }
.columns table { width: 100%; font-size: 0.9rem; }
.columns tr { border-bottom: 1px solid var(--line); }
.columns tr > :not(:first-child) { text-align: right; padding: 0.4rem 0 0.4rem 1rem; }
code { font: 0.85em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
@media (max-width: 45rem) { body { padding: 2.5rem 1rem 4rem; } }
"""
