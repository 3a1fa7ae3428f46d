"""The table of faults in docs/reference/triton.md, and the functions that fill it."""

from __future__ import annotations

from collections.abc import Callable

from setting import Setting

Fault = Callable[[Setting], str]
FAULTS: dict[str, Fault] = {}
MARKS = ("<!-- faults: made by tests/faults/faults.py -->", "<!-- end of faults -->")


def fault(function: Fault) -> Fault:
    """Adds a fault to the table."""
    FAULTS[function.__name__] = function
    return function


def table(rows: dict[str, str]) -> str:
    """The table's text."""
    lines = ["| fault | outcome |", "|---|---|"]
    lines += [f"| {(FAULTS[name].__doc__ or name).strip()} | {outcome} |" for name, outcome in rows.items()]
    return "\n".join(lines)
