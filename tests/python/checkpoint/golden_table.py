"""The generated parts of the pages on checkpoints: what theirs and ours make of every golden case.

  cd python && python ../tests/python/checkpoint/golden_table.py     # rewrites them

test_docs.py fails when they are stale.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[3] / "python")]

from compare import INTENDED, config_differences, ours, tensor_differences

import golden
from enginix.model.number_formats import describe_remedy, read_algorithms
from enginix.tables import load_table

DOCS = Path(__file__).resolve().parents[3] / "docs"


def _theirs(case: golden.Conversion) -> str:
    if not case.ok:
        return f"raises {case.error.split(':')[0] if case.error else ''}"
    return f"wrong: {_short(case.defect)}" if case.defect else "written"


def _short(text: str) -> str:
    first = re.split(r"; |: no | \(log", text)[0]
    return first if len(first) < 150 else first[:150].rsplit(" ", 1)[0] + " …"


def _ours(case: golden.Conversion, out: Path) -> str:
    result = ours(case, out)
    if result.refusal is not None:
        return f"refuses: {result.refusal.what}"
    assert result.plan is not None
    if not case.ok or case.defect:
        algorithm = result.plan.config["quantization"]["quant_algo"] or ""
        modelopt = result.plan.nvfp4_form == "modelopt" or "AWQ" in algorithm or "SQ" in algorithm
        return "written in ModelOpt's form" if modelopt else "written"
    assert tensor_differences(case, out) == [], case.id
    keys = config_differences(case, out)
    return "the same" + (f", but for {', '.join(k.split('.')[-1] for k in keys)}" if keys else "")


def cases() -> str:
    """One row a conversion; equal neighbours of a case are joined."""
    rows: list[tuple[str, list[str], str, str]] = []
    with tempfile.TemporaryDirectory() as name:
        for number, case in enumerate(golden.conversions()):
            label = case.label.removeprefix("trtllm-")
            theirs, mine = _theirs(case), _ours(case, Path(name) / str(number))
            mine = mine.replace(str(golden.root()), "").replace("|", "/")
            if rows and (rows[-1][0], rows[-1][2], rows[-1][3]) == (case.case, theirs, mine):
                rows[-1][1].append(label)
            else:
                rows.append((case.case, [label], theirs, mine))
    lines = ["| case | conversions | theirs | ours |", "|---|---|---|---|"]
    return "\n".join(lines + [f"| {c} | {', '.join(ls)} | {t} | {o} |" for c, ls, t, o in rows])


def differences() -> str:
    lines = ["| key | in | why |", "|---|---|---|"]
    return "\n".join(
        lines + [f"| `{r['key']}` | {r['only'].replace('*', '…')} | {r['reason']} |" for r in INTENDED]
    )


def architectures() -> str:
    lines = ["| architecture | TensorRT-LLM class | attention | MLP | source |", "|---|---|---|---|---|"]
    rows = load_table("architectures")["architectures"]
    lines += [
        f"| {name} | {r['engineClass']} | {r['attention']} | {r['mlp']} | {r['source']} |"
        for name, r in sorted(rows.items())
    ]
    return "\n".join(lines)


def formats() -> str:
    lines = ["| algorithm | converted | minimum SM | otherwise |", "|---|---|---|---|"]
    for name, r in read_algorithms().items():
        note = r["note"] or ("dense models only" if r["experts"] is False else "")
        said = note if r["convert"] else f"{r['why']}; {describe_remedy(r)}"
        lines.append(f"| {name} | {'yes' if r['convert'] else 'refused'} | {r['minSm'] or '–'} | {said} |")
    return "\n".join(lines)


# Page below docs/ → its generated parts.
PAGES = {
    "reference/checkpoints.md": {"architectures": architectures, "formats": formats},
    "explanation/conversion.md": {"differences": differences, "cases": cases},
}


def render(page: str, text: str) -> str:
    """Return ``text`` of a page of PAGES with its parts made again."""
    for name, make in PAGES[page].items():
        begin, end = f"<!-- {name}: generated -->", f"<!-- {name}: end -->"
        head, rest = text.split(begin)
        text = f"{head}{begin}\n{make()}\n{end}{rest.split(end)[1]}"
    return text


if __name__ == "__main__":
    for page in PAGES:
        path = DOCS / page
        path.write_text(render(page, path.read_text("utf-8")), "utf-8")
