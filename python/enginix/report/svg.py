"""Charts as inline SVG: coordinates computed here, colours by the page's style sheet."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 220, 52, 36, 14


def _scale(value: float, low: float, high: float, start: float, end: float) -> float:
    return start + (end - start) * ((value - low) / (high - low) if high > low else 0.5)


def _frame(title: str, x_label: str, ticks: Sequence[tuple[float, str]], body: str) -> str:
    lines = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(label)}</text>'
        for y, label in ticks
    )
    return (
        f'<svg viewBox="0 0 {WIDTH + 10} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{lines}{body}"
        f'<text class="tick" x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 4}" text-anchor="middle">'
        f"{escape(x_label)}</text></svg>"
    )


def line(
    title: str,
    points: Sequence[tuple[float, float]],
    x_label: str,
    bound: float | None = None,
    top: float = 1.0,
) -> str:
    """A line over positions, values as shares of ``top``; ``bound`` is drawn across.

    Args:
        points: (x, y), by x.
    """
    low = min([y for _, y in points] + ([bound] if bound is not None else []))
    low = max(0.0, low - (top - low) * 0.25)
    first, last = points[0][0], points[-1][0]
    xs = [_scale(x, first, last, LEFT + 8, WIDTH - 8) for x, _ in points]
    ys = [_scale(y, low, top, HEIGHT - BOTTOM, TOP) for _, y in points]
    marks = [low + (top - low) * i / 4 for i in range(5)]
    ticks = [(_scale(m, low, top, HEIGHT - BOTTOM, TOP), f"{m:.0%}") for m in marks]
    body = '<polyline class="line" points="' + " ".join(
        f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True)
    )
    body += '"/>' + "".join(
        f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3.5"><title>{px:g}: {py:.1%}</title></circle>'
        for x, y, (px, py) in zip(xs, ys, points, strict=True)
    )
    if bound is not None:
        y = _scale(bound, low, top, HEIGHT - BOTTOM, TOP)
        body += f'<line class="bound" x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
        body += f'<text class="label" x="{WIDTH}" y="{y - 5:.1f}" text-anchor="end">asked {bound:.1%}</text>'
    labels = {0, len(points) - 1, len(points) // 2}
    for i in labels:
        body += (
            f'<text class="tick" x="{xs[i]:.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">'
            f"{points[i][0]:g}</text>"
        )
    return _frame(title, x_label, ticks, body)


def bars(title: str, values: Sequence[float], x_label: str) -> str:
    """One bar a value, from 0."""
    high = max([*values, 1e-12]) * 1.15
    step = (WIDTH - LEFT) / max(1, len(values))
    body = ""
    for i, value in enumerate(values):
        y = _scale(value, 0, high, HEIGHT - BOTTOM, TOP)
        x, width = LEFT + i * step + step * 0.15, step * 0.7
        body += (
            f'<rect class="bar" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
            f'height="{HEIGHT - BOTTOM - y:.1f}"><title>layer {i}: {value:g}</title></rect>'
        )
        if len(values) <= 16 or i % (len(values) // 8) == 0:
            body += (
                f'<text class="tick" x="{x + width / 2:.1f}" y="{HEIGHT - BOTTOM + 14}" '
                f'text-anchor="middle">{i}</text>'
            )
    marks = [high * i / 4 for i in range(5)]
    ticks = [(_scale(m, 0, high, HEIGHT - BOTTOM, TOP), f"{m:.2g}") for m in marks]
    return _frame(title, x_label, ticks, body)


def interval(title: str, middle: float, ends: tuple[float, float], bound: float) -> str:
    """A ratio with its confidence interval, 1 and the bound, on one axis."""
    low, high = min(1.0, ends[0], bound), max(1.0, ends[1], bound)
    low, high = low - (high - low) * 0.1, high + (high - low) * 0.1

    def at(value: float) -> float:
        return _scale(value, low, high, LEFT, WIDTH - 20)

    a, b = at(ends[0]), at(ends[1])
    body = f'<line class="axis" x1="{LEFT}" x2="{WIDTH - 20}" y1="60" y2="60"/>'
    body += f'<rect class="bar" x="{a:.1f}" y="48" width="{max(2.0, b - a):.1f}" height="24"/>'
    body += f'<line class="middle" x1="{at(middle):.1f}" x2="{at(middle):.1f}" y1="42" y2="78"/>'
    for value, kind, label, y in (
        (1.0, "grid", "1: the reference", 116),
        (bound, "bound", f"{bound:g} allowed", 101),
        (middle, "none", f"{middle:.4g}", 34),
    ):
        x = min(max(at(value), LEFT), WIDTH - LEFT)
        body += f'<line class="{kind}" x1="{at(value):.1f}" x2="{at(value):.1f}" y1="40" y2="86"/>'
        body += f'<text class="label" x="{x:.1f}" y="{y}" text-anchor="middle">{escape(label)}</text>'
    return (
        f'<svg viewBox="0 0 {WIDTH + 10} 126" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{body}</svg>"
    )
