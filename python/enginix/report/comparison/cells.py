"""The columns of a comparison and the texts of their cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from enginix.console import format_bytes
from enginix.report.artefacts import Artefact
from enginix.report.gate_figures import GateFigures
from enginix.run_log import ArtefactRun

UNKNOWN = "not known"
UNMEASURED = "not measured"
UNGATED = "not gated"
REFERENCE = "the reference"  # in place of a verdict
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


def _show_perplexity(m: GateFigures) -> CellText:
    return NOTHING if m.perplexity is None else (f"{m.perplexity:.4g}", "")


def _show_ratio(m: GateFigures) -> CellText:
    if m.ratio is None:
        return NOTHING
    ends = f"{m.low:.4g} to {m.high:.4g}" if m.low is not None and m.high is not None else ""
    return f"× {m.ratio:.4g}", ends


def _show_same_token(m: GateFigures) -> CellText:
    if m.same is None and m.greedy is None:
        return NOTHING
    greedy = "" if m.greedy is None else f"greedy {m.greedy:.1%}"
    return (greedy, "") if m.same is None else (f"{m.same:.1%}", greedy)


def _show_kl(m: GateFigures) -> CellText:
    if m.kl is None:
        return NOTHING
    return ("< 1e-6" if m.kl < 1e-6 else f"{m.kl:.2g}"), ""


def _show_task(m: GateFigures) -> CellText:
    if m.score is None or m.questions is None:
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


def _show_measured(
    show: Callable[[GateFigures], CellText], otherwise: CellText = NOTHING
) -> Callable[[Artefact], CellText]:
    """Return what shows figures of the gates; of an artefact without any, ``otherwise``."""
    return lambda a: otherwise if a.measured is None else show(a.measured)


def _show_artefact(a: Artefact) -> str:
    # Artefacts of one name are told apart by what they are, in their name.
    what = "" if f", {a.what}" in a.name else a.what
    return f"{what} for {a.target}".strip() if a.target else what


COLUMNS: tuple[tuple[str, Callable[[Artefact], CellText], bool], ...] = (
    ("artefact", lambda a: (a.name, _show_artefact(a)), False),
    ("gates", _show_measured(lambda m: (m.verdict, ", ".join(m.failed)), (UNGATED, "")), False),
    ("format", _show_format, False),
    ("size", lambda a: (format_bytes(a.size), ""), True),
    ("bits a weight", _show_bits, True),
    ("perplexity", _show_measured(_show_perplexity), True),
    ("over the reference's", _show_measured(_show_ratio), True),
    ("same token", _show_measured(_show_same_token), True),
    ("mean KL", _show_measured(_show_kl), True),
    ("questions", _show_measured(_show_task), True),
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
