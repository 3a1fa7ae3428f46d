"""Render a comparison as one offline HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from enginix.report import html, svg
from enginix.report.artefacts import Artefact
from enginix.report.comparison.artefact_comparison import ArtefactComparison, group_by_origin
from enginix.report.comparison.cells import COLUMNS, REFERENCE, UNKNOWN, UNMEASURED, CellText, list_build_rows

STYLE = """
<style>main { max-width: 1280px; } table.wide { table-layout: auto; }
table.wide td, table.wide th { padding: 7px 8px; overflow-wrap: normal; vertical-align: top; }
table.wide td:first-child { overflow-wrap: anywhere; min-width: 130px; }
table.wide td:nth-child(3) { overflow-wrap: anywhere; min-width: 100px; } table.wide div { font-size: 13px; }
table.wide .number { text-align: right; font-variant-numeric: tabular-nums; }
table.wide td.number { white-space: nowrap; }
table.wide td.number div { white-space: normal; } table.wide td.number span.soft { white-space: normal; }
div.scroll { overflow-x: auto; } svg { max-width: 800px; display: block; }
@media (max-width: 600px) { .scroll svg { min-width: 640px; } .scroll .label { font-size: 12px; } }</style>
"""


def _render_cell(head: str, cell: CellText, right: bool) -> str:
    headline, detail = (escape(part) for part in cell)
    if cell[0] in (UNKNOWN, UNMEASURED, REFERENCE, "not gated"):
        headline = f'<span class="soft">{headline}</span>'
    elif head == "gates":
        headline = f'<span class="{"pass" if cell[0] == "passed" else "fail"}">{headline}</span>'
    elif head == "artefact":
        headline = f"<b>{headline}</b>"
    detail_html = f'<div class="soft">{detail}</div>' if detail else ""
    return (
        f'<td class="number">{headline}{detail_html}</td>' if right else f"<td>{headline}{detail_html}</td>"
    )


def _render_comparison_table(artefacts: Sequence[Artefact]) -> str:
    head = "".join(
        f'<th class="number">{escape(name)}</th>' if right else f"<th>{escape(name)}</th>"
        for name, _, right in COLUMNS
    )
    rows = ("".join(_render_cell(name, value(a), right) for name, value, right in COLUMNS) for a in artefacts)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    table = f'<table class="wide"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll">{table}</div>'


def _render_plot(artefacts: Sequence[Artefact]) -> str:
    drawn = [(a, a.measured) for a in artefacts if a.measured is not None and a.measured.ratio is not None]
    left_out = [a.name for a in artefacts if a.name not in {b.name for b, _ in drawn}]
    head = "<h2>Size and perplexity</h2>"
    if not drawn:
        return f"{head}<p class='soft'>No artefact has a measured perplexity: gate them (enginix gate).</p>"
    unit, divisor = _choose_size_unit(max(a.size for a, _ in drawn))
    points = []
    for a, m in drawn:
        assert m.ratio is not None
        low, high = (m.ratio if end is None else end for end in (m.low, m.high))
        points.append(svg.ScatterPoint(a.name, a.size / divisor, m.ratio, low, high, not m.failed))
    chart = svg.render_scatter_chart(
        "Size and perplexity", points, f"size on disk ({unit})", "perplexity over the reference's"
    )
    missing = f" Not drawn, because not measured: {', '.join(left_out)}." if left_out else ""
    return (
        f"{head}<div class='scroll'>{chart}</div><p class='soft'>Bars: 95% confidence intervals. 1 is the "
        "model before quantization; lower and further left is better. Red: a gate failed."
        f"{escape(missing)}</p>"
    )


def _render_builds(artefacts: Sequence[Artefact]) -> str:
    builds = list_build_rows(artefacts)
    if not builds:
        return ""
    rows = [[f"<td>{escape(cell)}</td>" for cell in row] for row in builds[1:]]
    table = html.render_table(builds[0], rows, css="wide")
    machines = ", ".join(sorted({a.made.machine for a in artefacts if a.made}))
    return (
        f'<h2>Builds</h2><div class="scroll">{table}</div>'
        f"<p class='soft'>As the run logs beside the artefacts say. Made on: {escape(machines)}.</p>"
    )


def _choose_size_unit(size: int) -> tuple[str, int]:
    for name, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << power:
            return name, 1 << power
    return "B", 1


def _render_remarks(comparison: ArtefactComparison) -> str:
    rows = [f"<p>{escape(note)}</p>" for note in comparison.notes]
    rows += [
        f"<p class='fail'>{escape(a.name)}: {escape(doubt)}.</p>"
        for a in comparison.artefacts
        for doubt in a.doubts
    ]
    if not rows:
        return ""
    return f'<div class="verdict bad"><b>Read this first</b>{"".join(rows)}</div>'


def render_comparison_page(comparison: ArtefactComparison) -> str:
    """Render the table and the plot as one HTML file."""
    artefacts = comparison.artefacts
    origins = list(group_by_origin(artefacts))
    about = f"{len(artefacts)} artefacts" + (f" of {origins[0]}" if len(origins) == 1 else "")
    speed = "" if comparison.speed_on is None else f" Speed: measured on {comparison.speed_on}."
    legend = (
        "Bits a weight: on disk, scales included, over the whole model, and over the matrices of the layers. "
        "Perplexity, same token (as the reference's most likely) and mean KL (nats) are of the gates' text, "
        "the reference being the model before quantization; below the ratio its 95% interval. Greedy: share "
        "of the tokens of greedy answers, where an engine gives no distributions. "
        f"Below tokens a second: mean time to the first token and between tokens, "
        "and from the start of its server until it answered. "
        f"“{UNMEASURED}”: no gate or measurement gave this figure.{speed}"
    )
    parts = [
        STYLE,
        _render_remarks(comparison),
        _render_comparison_table(artefacts),
        f"<p class='soft'>{escape(legend)}</p>",
        _render_plot(artefacts),
        _render_builds(artefacts),
    ]
    return html.render_page("enginix compare", "Comparison", about, parts)
