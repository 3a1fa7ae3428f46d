"""Render a comparison as one offline HTML page."""

from __future__ import annotations

from enginix.report import html, svg
from enginix.report.comparison.artefact_comparison import ArtefactComparison, group_by_origin
from enginix.report.comparison.cells import COLUMNS, REFERENCE, UNGATED, UNKNOWN, UNMEASURED, list_build_rows

_UNITS = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1))


def render_comparison_page(comparison: ArtefactComparison) -> str:
    """Render the table and the plot as one HTML file."""
    artefacts = comparison.artefacts
    origins = list(group_by_origin(artefacts))
    drawn = [
        (a, a.measured, a.measured.ratio) for a in artefacts if a.measured and a.measured.ratio is not None
    ]
    largest = max((a.size for a, _, _ in drawn), default=0)
    unit, divisor = next(row for row in _UNITS if largest >= row[1] or row[1] == 1)
    points = [
        svg.ScatterPoint(
            a.name,
            a.size / divisor,
            ratio,
            ratio if figures.low is None else figures.low,
            ratio if figures.high is None else figures.high,
            not figures.failed,
        )
        for a, figures, ratio in drawn
    ]
    return html.render_page(
        "comparison.html.jinja",
        title="enginix compare",
        heading="Comparison",
        about=f"{len(artefacts)} artefacts" + (f" of {origins[0]}" if len(origins) == 1 else ""),
        comparison=comparison,
        columns=COLUMNS,
        unknown=(UNKNOWN, UNMEASURED, REFERENCE, UNGATED),
        points=points,
        unit=unit,
        left_out=[a.name for a in artefacts if a.name not in {point.label for point in points}],
        builds=list_build_rows(artefacts),
        machines=sorted({a.made.machine for a in artefacts if a.made}),
    )
