"""Render charts as inline SVG; the page's style sheet gives the colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 220, 52, 36, 14


def _scale_value(value: float, low: float, high: float, start: float, end: float) -> float:
    return start + (end - start) * ((value - low) / (high - low) if high > low else 0.5)


def _render_frame(title: str, x_label: str, ticks: Sequence[tuple[float, str]], body: str) -> str:
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


def render_line_chart(
    title: str, points: Sequence[tuple[float, float]], x_label: str, bound: float | None = None
) -> str:
    """Render a line over positions, values as shares, and a horizontal line at ``bound``.

    Args:
        points: (x, y), by x.
    """
    low = min([y for _, y in points] + ([bound] if bound is not None else []))
    low = max(0.0, low - (1.0 - low) * 0.25)
    first, last = points[0][0], points[-1][0]
    xs = [_scale_value(x, first, last, LEFT + 8, WIDTH - 8) for x, _ in points]
    ys = [_scale_value(y, low, 1.0, HEIGHT - BOTTOM, TOP) for _, y in points]
    marks = [low + (1.0 - low) * i / 4 for i in range(5)]
    ticks = [(_scale_value(m, low, 1.0, HEIGHT - BOTTOM, TOP), f"{100 * m:.3g}%") for m in marks]
    body = '<polyline class="line" points="' + " ".join(
        f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True)
    )
    body += '"/>' + "".join(
        f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3.5"><title>{px:g}: {py:.1%}</title></circle>'
        for x, y, (px, py) in zip(xs, ys, points, strict=True)
    )
    if bound is not None:
        y = _scale_value(bound, low, 1.0, HEIGHT - BOTTOM, TOP)
        body += f'<line class="bound" x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
        body += f'<text class="label" x="{WIDTH}" y="{y + 15:.1f}" text-anchor="end">asked {bound:.1%}</text>'
    labels = {0, len(points) - 1, len(points) // 2}
    for i in labels:
        body += (
            f'<text class="tick" x="{xs[i]:.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">'
            f"{points[i][0]:g}</text>"
        )
    return _render_frame(title, x_label, ticks, body)


def render_bar_chart(title: str, values: Sequence[float], x_label: str) -> str:
    """Render a bar for each value, from 0."""
    high = max([*values, 1e-12]) * 1.15
    step = (WIDTH - LEFT) / max(1, len(values))
    body = ""
    for i, value in enumerate(values):
        y = _scale_value(value, 0, high, HEIGHT - BOTTOM, TOP)
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
    ticks = [(_scale_value(m, 0, high, HEIGHT - BOTTOM, TOP), f"{m:.2g}") for m in marks]
    return _render_frame(title, x_label, ticks, body)


def render_interval_chart(title: str, middle: float, ends: tuple[float, float], bound: float) -> str:
    """Render a ratio with its confidence interval, 1 and the bound, on one axis."""
    low, high = min(1.0, ends[0], bound), max(1.0, ends[1], bound)
    low, high = low - (high - low) * 0.1, high + (high - low) * 0.1

    def at(value: float) -> float:
        return _scale_value(value, low, high, LEFT, WIDTH - 20)

    a, b = at(ends[0]), at(ends[1])
    body = f'<line class="axis" x1="{LEFT}" x2="{WIDTH - 20}" y1="60" y2="60"/>'
    body += f'<rect class="bar" x="{a:.1f}" y="48" width="{max(2.0, b - a):.1f}" height="24"/>'
    body += f'<line class="middle" x1="{at(middle):.1f}" x2="{at(middle):.1f}" y1="42" y2="78"/>'
    for value, css_class, label, y in (
        (1.0, "axis", "1: the reference", 116),
        (bound, "bound", f"{bound:g} allowed", 101),
        (middle, "none", f"{middle:.4g}", 34),
    ):
        x = min(max(at(value), LEFT), WIDTH - LEFT)
        body += f'<line class="{css_class}" x1="{at(value):.1f}" x2="{at(value):.1f}" y1="40" y2="86"/>'
        body += f'<text class="label" x="{x:.1f}" y="{y}" text-anchor="middle">{escape(label)}</text>'
    return (
        f'<svg viewBox="0 0 {WIDTH + 10} 126" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{body}</svg>"
    )


@dataclass(frozen=True)
class ScatterPoint:
    """One artefact in :func:`render_scatter_chart`; ``low`` to ``high`` is the interval of ``y``."""

    label: str
    x: float
    y: float
    low: float
    high: float
    good: bool = True


def _choose_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return about ``count`` round numbers from ``low`` to ``high``."""
    rough = (high - low) / count
    step = 10.0 ** math.floor(math.log10(rough))
    step *= next((m for m in (1, 2, 2.5, 5, 10) if m * step >= rough * 0.999), 10)
    first = math.ceil(low / step - 1e-9)
    return [(first + i) * step for i in range(int((high - first * step) / step + 1e-9) + 1)]


def _spread_labels(preferred: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return heights of labels near ``preferred``, at least ``gap`` apart if the frame is high enough."""
    order = sorted(range(len(preferred)), key=lambda i: preferred[i])
    gap = min(gap, (high - low) / max(1, len(preferred)))
    placed = [0.0] * len(preferred)
    floor = low
    for i in order:
        placed[i] = floor = max(floor, preferred[i])
        floor += gap
    ceiling = high
    for i in reversed(order):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed


def render_scatter_chart(title: str, points: Sequence[ScatterPoint], x_label: str, y_label: str) -> str:
    """Render named points with the intervals of their heights, and a line at the reference's 1.

    Args:
        points: at least one.
    """
    height, bottom, right = 360, 46, 170
    low, high = min([1.0, *(p.low for p in points)]), max([1.0, *(p.high for p in points)])
    pad = (high - low or abs(high) or 1.0) * 0.08
    low, high = low - pad, high + pad
    widest = max(1e-3, max(p.x for p in points) * 1.08)

    def x_of(value: float) -> float:
        return _scale_value(value, 0.0, widest, LEFT, WIDTH - right)

    def y_of(value: float) -> float:
        return _scale_value(value, low, high, height - bottom, TOP + 14)

    body = ""
    for tick in _choose_ticks(low, high):
        y = y_of(tick)
        body += f'<line class="grid" x1="{LEFT}" x2="{WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        body += f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.4g}</text>'
    for tick in _choose_ticks(0.0, widest, 6):
        body += (
            f'<text class="tick" x="{x_of(tick):.1f}" y="{height - bottom + 16}" text-anchor="middle">'
            f"{tick:.4g}</text>"
        )
    y = y_of(1.0)
    body += f'<line class="axis" x1="{LEFT}" x2="{WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}"/>'
    heights = _spread_labels([y_of(p.y) + 4 for p in points], 16, TOP + 18, height - bottom)
    for point, label_y in zip(points, heights, strict=True):
        x, y, css_suffix = x_of(point.x), y_of(point.y), "" if point.good else " wrong"
        tooltip = f"{point.label}: {point.x:.3g}, {point.y:.4g} ({point.low:.4g} to {point.high:.4g})"
        body += (
            f'<g><title>{escape(tooltip)}</title><line class="whisker{css_suffix}" x1="{x:.1f}" x2="{x:.1f}" '
            f'y1="{y_of(point.low):.1f}" y2="{y_of(point.high):.1f}"/>'
            f'<circle class="dot{css_suffix}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
            f'<line class="lead" x1="{x + 6:.1f}" y1="{y:.1f}" x2="{WIDTH - right + 8}" '
            f'y2="{label_y - 4:.1f}"/></g>'
            f'<text class="label" x="{WIDTH - right + 12}" y="{label_y:.1f}">'
            f"{escape(_shorten_label(point.label))}</text>"
        )
    middle = (LEFT + WIDTH - right) / 2
    body += f'<text class="label" x="4" y="{TOP}">{escape(y_label)}</text>'
    body += f'<text class="label" x="{middle}" y="{height - 8}" text-anchor="middle">{escape(x_label)}</text>'
    return (
        f'<svg viewBox="0 0 {WIDTH + 10} {height}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{body}</svg>"
    )


def _shorten_label(label: str) -> str:
    """Return a label without its middle: names of one beginning are told apart by their ends."""
    return label if len(label) <= 24 else f"{label[:13]}…{label[-10:]}"
