"""The chart of the losses of a training phase, for the page of a quickstart run."""

import math
from collections.abc import Mapping, Sequence
from html import escape

CHART_WIDTH, CHART_HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 466, 36, 248  # Edges of the plot; the rest of the chart is for ticks and labels.
INTERVALS = 6  # Number of intervals between the ticks of a linear axis, roughly and at most.
LOG_RANGE = 20  # Losses that span a larger factor get a logarithmic axis.


def loss_chart(title: str, metrics: Sequence[Mapping[str, float]]) -> str:
    """A line chart of every loss against the training step, as an SVG element with a legend.

    Args:
        metrics: the lines of metrics.jsonl; the keys loss and loss/NAME are shown.
    """
    keys = dict.fromkeys(key for line in metrics for key in line if key.split("/")[0] == "loss")
    curves = {key: [(line["step"], line[key]) for line in metrics if key in line] for key in keys}
    values = [value for curve in curves.values() for _, value in curve]
    logarithmic = min(values) > 0 and max(values) / min(values) > LOG_RANGE
    scale, axis = (math.log10, "loss (log scale)") if logarithmic else (float, "loss")
    num_steps = metrics[-1]["step"]
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
    description = escape(f"{title}: {axis} against training step")
    return (
        f'<svg viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT}" role="img" aria-label="{description}">'
        f"<title>{description}</title>{grid}"
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


STYLE = """
:root { --violet: #7c3fbf; }
@media (prefers-color-scheme: dark) { :root { --violet: #c69cff; } }
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
@media (max-width: 45rem) { svg text { font-size: 16px; } }
"""
