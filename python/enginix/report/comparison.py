"""Compare artefacts in one table and one plot: for the terminal, as JSON, or as one offline page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from typing import Any

from enginix.console import format_bytes
from enginix.errors import UsageError
from enginix.letter_case import camel_case_keys
from enginix.report import html, svg
from enginix.report.artefacts import Artefact, label_artefacts
from enginix.report.gate_figures import GateFigures, MeasuredSpeeds
from enginix.report.model_origin import ModelOrigin
from enginix.run_log import ArtefactRun

UNKNOWN = "not known"
UNMEASURED = "not measured"
REFERENCE = "the reference"  # in place of a verdict

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


@dataclass(frozen=True)
class ArtefactComparison:
    """A comparison of artefacts.

    Attributes:
        notes: reasons why figures of two rows cannot be compared, and runtimes that are not verified.
        speed_on: the machine that speeds were measured on; None without speeds.
    """

    artefacts: tuple[Artefact, ...]
    notes: tuple[str, ...]
    speed_on: str | None

    @property
    def has_doubts(self) -> bool:
        return any(artefact.doubts for artefact in self.artefacts)

    def as_json(self) -> dict[str, Any]:
        """Return keys in camel case; figures that were not measured are null."""
        rows = [camel_case_keys(asdict(artefact)) for artefact in self.artefacts]
        return {"artefacts": rows, "notes": list(self.notes), "speedOn": self.speed_on}


def compare_artefacts(
    artefacts: Sequence[Artefact], speeds: MeasuredSpeeds | None = None
) -> ArtefactComparison:
    """Compare artefacts: give them unique names, add speeds, and note figures that cannot be compared.

    Raises:
        UsageError: a speed of an artefact that is not compared.
    """
    named = tuple(_fill_baseline(a, artefacts) for a in label_artefacts(artefacts))
    if speeds is not None:
        strange = sorted(set(speeds.rates) - {a.name for a in named})
        if strange:
            names = ", ".join(repr(a.name) for a in named)
            raise UsageError(
                f"a speed of {strange[0]!r}, which is not compared", fix=f"the names are: {names}"
            )
        # One setting for all: what was measured in another is left out.
        named = tuple(
            replace(a, speed=speeds.rates.get(a.name), bench=None, bench_refusal=None) for a in named
        )
    notes = (*_list_notes(named), *_list_speed_notes(named))
    return ArtefactComparison(named, notes, _describe_setting(named) if speeds is None else speeds.on)


def _describe_setting(artefacts: Sequence[Artefact]) -> str | None:
    """Return the machine and load of all measurements; None where they differ or none is there."""
    settings = {f"{a.bench.machine}: {a.bench.load}" for a in artefacts if a.bench is not None}
    return settings.pop() if len(settings) == 1 else None


def _list_speed_notes(artefacts: Sequence[Artefact]) -> list[str]:
    notes = [f"The speed of {a.name} is not shown: {a.bench_refusal}." for a in artefacts if a.bench_refusal]
    for differ, groups in (
        ("on different machines", _group_by_key(artefacts, lambda a: a.bench.machine if a.bench else None)),
        ("with different loads", _group_by_key(artefacts, lambda a: a.bench.load if a.bench else None)),
    ):
        if len(groups) > 1:
            described = _join_groups(groups)
            notes.append(f"They were measured {differ}, so their speeds cannot be compared: {described}.")
    engines = [a for a in artefacts if a.what.endswith("engine") and not a.bench_refusal]
    holes = ", ".join(a.name for a in engines if a.bench is None)
    if holes and any(a.bench is not None for a in engines):
        notes.append(f"No speed was measured of {holes}: enginix bench DIR does.")
    return notes


def _fill_baseline(artefact: Artefact, artefacts: Sequence[Artefact]) -> Artefact:
    """Give the model that others were compared with the figures that it has by definition, or by theirs."""
    if artefact.what != "model" or artefact.measured is not None or artefact.origin is None:
        return artefact
    for other in artefacts:
        figures = other.measured
        if figures is None or figures.reference is None or figures.reference.differs(artefact.origin):
            continue
        baseline = GateFigures(
            REFERENCE,
            ratio=1.0,
            low=1.0,
            high=1.0,
            perplexity=figures.reference_perplexity,
            same=1.0,
            kl=0.0,
            score=figures.reference_score,
            questions=figures.questions,
            material=figures.material,
            reference=figures.reference,
        )
        return replace(artefact, measured=baseline)
    return artefact


def _list_notes(artefacts: Sequence[Artefact]) -> list[str]:
    notes = []
    origins = _group_by_origin(artefacts)
    if len(origins) > 1:
        notes.append(f"These are of different models: {_join_groups(origins)}.")
    names_by_material = _group_by_key(
        artefacts, lambda a: a.measured.material if a.measured is not None else None
    )
    if len(names_by_material) > 1:
        short_materials = {material[:12]: names for material, names in names_by_material.items()}
        notes.append(
            "They were asked different questions, so their figures cannot be compared: "
            f"{_join_groups(short_materials)}."
        )
    notes += [f"{a.name}: {a.warning}." for a in artefacts if a.warning is not None]
    for artefact in artefacts:
        figures = artefact.measured
        reference = None if figures is None else figures.reference
        if reference is not None and artefact.origin is not None and reference.differs(artefact.origin):
            notes.append(
                f"{artefact.name} was compared with {reference}, and was made from {artefact.origin}."
            )
    return notes


def _group_by_origin(artefacts: Sequence[Artefact]) -> dict[ModelOrigin, list[str]]:
    """Return the models that are known to differ, with the names of the artefacts made from each."""
    names_by_origin = dict[ModelOrigin, list[str]]()
    # The best identified first, so that an artefact with an incomplete origin joins a group of known origin.
    for artefact in sorted(artefacts, key=lambda a: a.origin is None or a.origin.commit is None):
        if (origin := artefact.origin) is not None:
            known_origin = next((o for o in names_by_origin if not origin.differs(o)), origin)
            names_by_origin.setdefault(known_origin, []).append(artefact.name)
    return names_by_origin


def _group_by_key(
    artefacts: Sequence[Artefact], key: Callable[[Artefact], str | None]
) -> dict[str, list[str]]:
    names_by_value = dict[str, list[str]]()
    for artefact in artefacts:
        if (value := key(artefact)) is not None:
            names_by_value.setdefault(value, []).append(artefact.name)
    return names_by_value


def _join_groups(groups: Mapping[Any, list[str]]) -> str:
    return "; ".join(f"{value} ({', '.join(names)})" for value, names in groups.items())


# A cell's text, and the smaller text below it.
CellText = tuple[str, str]
NOTHING: CellText = (UNMEASURED, "")


def _show_format(a: Artefact) -> CellText:
    return (a.format or UNKNOWN, f"{a.kv_cache} KV cache" if a.kv_cache else "")


def _show_bits(a: Artefact) -> CellText:
    if a.weights is None:
        return UNKNOWN, ""
    matrices = a.weights.matrix_bits
    return f"{a.weights.bits:.3g}", "" if matrices is None else f"layers {matrices:.3g}"


def _show_perplexity(a: Artefact) -> CellText:
    m = a.measured
    return NOTHING if m is None or m.perplexity is None else (f"{m.perplexity:.4g}", "")


def _show_ratio(a: Artefact) -> CellText:
    m = a.measured
    if m is None or m.ratio is None:
        return NOTHING
    ends = f"{m.low:.4g} to {m.high:.4g}" if m.low is not None and m.high is not None else ""
    return f"× {m.ratio:.4g}", ends


def _show_same_token(a: Artefact) -> CellText:
    m = a.measured
    if m is None or (m.same is None and m.greedy is None):
        return NOTHING
    greedy = "" if m.greedy is None else f"greedy {m.greedy:.1%}"
    return (greedy, "") if m.same is None else (f"{m.same:.1%}", greedy)


def _show_kl(a: Artefact) -> CellText:
    m = a.measured
    if m is None or m.kl is None:
        return NOTHING
    return ("< 1e-6" if m.kl < 1e-6 else f"{m.kl:.2g}"), ""


def _show_task(a: Artefact) -> CellText:
    m = a.measured
    if m is None or m.score is None or m.questions is None:
        return NOTHING
    detail = "" if m.reference_score is None else f"reference {m.reference_score}"
    return f"{m.score} of {m.questions}", detail


def _show_speed(a: Artefact) -> CellText:
    if a.speed is None:
        return NOTHING
    rate = f"{a.speed:,.4g}" if a.speed < 1000 else f"{a.speed:,.0f}"
    latencies = (
        () if a.bench is None else (("first", a.bench.first_token), ("between", a.bench.between_tokens))
    )
    details = [f"{name} {1000 * s:,.3g} ms" for name, s in latencies if s is not None]
    if a.bench is not None and a.bench.ready is not None:
        details.append(f"ready {a.bench.ready:,.3g} s")
    return rate, ", ".join(details)


def _show_gates(a: Artefact) -> CellText:
    m = a.measured
    if m is None:
        return "not gated", ""
    return m.verdict, ", ".join(m.failed)


def _show_artefact(a: Artefact) -> str:
    # Artefacts of one name are told apart by what they are, in their name.
    what = "" if f", {a.what}" in a.name else a.what
    return f"{what} for {a.target}".strip() if a.target else what


COLUMNS: tuple[tuple[str, Callable[[Artefact], CellText], bool], ...] = (
    ("artefact", lambda a: (a.name, _show_artefact(a)), False),
    ("gates", _show_gates, False),
    ("format", _show_format, False),
    ("size", lambda a: (format_bytes(a.size), ""), True),
    ("bits a weight", _show_bits, True),
    ("perplexity", _show_perplexity, True),
    ("over the reference's", _show_ratio, True),
    ("same token", _show_same_token, True),
    ("mean KL", _show_kl, True),
    ("questions", _show_task, True),
    ("tokens/s", _show_speed, True),
)


def list_build_rows(artefacts: Sequence[Artefact]) -> list[list[str]]:
    """Return what making each artefact took, a row a figure; nothing where no artefact has a run log."""
    if not any(a.made for a in artefacts):
        return []

    def row(name: str, show: Callable[[ArtefactRun], str]) -> list[str]:
        return [name, *("not known" if a.made is None else show(a.made) for a in artefacts)]

    steps = dict.fromkeys(str(step["step"]) for a in artefacts if a.made for step in a.made.steps)
    rows = [
        ["made by", *(UNKNOWN if a.made is None else a.made.command for a in artefacts)],
        row("seconds", lambda made: f"{made.seconds:.1f}"),
        row("peak memory", lambda made: UNKNOWN if not made.peak_bytes else format_bytes(made.peak_bytes)),
    ]
    for name in steps:
        if " / " not in name:  # the steps of steps are in the run logs
            rows.append([name, *(UNKNOWN if a.made is None else _show_step(a.made, name) for a in artefacts)])
    return [["build", *(a.name for a in artefacts)], *rows]


def _show_step(made: ArtefactRun, name: str) -> str:
    step = next((step for step in made.steps if step["step"] == name), None)
    if step is None:
        return "–"
    speed = step.get("bytesPerSecond")
    return f"{step['seconds']:.1f} s" + (f", {format_bytes(speed)}/s" if isinstance(speed, int) else "")


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
    head = "".join(f"<th>{escape(cell)}</th>" for cell in builds[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in builds[1:]
    )
    machines = ", ".join(sorted({a.made.machine for a in artefacts if a.made}))
    return (
        f'<h2>Builds</h2><div class="scroll"><table class="wide"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
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
    origins = list(_group_by_origin(artefacts))
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
