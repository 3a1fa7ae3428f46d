"""The generated parts of the pages on checkpoints: what theirs and ours make of every golden case.

  cd python && python ../tests/python/checkpoint/golden_table.py     # rewrites them

test_docs.py fails when they are stale.
"""

from __future__ import annotations

import re
import sys
import tempfile
from fnmatch import fnmatchcase
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[3] / "python")]

from compare import INTENDED, config_differences, ours, tensor_differences
from family_golden import list_family_conversions, list_modelopt_exports
from test_golden_families import REFUSED

import golden
from enginix.model.family_rows import list_family_rows
from enginix.model.number_formats import describe_remedy, read_algorithms
from enginix.reference.config import ARCHITECTURES
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


def arrangements() -> str:
    """One row an architecture of family_rows.json."""
    lines = [
        "| architecture | TensorRT-LLM class | q, k, v | limits | golden data |",
        "|---|---|---|---|---|",
    ]
    for name, row in sorted(list_family_rows().items()):
        limits = [text for key, text in _LIMITS.items() if key in row]
        kind = row["layout"]["qkv"]["kind"] + (", transposed" if row["layout"].get("transposed") else "")
        data = ", ".join(row["golden"]) or "as its class"
        lines.append(f"| {name} | {row['engineClass']} | {kind} | {'; '.join(limits) or '–'} | {data} |")
    return "\n".join(lines)


_LIMITS = {
    "pipeline": "no stages",
    "vocabulary": "ranks divide the vocabulary",
    "kvReplication": "no more ranks than KV heads",
    "variants": "`--variant` where sizes do not tell",
}
_MODELOPT_FORMATS = {
    "none": "none",
    "fp8": "FP8",
    "fp8kv": "FP8 with FP8 KV",
    "int8sq": "INT8 SmoothQuant",
    "int4awq": "INT4 AWQ",
}


def _count_equal(name: str) -> str:
    """Return how many of NVIDIA's conversions of an architecture are equal, by the golden tests."""
    if name not in list_family_rows():
        sound = [c for c in golden.conversions() if c.architecture == name and c.ok and not c.defect]
        return f"equal: {len(sound)} of {len(sound)}; quantized, too"
    patterns = list_family_rows()[name]["golden"]
    sound = [c for c in list_family_conversions() if any(fnmatchcase(c.case, p) for p in patterns)]
    sound = [c for c in sound if c.error is None and c.defect is None]
    equal = [c for c in sound if c.case not in REFUSED]
    if not sound:
        return "none of theirs is right" if patterns else "as its class"
    return f"equal: {len(equal)} of {len(sound)}"


def families() -> str:
    """Family, format and way: who makes a checkpoint of it."""
    table, exports = load_table("converters"), list_modelopt_exports()
    own = table["converters"]["enginix"]["architectures"]
    names = sorted({*own, *table["refused"]})
    lines = [
        "| architecture | `enginix` | gates | `modelopt` | ModelOpt beside TensorRT-LLM | its own |",
        "|---|---|---|---|---|---|",
    ]
    for name in names:
        native = f"{_count_equal(name)}" if name in own else "no"
        row = table["converters"]["modelopt"]["architectures"].get(name)
        most = f", up to {row['maxTensorParallel']} ranks" if row and row["maxTensorParallel"] else ""
        done = {
            e["format"]
            for e in exports
            if (e["architecture"], e["setting"]) == (name, "trt017") and e["right"]
        }
        formats_ = ", ".join(text for key, text in _MODELOPT_FORMATS.items() if key in done)
        script = name in table["converters"]["tensorrt_llm"]["architectures"]
        script_text = "`tensorrt_llm`" if script else "an example script"
        cells = (
            name,
            native,
            "yes" if name in ARCHITECTURES else "no",
            f"unquantized{most}" if row else "no",
            formats_ or "none seen",
            table["refused"].get(name, script_text),
        )
        lines.append(f"| {' | '.join(cells)} |")
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
    "reference/models.md": {"arrangements": arrangements, "families": families},
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
