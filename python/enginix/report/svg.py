"""Render charts as inline SVG; the page's style sheet gives the colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 220, 52, 36, 14


def _scale_value(value: float, low: float, high: float, start: float, end: float) -> float:
    return start + (end - start) * ((value - low) / (high - low) if high > low else 0.5)


def _line(css: str, x: tuple[float, float], y: tuple[float, float]) -> str:
    return f'<line class="{css}" x1="{x[0]:.1f}" x2="{x[1]:.1f}" y1="{y[0]:.1f}" y2="{y[1]:.1f}"/>'


def _text(css: str, x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _render_svg(title: str, height: int, body: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH + 10} {height}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{body}</svg>"
    )


def _render_frame(title: str, x_label: str, ticks: Sequence[tuple[float, str]], body: str) -> str:
    lines = "".join(
        _line("grid", (LEFT, WIDTH), (y, y)) + _text("tick", LEFT - 6, y + 4, label, "end")
        for y, label in ticks
    )
    label = _text("tick", (LEFT + WIDTH) / 2, HEIGHT - 4, x_label)
    return _render_svg(title, HEIGHT, f"{lines}{body}{label}")


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

    def y_of(value: float) -> float:
        return _scale_value(value, low, 1.0, HEIGHT - BOTTOM, TOP)

    drawn = [(_scale_value(x, first, last, LEFT + 8, WIDTH - 8), y_of(y)) for x, y in points]
    marks = [low + (1.0 - low) * i / 4 for i in range(5)]
    body = f'<polyline class="line" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in drawn)}"/>'
    body += "".join(
        f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3.5"><title>{px:g}: {py:.1%}</title></circle>'
        for (x, y), (px, py) in zip(drawn, points, strict=True)
    )
    if bound is not None:
        y = y_of(bound)
        body += _line("bound", (LEFT, WIDTH), (y, y))
        body += _text("label", WIDTH, y + 15, f"asked {bound:.1%}", "end")
    for i in {0, len(points) - 1, len(points) // 2}:
        body += _text("tick", drawn[i][0], HEIGHT - BOTTOM + 14, f"{points[i][0]:g}")
    return _render_frame(title, x_label, [(y_of(m), f"{100 * m:.3g}%") for m in marks], body)


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
            body += _text("tick", x + width / 2, HEIGHT - BOTTOM + 14, str(i))
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
    body = _line("axis", (LEFT, WIDTH - 20), (60, 60))
    body += f'<rect class="bar" x="{a:.1f}" y="48" width="{max(2.0, b - a):.1f}" height="24"/>'
    body += _line("middle", (at(middle), at(middle)), (42, 78))
    for value, css_class, label, y in (
        (1.0, "axis", "1: the reference", 116),
        (bound, "bound", f"{bound:g} allowed", 101),
        (middle, "none", f"{middle:.4g}", 34),
    ):
        body += _line(css_class, (at(value), at(value)), (40, 86))
        body += _text("label", min(max(at(value), LEFT), WIDTH - LEFT), y, label)
    return _render_svg(title, 126, body)


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

    edge, body = WIDTH - right, ""
    for tick in _choose_ticks(low, high):
        y = y_of(tick)
        body += _line("grid", (LEFT, edge), (y, y)) + _text("tick", LEFT - 6, y + 4, f"{tick:.4g}", "end")
    for tick in _choose_ticks(0.0, widest, 6):
        body += _text("tick", x_of(tick), height - bottom + 16, f"{tick:.4g}")
    body += _line("axis", (LEFT, edge), (y_of(1.0), y_of(1.0)))
    heights = _spread_labels([y_of(p.y) + 4 for p in points], 16, TOP + 18, height - bottom)
    for point, label_y in zip(points, heights, strict=True):
        x, y, css_suffix = x_of(point.x), y_of(point.y), "" if point.good else " wrong"
        tooltip = f"{point.label}: {point.x:.3g}, {point.y:.4g} ({point.low:.4g} to {point.high:.4g})"
        whisker = _line(f"whisker{css_suffix}", (x, x), (y_of(point.low), y_of(point.high)))
        dot = f'<circle class="dot{css_suffix}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
        lead = _line("lead", (x + 6, edge + 8), (y, label_y - 4))
        body += f"<g><title>{escape(tooltip)}</title>{whisker}{dot}{lead}</g>"
        body += _text("label", edge + 12, label_y, _shorten_label(point.label), "start")
    body += _text("label", 4, TOP, y_label, "start")
    body += _text("label", (LEFT + edge) / 2, height - 8, x_label)
    return _render_svg(title, height, body)


def _shorten_label(label: str) -> str:
    """Return a label without its middle: names of one beginning are told apart by their ends."""
    return label if len(label) <= 24 else f"{label[:13]}…{label[-10:]}"
