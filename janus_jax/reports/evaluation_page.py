"""The page of an evaluation: the table of figures, and for each benchmark its wrong answers with images and its tables.

It is made of what the files of a run hold (docs/evaluation.md), so that it can be made again without the model.
"""

from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import PIL.Image

from janus_jax.reports.html import document, picture, table

LONGEST_SIDE = 320  # Pixels of an image on the page, some 20 kB each.


class Shown(NamedTuple):
    """One request, as the page shows it."""

    title: str  # id and index
    prompt: str
    images: Sequence[PIL.Image.Image]
    facts: Sequence[tuple[str, str]]  # such as ("answer", "Yes.") and ("right answer", "no")
    verdict: str  # "undecided", "wrong", "right", "no answer"


class Section(NamedTuple):
    """One benchmark."""

    name: str
    summary: str  # one sentence
    tables: Sequence[tuple[str, Sequence[Sequence[Any]]]]  # (title, rows with the head first)
    heading: str  # of the requests that are shown
    shown: Sequence[Shown]
    notes: Sequence[str] = ()


def render(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], sections: Sequence[Section]) -> str:
    """The whole HTML document. What comes from data sets and models is escaped.

    Args:
        head, rows: the table of all benchmarks, plain text.
    """
    links = "".join(f'<a href="#{escape(section.name)}">{escape(section.name)}</a>' for section in sections)
    overview = _plain_table("", [list(head), *rows])
    body = (
        f'<header><p class="eyebrow">janus_jax evaluation</p><h1>{escape(title)}</h1>'
        f'<div class="overview">{overview}</div><nav aria-label="Benchmarks">{links}</nav></header>'
        f"<main>{''.join(map(_section, sections))}</main>"
    )
    return document(title, STYLE, body)


def _section(section: Section) -> str:
    notes = "".join(f"<p>{escape(note)}</p>" for note in section.notes)
    tables = "".join(_plain_table(title, rows) for title, rows in section.tables)
    shown = "".join(map(_shown, section.shown))
    return (
        f'<section id="{escape(section.name)}"><h2>{escape(section.name)}</h2><p>{escape(section.summary)}</p>{notes}'
        + (f'<h3>{escape(section.heading)}</h3><ul class="samples">{shown}</ul>' if shown else "")
        + (f'<div class="tables">{tables}</div>' if tables else "")
        + "</section>"
    )


def _shown(sample: Shown) -> str:
    images = "".join(picture(image, f"image of {sample.title}", LONGEST_SIDE) for image in sample.images)
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value) or '(empty)'}</dd>" for name, value in sample.facts)
    return (
        f'<li class="{escape(sample.verdict.replace(" ", "-"))}"><p><strong>{escape(sample.verdict)}</strong> '
        f"<code>{escape(sample.title)}</code></p>"
        + (f'<div class="images">{images}</div>' if images else "")
        + f'<p class="prompt">{escape(sample.prompt)}</p><dl>{facts}</dl></li>'
    )


def _plain_table(title: str, rows: Sequence[Sequence[Any]]) -> str:
    """A table of values; the first row is the head."""
    if not rows:
        return ""
    head, *others = [[escape(_text(cell)) for cell in row] for row in rows]
    return table(title, head, others)


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


STYLE = """
.overview { margin-top: 2rem; }
:is(.overview, .tables) table { font-size: 0.9rem; }
:is(.overview, .tables) tr { border-bottom: 1px solid var(--line); }
:is(.overview, .tables) tr > :not(:first-child) { text-align: right; padding: 0.4rem 0 0.4rem 1.25rem;
  white-space: nowrap; }
.tables { display: flex; flex-wrap: wrap; gap: 2rem 3.5rem; margin-top: 2.5rem; }
.tables .scroll { max-width: 100%; }
section > p + p { margin-top: -1rem; }
section h3 { margin-bottom: 1rem; }
.samples { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); }
.samples li { --state: var(--red); background: var(--box); border: 1px solid var(--line);
  border-top: 3px solid var(--state); border-radius: 0.5rem; padding: 0.75rem 1rem; min-width: 0; font-size: 0.9rem; }
.samples li strong { color: var(--state); }
.samples .undecided, .samples .no-answer, .samples .differs { --state: var(--orange); }
.samples .right, .samples .better { --state: var(--green); }
.samples .images { display: flex; flex-wrap: wrap; gap: 0.5rem; margin: 0.5rem 0; }
.samples img { --scale: 1; image-rendering: auto; border-radius: 0.25rem; width: max(var(--width), 8rem); }
.samples .images img:not(:only-child) { width: calc(50% - 0.25rem); }
.prompt { white-space: pre-wrap; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 0.1rem 0.75rem; margin-top: 0.5rem; }
dt { color: var(--muted); }
dd { overflow-wrap: anywhere; white-space: pre-wrap; }
"""
