"""Several artefacts in one table and one plot: for the terminal, as JSON, as one page without network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from typing import Any

from enginix.console import human_bytes
from enginix.errors import UsageError
from enginix.report import html, svg
from enginix.report.artefacts import Artefact, label
from enginix.report.measured import Speeds
from enginix.report.origin import Origin

UNKNOWN = "not known"
UNMEASURED = "not measured"

STYLE = """
<style>main { max-width: 1180px; } table.wide { table-layout: auto; }
table.wide td, table.wide th { padding: 7px 8px; overflow-wrap: normal; vertical-align: top; }
table.wide td:first-child { overflow-wrap: anywhere; min-width: 130px; } table.wide div { font-size: 13px; }
table.wide .number { text-align: right; font-variant-numeric: tabular-nums; }
table.wide td.number { white-space: nowrap; } table.wide td.number span.soft { white-space: normal; }
div.scroll { overflow-x: auto; } svg { max-width: 800px; display: block; }</style>
"""


@dataclass(frozen=True)
class Comparison:
    """Artefacts beside each other.

    Attributes:
        notes: what makes figures of two rows not comparable; empty where nothing does.
        speed_on: what the speeds were measured on; None where none were given.
    """

    artefacts: tuple[Artefact, ...]
    notes: tuple[str, ...]
    speed_on: str | None

    @property
    def doubtful(self) -> bool:
        return any(artefact.doubts for artefact in self.artefacts)

    def as_json(self) -> dict[str, Any]:
        """Keys in camel case; what was not measured is null."""
        rows = [_camel(asdict(artefact)) for artefact in self.artefacts]
        return {"artefacts": rows, "notes": list(self.notes), "speedOn": self.speed_on}


def _camel(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            k.split("_")[0] + "".join(w.title() for w in k.split("_")[1:]): _camel(v)
            for k, v in value.items()
        }
    return [_camel(v) for v in value] if isinstance(value, list | tuple) else value


def compare(artefacts: Sequence[Artefact], speeds: Speeds | None = None) -> Comparison:
    """Names that differ, speeds, and what cannot be compared.

    Raises:
        UsageError: a speed of something that is not compared.
    """
    named = label(artefacts)
    if speeds is not None:
        strange = sorted(set(speeds.rates) - {a.name for a in named})
        if strange:
            names = ", ".join(repr(a.name) for a in named)
            raise UsageError(
                f"a speed of {strange[0]!r}, which is not compared", fix=f"the names are: {names}"
            )
        named = tuple(replace(a, speed=speeds.rates.get(a.name)) for a in named)
    return Comparison(named, tuple(_notes(named)), None if speeds is None else speeds.on)


def _notes(artefacts: Sequence[Artefact]) -> list[str]:
    notes = []
    origins = _origins(artefacts)
    if len(origins) > 1:
        notes.append(f"These are of different models: {_said(origins)}.")
    asked = _groups(artefacts, lambda a: a.measured.material if a.measured is not None else None)
    if len(asked) > 1:
        short = {material[:12]: names for material, names in asked.items()}
        notes.append(f"They were asked different things, so that figures cannot be compared: {_said(short)}.")
    for artefact in artefacts:
        found = artefact.measured
        reference = None if found is None else found.reference
        if reference is not None and artefact.origin is not None and reference.differs(artefact.origin):
            notes.append(
                f"{artefact.name} was compared with {reference}, and was made from {artefact.origin}."
            )
    return notes


def _origins(artefacts: Sequence[Artefact]) -> dict[Origin, list[str]]:
    """Models that are known to differ, with the names of what was made of each."""
    found = dict[Origin, list[str]]()
    # Those that tell most first, so that nobody stands for others by what it does not tell.
    for artefact in sorted(artefacts, key=lambda a: a.origin is None or a.origin.commit is None):
        if (own := artefact.origin) is not None:
            same = next((o for o in found if not own.differs(o)), own)
            found.setdefault(same, []).append(artefact.name)
    return found


def _groups(artefacts: Sequence[Artefact], key: Callable[[Artefact], str | None]) -> dict[str, list[str]]:
    found = dict[str, list[str]]()
    for artefact in artefacts:
        if (value := key(artefact)) is not None:
            found.setdefault(value, []).append(artefact.name)
    return found


def _said(groups: Mapping[Any, list[str]]) -> str:
    return "; ".join(f"{value} ({', '.join(names)})" for value, names in groups.items())


# What a cell says, and what is said smaller below it.
Said = tuple[str, str]
NOTHING: Said = (UNMEASURED, "")


def _format(a: Artefact) -> Said:
    return (a.format or UNKNOWN, f"{a.kv_cache} KV cache" if a.kv_cache else "")


def _bits(a: Artefact) -> Said:
    if a.weights is None:
        return UNKNOWN, ""
    matrices = a.weights.matrix_bits
    return f"{a.weights.bits:.3g}", "" if matrices is None else f"layers {matrices:.3g}"


def _perplexity(a: Artefact) -> Said:
    m = a.measured
    return NOTHING if m is None or m.perplexity is None else (f"{m.perplexity:.4g}", "")


def _ratio(a: Artefact) -> Said:
    m = a.measured
    if m is None or m.ratio is None:
        return NOTHING
    ends = f"{m.low:.4g} to {m.high:.4g}" if m.low is not None and m.high is not None else ""
    return f"× {m.ratio:.4g}", ends


def _same(a: Artefact) -> Said:
    m = a.measured
    if m is None or (m.same is None and m.greedy is None):
        return NOTHING
    greedy = "" if m.greedy is None else f"greedy {m.greedy:.1%}"
    return (greedy, "") if m.same is None else (f"{m.same:.1%}", greedy)


def _kl(a: Artefact) -> Said:
    m = a.measured
    if m is None or m.kl is None:
        return NOTHING
    return ("< 1e-6" if m.kl < 1e-6 else f"{m.kl:.2g}"), ""


def _task(a: Artefact) -> Said:
    m = a.measured
    if m is None or m.score is None or m.questions is None:
        return NOTHING
    beside = "" if m.reference_score is None else f"reference {m.reference_score}"
    return f"{m.score} of {m.questions}", beside


def _speed(a: Artefact) -> Said:
    return NOTHING if a.speed is None else (f"{a.speed:,.4g}" if a.speed < 1000 else f"{a.speed:,.0f}", "")


def _gates(a: Artefact) -> Said:
    m = a.measured
    if m is None:
        return "not gated", ""
    return m.verdict, ", ".join(m.failed)


def _what(a: Artefact) -> str:
    return a.what + (f" for {a.target}" if a.target else "")


COLUMNS: tuple[tuple[str, Callable[[Artefact], Said], bool], ...] = (
    ("artefact", lambda a: (a.name, _what(a)), False),
    ("gates", _gates, False),
    ("format", _format, False),
    ("size", lambda a: (human_bytes(a.size), ""), True),
    ("bits a weight", _bits, True),
    ("perplexity", _perplexity, True),
    ("over the reference's", _ratio, True),
    ("same token", _same, True),
    ("mean KL", _kl, True),
    ("questions", _task, True),
    ("tokens/s", _speed, True),
)


def text(comparison: Comparison) -> str:
    """A table for people, and what is to be said of it."""
    rows = [[head for head, _, _ in COLUMNS]]
    for a in comparison.artefacts:
        said = [value(a) for _, value, _ in COLUMNS]
        rows.append([main + (f" ({beside})" if beside else "") for main, beside in said])
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, (_, _, right) in zip(row, widths, COLUMNS, strict=True)
        ).rstrip()
        for row in rows
    ]
    lines += [f"note: {note}" for note in comparison.notes]
    lines += [f"doubt: {a.name}: {doubt}" for a in comparison.artefacts for doubt in a.doubts]
    if comparison.speed_on is not None:
        lines.append(f"tokens/s: measured on {comparison.speed_on}")
    return "\n".join(lines)


def _cell(head: str, said: Said, right: bool) -> str:
    main, beside = (escape(part) for part in said)
    if said[0] in (UNKNOWN, UNMEASURED, "not gated"):
        main = f'<span class="soft">{main}</span>'
    elif head == "gates":
        main = f'<span class="{"pass" if said[0] == "passed" else "fail"}">{main}</span>'
    elif head == "artefact":
        main = f"<b>{main}</b>"
    below = f'<div class="soft">{beside}</div>' if beside else ""
    return f'<td class="number">{main}{below}</td>' if right else f"<td>{main}{below}</td>"


def _table(artefacts: Sequence[Artefact]) -> str:
    head = "".join(
        f'<th class="number">{escape(name)}</th>' if right else f"<th>{escape(name)}</th>"
        for name, _, right in COLUMNS
    )
    rows = ("".join(_cell(name, value(a), right) for name, value, right in COLUMNS) for a in artefacts)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    table = f'<table class="wide"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll">{table}</div>'


def _plot(artefacts: Sequence[Artefact]) -> str:
    drawn = [(a, a.measured) for a in artefacts if a.measured is not None and a.measured.ratio is not None]
    left_out = [a.name for a in artefacts if a.name not in {b.name for b, _ in drawn}]
    head = "<h2>Size and perplexity</h2>"
    if not drawn:
        return f"{head}<p class='soft'>No artefact has a measured perplexity: gate them (enginix gate).</p>"
    unit, divisor = _unit(max(a.size for a, _ in drawn))
    points = []
    for a, m in drawn:
        assert m.ratio is not None
        low, high = (m.ratio if end is None else end for end in (m.low, m.high))
        points.append(svg.Point(a.name, a.size / divisor, m.ratio, low, high, not m.failed))
    chart = svg.scatter(
        "Size and perplexity", points, f"size on disk ({unit})", "perplexity over the reference's"
    )
    missing = f" Not drawn, for nothing was measured: {', '.join(left_out)}." if left_out else ""
    return (
        f"{head}{chart}<p class='soft'>Bars: 95% confidence intervals. 1 is the model before quantization; "
        f"lower and further left is better. Red: a gate failed.{escape(missing)}</p>"
    )


def _unit(size: int) -> tuple[str, int]:
    for name, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << power:
            return name, 1 << power
    return "B", 1


def _remarks(comparison: Comparison) -> str:
    rows = [f"<p>{escape(note)}</p>" for note in comparison.notes]
    rows += [
        f"<p class='fail'>{escape(a.name)}: {escape(doubt)}.</p>"
        for a in comparison.artefacts
        for doubt in a.doubts
    ]
    if not rows:
        return ""
    return f'<div class="verdict bad"><b>Read this first</b>{"".join(rows)}</div>'


def page(comparison: Comparison) -> str:
    """The table and the plot as one HTML file."""
    artefacts = comparison.artefacts
    origins = list(_origins(artefacts))
    about = f"{len(artefacts)} artefacts" + (f" of {origins[0]}" if len(origins) == 1 else "")
    speed = "" if comparison.speed_on is None else f" Tokens a second: measured on {comparison.speed_on}."
    legend = (
        "Bits a weight: on disk, scales included, over the whole model, and over the matrices of the layers. "
        "Perplexity, same token (as the reference's most likely) and mean KL (nats) are of the gates' text, "
        "the reference being the model before quantization; below the ratio its 95% interval. Greedy: share "
        "of the tokens of greedy answers, where an engine gives no distributions. "
        f"“{UNMEASURED}”: nobody did.{speed}"
    )
    parts = [
        STYLE,
        _remarks(comparison),
        _table(artefacts),
        f"<p class='soft'>{escape(legend)}</p>",
        _plot(artefacts),
    ]
    return html.page("enginix compare", "Comparison", about, parts)
