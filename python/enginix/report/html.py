"""Render ``report.html``: the verdict, the questions, both answers side by side, and the figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import SequenceMatcher
from html import escape
from typing import Any

from enginix.bench_record import StoredSpeed
from enginix.report import svg
from enginix.tables import load_table

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5f6a73; --line: #d9dee3; --page: #ffffff;
  --good: #1a7f4b; --bad: #c0392b; --mark: #ffe2dd; --blue: #2c6fbb; --card: #f6f8fa; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9aa5ae; --line: #363d44;
  --page: #15181b; --good: #4cc38a; --bad: #ff8b7d; --mark: #4d2a26; --blue: #6ea8e6; --card: #1d2226; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 0; }
main { max-width: 1000px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 36px 0 8px; }
p.soft, .soft { color: var(--soft); }
.verdict { border-left: 6px solid var(--soft); background: var(--card); padding: 14px 18px; margin: 18px 0; }
.verdict.good { border-color: var(--good); } .verdict.bad { border-color: var(--bad); }
.verdict b { font-size: 18px; } .good b, .pass { color: var(--good); } .bad b, .fail { color: var(--bad); }
table { border-collapse: collapse; width: 100%; table-layout: fixed; }
th, td { text-align: left; vertical-align: top; padding: 7px 10px; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; } th { color: var(--soft); font-weight: 600; }
td.name { width: 120px; } col.short { width: 118px; } col.tiny { width: 84px; }
td.said { font: 13px/1.45 ui-monospace, monospace; white-space: break-spaces; }
mark { background: var(--mark); color: inherit; } .pass, .fail { font-weight: 600; }
svg { width: 100%; height: auto; background: var(--card); margin: 6px 0; border-radius: 4px; }
svg .tick { font-size: 11px; fill: var(--soft); } svg .label { font-size: 12px; fill: var(--ink); }
svg .grid { stroke: var(--line); } svg .axis { stroke: var(--soft); }
svg .line { fill: none; stroke: var(--blue); stroke-width: 2; } svg .dot { fill: var(--blue); }
svg .bar { fill: var(--blue); opacity: 0.75; } svg .middle { stroke: var(--ink); stroke-width: 2; }
svg .bound { stroke: var(--bad); stroke-dasharray: 5 4; } svg .none { stroke: none; }
svg .whisker { stroke: var(--blue); stroke-width: 2; opacity: 0.6; } svg .lead { stroke: var(--line); }
@media (max-width: 600px) { svg .tick { font-size: 13px; } svg .label { font-size: 17px; } }
svg .wrong { stroke: var(--bad); } svg circle.wrong { fill: var(--bad); }
"""
_NOTHING = '<span class="soft">(nothing)</span>'


def _render_verdict(passed: bool) -> str:
    return f'<span class="{"pass" if passed else "fail"}">{"passed" if passed else "failed"}</span>'


def mark_differences(answer: str, other: str) -> str:
    """Return ``answer`` as HTML with its differences from ``other`` marked."""
    if answer == other:
        return escape(answer) or _NOTHING
    out = ""
    for operation, start, end, _, _ in SequenceMatcher(None, answer, other, autojunk=False).get_opcodes():
        part = escape(answer[start:end])
        out += part if operation == "equal" or not part else f"<mark>{part}</mark>"
    return out or _NOTHING


def render_table(head: Sequence[str], rows: Sequence[Sequence[str]], columns: str = "", css: str = "") -> str:
    """Render a table of cells that are HTML already, below a head of texts."""
    cells = "".join(f"<th>{escape(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(row) + "</tr>" for row in rows)
    start = f'<table class="{css}">' if css else "<table>"
    return f"{start}{columns}<thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def _render_answer_cell(text: str) -> str:
    return f'<td class="said">{text}</td>'


def _render_gates(gates: Mapping[str, Any]) -> str:
    about = load_table("gates")["gates"]
    rows = []
    for name in sorted(gates, key=lambda n: (bool(gates[n].get("passed")), n)):
        title = about.get(name, {}).get("title", "")
        detail = gates[name]
        summary = detail.get("summary") or f"relative error at most {detail.get('errorAtMost', 0):g}"
        rows.append(
            [
                f"<td><b>{escape(name)}</b></td>",
                f"<td>{_render_verdict(bool(gates[name].get('passed')))}</td>",
                f'<td>{escape(str(summary))}<div class="soft">{escape(title)}</div></td>',
            ]
        )
    return render_table(("gate", "verdict", "found"), rows, '<col class="short"><col class="tiny"><col>')


def _render_agreement(
    gate: Mapping[str, Any], name: str = "agreement", head: str = "Agreement by position"
) -> str:
    points = [(float(row["from"]), float(row["top1"])) for row in gate["byPosition"]]
    chart = svg.render_line_chart(head, points, "position in the text (tokens)", bound=float(gate["top1"]))
    note = load_table("gates")["gates"][name]["measure"]
    return f"<h2>{head}</h2>{chart}<p class='soft'>{escape(note)}</p>"


def _render_perplexity(gate: Mapping[str, Any]) -> str:
    low, high = gate["interval"]
    chart = svg.render_interval_chart(
        "Perplexity ratio", float(gate["ratioFound"]), (low, high), float(gate["ratio"])
    )
    return (
        f"<h2>Perplexity over the reference's</h2>{chart}<p class='soft'>{gate['found']:g} on "
        f"{gate['tokens']} tokens, the reference {gate['reference']:g}; bar: 95% confidence interval.</p>"
    )


def _render_answers(gate: Mapping[str, Any]) -> str:
    rows = [
        [
            f"<td>{escape(row['prompt'])}</td>",
            _render_answer_cell(mark_differences(row["reference"], row["engine"])),
            _render_answer_cell(mark_differences(row["engine"], row["reference"])),
        ]
        for row in gate["answers"]
    ]
    return "<h2>Continuations, side by side</h2>" + render_table(("prompt", "reference", "engine"), rows)


def _render_greedy(gate: Mapping[str, Any]) -> str:
    return _render_agreement(gate, "greedy", "Greedy answers by position")


def _render_recalled(gate: Mapping[str, Any]) -> str:
    return _render_replies(gate, "Facts in long texts")


def _render_replies(gate: Mapping[str, Any], head: str = "Questions") -> str:
    rows = [
        [
            f"<td>{escape(row['question'])}<div class='soft'>{escape(row['answer'])}</div></td>",
            _render_answer_cell(mark_differences(row["reference"], row["engine"])),
            _render_answer_cell(mark_differences(row["engine"], row["reference"])),
            f"<td>{_render_verdict(bool(row['right'][0]))}</td>",
        ]
        # The engine's wrong answers first.
        for row in sorted(gate["replies"], key=lambda row: bool(row["right"][0]))
    ]
    columns = '<col><col><col><col class="tiny">'
    return f"<h2>{head}</h2>{_render_score(gate)}" + render_table(
        ("question, answer", "reference", "engine", ""), rows, columns
    )


def _render_score(gate: Mapping[str, Any]) -> str:
    if "interval" not in gate:
        return ""
    low, high = gate["interval"]
    right = f"{gate['score']} of {gate['questions']} right (95% interval {low:.0%} to {high:.0%})"
    return f"<p class='soft'>{right}, the reference {gate['referenceScore']}.</p>"


def _render_layer_errors(errors: Any) -> str:
    if not isinstance(errors, list):
        return f"<h2>Error by layer</h2><p class='fail'>{escape(str(errors))}</p>"
    chart = svg.render_bar_chart("Relative error by layer", [float(e) for e in errors], "layer")
    return (
        f"<h2>Error by layer</h2>{chart}<p class='soft'>|a − b| / |b| of each layer's output, the "
        "reference's b, on the first tokens of the evaluation text.</p>"
    )


# In the order of the page: figures, the layers' errors, answers. A gate's section is shown if the gate could
# run; then its evidence has the key.
_FIGURE_SECTIONS = (
    ("agreement", "byPosition", _render_agreement),
    ("greedy", "byPosition", _render_greedy),
    ("perplexity", "interval", _render_perplexity),
)
_ANSWER_SECTIONS = (
    ("smoke", "answers", _render_answers),
    ("task", "replies", _render_replies),
    ("context", "replies", _render_recalled),
)


def _render_sections(evidence: Mapping[str, Any]) -> list[str]:
    gates: Mapping[str, Any] = evidence.get("gates", {})

    def render_rows(rows: Sequence[tuple[str, str, Callable[[Mapping[str, Any]], str]]]) -> list[str]:
        return [section(gates[gate]) for gate, needs, section in rows if needs in gates.get(gate, {})]

    layers = [_render_layer_errors(evidence["layerErrors"])] if "layerErrors" in evidence else []
    return [*render_rows(_FIGURE_SECTIONS), *layers, *render_rows(_ANSWER_SECTIONS)]


def _render_speed(speed: StoredSpeed) -> str:
    figures = (
        ("tokens a second", speed.rate, 1, ""),
        ("to the first token", speed.first_token, 1000, " ms"),
        ("between tokens", speed.between_tokens, 1000, " ms"),
        ("from its start until it answered", speed.ready, 1, " s"),
    )
    rows = [
        [f"<td>{name}</td>", f"<td>{'not measured' if value is None else f'{scale * value:,.4g}{unit}'}</td>"]
        for name, value, scale, unit in figures
    ]
    where = f"<p class='soft'>Measured on {escape(speed.machine)}: {escape(speed.load)}.</p>"
    return "<h2>Speed</h2>" + render_table(["figure", "mean"], rows) + where


def render_gate_report(name: str, evidence: Mapping[str, Any], speed: StoredSpeed | None = None) -> str:
    """Render the page of one engine.

    Args:
        name: the engine's.
        evidence: the content of its ``gates.json``.
        speed: the measurement beside the engine, where one was made.
    """
    gates: Mapping[str, Any] = evidence.get("gates", {})
    failed = sorted(g for g, detail in gates.items() if not detail.get("passed"))
    if not gates:
        css_class, verdict, why = (
            "",
            "Not gated",
            "No gate was requested: the quality of its answers is not known.",
        )
    elif failed:
        css_class, verdict = "bad", f"Rejected: {', '.join(failed)} failed"
        why = f"{failed[0]}: {gates[failed[0]].get('summary', 'no summary')}"
    else:
        passed = "its gate" if len(gates) == 1 else f"all {len(gates)} gates"
        css_class, verdict, why = "good", f"Accepted: {passed} passed", ""
    parts = [f'<div class="verdict {css_class}"><b>{escape(verdict)}</b><div>{escape(why)}</div></div>']
    if "warning" in evidence:
        parts.append(f"<p class='fail'>Warning: {escape(str(evidence['warning']))}.</p>")
    if gates:
        parts.append(_render_gates(gates))
    parts += _render_sections(evidence)
    if speed is not None:
        parts.append(_render_speed(speed))
    if "bounds" in evidence:
        bounds = evidence["bounds"]
        parts.append(
            f"<h2>Why these bounds</h2><p>{escape(bounds['format'])}: {escape(bounds['reason'])}</p>"
        )
    if "runtime" in evidence:
        runtime_text = ", ".join(f"{key} {value}" for key, value in sorted(evidence["runtime"].items()))
        parts.append(f"<p>Executed by its own runtime: {escape(runtime_text)}.</p>")
    for what, why in sorted(evidence.get("absent", {}).items()):
        parts.append(f"<p>Missing: {escape(what)}: {escape(why)}.</p>")
    if "material" in evidence:
        material = evidence["material"]
        parts.append(
            f"<p class='soft'>Asked: {material['prompts']} prompts, {material['passages']} texts of "
            f"{material['tokens']} tokens, {material['questions']} questions; sha256 of texts and tokens "
            f"{escape(material['sha256'])}.</p>"
        )
    return render_page(
        f"{name}: gates", name, "The engine's answers beside the reference model's, on the same text.", parts
    )


def render_page(title: str, head: str, about: str, parts: Sequence[str]) -> str:
    """Render one offline file: a heading, a subtitle, and parts that are HTML already."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main><h1>{escape(head)}</h1>"
        f'<p class="soft">{escape(about)}</p>' + "\n".join(parts) + "</main></body></html>\n"
    )
