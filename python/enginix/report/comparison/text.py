"""Render a comparison as text for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from enginix.report.comparison.artefact_comparison import ArtefactComparison
from enginix.report.comparison.cells import COLUMNS, list_build_rows


def _align_columns(rows: Sequence[Sequence[str]], to_the_right: Sequence[bool]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, to_the_right, strict=True)
        ).rstrip()
        for row in rows
    ]


def _stack_columns(rows: Sequence[Sequence[str]], width: int | None) -> list[str]:
    """Return a table whose columns have become rows, of as many rows at a time as fit the width."""
    head, rest = rows[0], list(rows[1:])
    lines: list[str] = []
    while rest:
        count = len(rest)
        while True:
            turned = [list(column) for column in zip(head, *rest[:count], strict=True)]
            block = _align_columns(turned, [False] * (count + 1))
            if count == 1 or width is None or max(map(len, block)) <= width:
                break
            count -= 1
        lines += ([""] if lines else []) + block
        rest = rest[count:]
    return lines


def render_comparison_text(comparison: ArtefactComparison, width: int | None = None) -> str:
    """Render the table as text, with notes and doubts below.

    Args:
        width: columns of the terminal; where the table is wider, an artefact is a column, not a row.
    """
    rows = [[head for head, _, _ in COLUMNS]]
    for a in comparison.artefacts:
        cells = [value(a) for _, value, _ in COLUMNS]
        rows.append([headline + (f" ({detail})" if detail else "") for headline, detail in cells])
    lines = _align_columns(rows, [right for _, _, right in COLUMNS])
    if width is not None and max(map(len, lines)) > width:
        lines = _stack_columns(rows, width)
    if builds := list_build_rows(comparison.artefacts):
        lines += ["", *_stack_columns([list(column) for column in zip(*builds, strict=True)], width)]
    lines += [f"note: {note}" for note in comparison.notes]
    lines += [f"doubt: {a.name}: {doubt}" for a in comparison.artefacts for doubt in a.doubts]
    if comparison.speed_on is not None:
        lines.append(f"speed: measured on {comparison.speed_on}")
    return "\n".join(lines)
