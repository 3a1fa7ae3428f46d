"""Render ``report.html``: the verdict, the questions, both answers side by side, and the figures."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import SequenceMatcher
from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginix.bench_record import StoredSpeed
from enginix.report import svg
from enginix.tables import load_table

if TYPE_CHECKING:
    import jinja2

_NOTHING = '<span class="soft">(nothing)</span>'


@cache
def _load_templates() -> jinja2.Environment:
    import jinja2

    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.globals |= {"mark_differences": mark_differences, "svg": svg, "zip": zip}
    return templates


def render_page(template: str, **content: Any) -> str:
    """Render one offline file from a template of this directory, which escapes what it shows."""
    return _load_templates().get_template(template).render(**content)


def mark_differences(answer: str, other: str) -> str:
    """Return ``answer`` as HTML with its differences from ``other`` marked."""
    if answer == other:
        return escape(answer) or _NOTHING
    out = ""
    for operation, start, end, _, _ in SequenceMatcher(None, answer, other, autojunk=False).get_opcodes():
        part = escape(answer[start:end])
        out += part if operation == "equal" or not part else f"<mark>{part}</mark>"
    return out or _NOTHING


def render_gate_report(name: str, evidence: Mapping[str, Any], speed: StoredSpeed | None = None) -> str:
    """Render the page of one engine.

    Args:
        name: the engine's.
        evidence: the content of its ``gates.json``.
        speed: the measurement beside the engine, where one was made.
    """
    gates: Mapping[str, Any] = evidence.get("gates", {})
    return render_page(
        "gates.html.jinja",
        title=f"{name}: gates",
        heading=name,
        about="The engine's answers beside the reference model's, on the same text.",
        table=load_table("gates")["gates"],
        evidence=evidence,
        gates=gates,
        failed=sorted(gate for gate, detail in gates.items() if not detail.get("passed")),
        speed=speed,
    )
