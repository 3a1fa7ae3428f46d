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
from family_golden import list_family_conversions
from modelopt_golden import FURTHER, ModeloptRow, list_modelopt_rows, root
from test_modelopt_golden import EFFECTIVE, EQUAL, is_wrong, judge_row, read_architecture

import golden
from enginix.kinds.registry.model_verdict import list_conversion_obstacles
from enginix.model.family_rows import list_family_rows
from enginix.model.number_formats import describe_remedy, read_algorithms
from enginix.reference.config import ARCHITECTURES
from enginix.report.kinds import ComparedModel, compare_kinds
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
        kind = row["layout"].get("qkv", {"kind": "latent"})["kind"]
        kind += ", transposed" if row["layout"].get("transposed") else ""
        data = ", ".join(row["golden"]) or "as its class"
        lines.append(f"| {name} | {row['engineClass']} | {kind} | {'; '.join(limits) or '–'} | {data} |")
    return "\n".join(lines)


_LIMITS = {
    "pipeline": "no stages",
    "vocabulary": "ranks divide the vocabulary",
    "kvReplication": "no more ranks than KV heads",
    "variants": "`--variant` where sizes do not tell",
}
# Format of the golden data → its name, and that of `enginix quantize`'s algorithm.
_MODELOPT_FORMATS = {
    "none": ("FP16, BF16", None),
    "fp8": ("FP8", "FP8"),
    "fp8kv": ("FP8 with FP8 KV", "FP8"),
    "int8sq": ("INT8 SmoothQuant", "W8A8_SQ_PER_CHANNEL"),
    "int4awq": ("INT4 AWQ", "W4A16_AWQ"),
}


def _count_equal(name: str) -> str:
    """Return how many of NVIDIA's conversions of an architecture are equal, by the golden tests."""
    if name not in list_family_rows():
        sound = [c for c in golden.conversions() if c.architecture == name and c.ok and not c.defect]
        return f"equal: {len(sound)} of {len(sound)}; quantized, too"
    patterns = list_family_rows()[name]["golden"]
    sound = [c for c in list_family_conversions() if any(fnmatchcase(c.case, p) for p in patterns)]
    sound = [c for c in sound if c.error is None and c.defect is None]
    if not sound:
        return "none of theirs is right" if patterns else "as its class"
    return f"equal: {len(sound)} of {len(sound)}"


def families() -> str:
    """Architecture and way: who makes a checkpoint of it."""
    table, exports = load_table("converters"), list_modelopt_rows()
    own = table["converters"]["enginix"]["architectures"]
    names = sorted({*own, *table["refused"]})
    lines = [
        "| architecture | `enginix` | gates | `modelopt` | ModelOpt beside TensorRT-LLM | its own |",
        "|---|---|---|---|---|---|",
    ]
    for name in names:
        row = table["converters"]["modelopt"]["architectures"].get(name)
        most = f", up to {row['maxTensorParallel']} ranks" if row and row["maxTensorParallel"] else ""
        done = {e.format for e in exports if e.architecture == name and _is_seen(e)}
        formats_ = "; ".join(text for key, (text, _) in _MODELOPT_FORMATS.items() if key in done)
        script = name in table["converters"]["tensorrt_llm"]["architectures"]
        script_text = "`tensorrt_llm`" if script else "an example script"
        cells = (
            name,
            f"{_count_equal(name)}{_list_quantized(name)}" if name in own else "no",
            "yes" if name in ARCHITECTURES else "no",
            f"unquantized{most}" if row else "no",
            formats_ or "none seen",
            table["refused"].get(name, script_text),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _is_seen(row: ModeloptRow) -> bool:
    """Return whether ModelOpt wrote it rightly, where TensorRT-LLM could be imported."""
    return row.case.startswith("modelopt-trt017-") and row.directory is not None and not is_wrong(row)


def _list_quantized(name: str) -> str:
    formats = list_family_rows().get(name, {}).get("formats", ())
    return f"; {', '.join(formats)}, too" if formats else ""


# ModelOpt's matrix of what its TensorRT-LLM export supports → architectures that conversion takes, golden
# cases of that family alone, and the formats that the matrix says no to.
_SUPPORT_MATRIX: list[tuple[str, tuple[str, ...], str, tuple[str, ...]]] = [
    ("GPT-2", ("GPT2LMHeadModel",), "*", ("int4awq",)),
    ("GPT-J", ("GPTJForCausalLM",), "*", ()),
    ("Llama 2", ("LlamaForCausalLM",), "*", ()),
    ("Llama 3", ("LlamaForCausalLM",), "*", ("int8sq",)),
    ("Mistral", ("MistralForCausalLM", "LlamaForCausalLM"), "*", ()),
    ("Mixtral 8x7B", ("MixtralForCausalLM",), "*", ("int8sq",)),
    ("Falcon 40B, 180B", ("FalconForCausalLM",), "*falcon40b*", ()),
    ("Falcon 7B", ("FalconForCausalLM",), "*falcon7b*", ("int4awq",)),
    ("MPT 7B, 30B", ("MptForCausalLM", "MPTForCausalLM"), "*", ()),
    ("Baichuan 1, 2", ("BaichuanForCausalLM",), "*", ()),
    ("ChatGLM 2, 3", ("ChatGLMModel",), "*", ("fp8", "int8sq")),
    ("Bloom", ("BloomForCausalLM",), "*", ()),
    ("Phi 1, 2", ("PhiForCausalLM",), "*", ()),
    ("Phi 3", ("Phi3ForCausalLM",), "*", ()),
    ("Nemotron 8", ("NemotronForCausalLM",), "*", ("int8sq",)),
    ("Gemma 2B, 7B", ("GemmaForCausalLM",), "*", ("int8sq",)),
    ("RecurrentGemma", ("RecurrentGemmaForCausalLM",), "*", ()),
    ("StarCoder 2", ("Starcoder2ForCausalLM",), "*", ()),
    ("Qwen 1", ("QWenLMHeadModel",), "*", ()),
    ("Qwen 1.5", ("Qwen2ForCausalLM",), "*", ()),
]


def matrix() -> str:
    """Family and format of ModelOpt's own list: who writes it, for which kinds, and by what that is known."""
    cells: dict[tuple[str, str, str, str], list[str]] = {}
    for family, architectures_, cases_, unlisted in _SUPPORT_MATRIX:
        for key, (text, algorithm) in _MODELOPT_FORMATS.items():
            who, source = _find_writer(architectures_, key, algorithm, cases_)
            if key in unlisted and "enginix" in who:
                source += "; not in ModelOpt's list"
            kinds = _NO_KINDS.get(who) or ", ".join(_list_kinds(architectures_[0], algorithm))
            if who == _NO_TOOL and architectures_[0] not in load_table("pytorch_backend")["architectures"]:
                kinds = "none"
            assert who and kinds and source, (family, key)
            cells.setdefault((family, who, kinds, source), []).append(text)
    lines = ["| family | formats | who | kinds | source |", "|---|---|---|---|---|"]
    lines += [f"| {f} | {'; '.join(texts)} | {w} | {k} | {s} |" for (f, w, k, s), texts in cells.items()]
    return "\n".join(lines)


_BY_HAND, _NO_TOOL = "ModelOpt before 0.49 beside TensorRT-LLM, by hand", "no tool"
_NO_KINDS = {_BY_HAND: "tensorrt, as it is", _NO_TOOL: "llmapi at most"}


def _list_kinds(architecture: str, algorithm: str | None) -> list[str]:
    model = ComparedModel("model", architecture, algorithm, None, 1)
    return [row.kind for row in compare_kinds(model) if row.takes]


def _find_writer(
    architectures_: tuple[str, ...], key: str, algorithm: str | None, cases_: str
) -> tuple[str, str]:
    """Return who writes a checkpoint of a family in a format, and the source of that."""
    name = architectures_[0]
    rows = [
        r
        for r in list_modelopt_rows()
        if r.architecture in architectures_ and r.format == key and fnmatchcase(r.case, cases_)
    ]
    if key == "fp8kv" and not rows:
        return _find_writer(architectures_, "fp8", algorithm, cases_)
    if not list_conversion_obstacles(name, algorithm, None, ["enginix"]):
        if key == "none":
            counts = (_count_equal(a).split(";")[0] for a in architectures_)
            return "`enginix`", f"NVIDIA's own conversions, {next(c for c in counts if 'equal' in c)}"
        return "`enginix quantize`, `enginix`", _find_evidence(rows, name, key)
    seen = [r for r in rows if _is_seen(r)]
    if seen:
        why = next((r.no_unified for r in rows if r.no_unified), None)
        return _BY_HAND, f"{seen[0].case.removesuffix('-awq')}" + (
            f"; unified export: {_shorten(why)}" if why else ""
        )
    if refused := [r for r in rows if r.error]:
        return _NO_TOOL, f"{refused[-1].case}: {_shorten(str(refused[-1].error))}"
    assert name in HUB_CODE, (name, key)
    return _NO_TOOL, "its code lies on the Hub and is never run here, so ModelOpt cannot load it"


def _shorten(text: str) -> str:
    """Return the first sentence of a refusal, names of tensors left out."""
    if "not quantized" in text or "kv_cache_quant_algo is None" in text:
        return "leaves the matrices unquantized"
    return text.split(". ")[0]


HUB_CODE = ("BaichuanForCausalLM", "ChatGLMModel", "QWenLMHeadModel")
_QUANTIZED_LAYOUTS = "tests/python/checkpoint/test_quantized.py"


def _find_evidence(rows: list[ModeloptRow], name: str, key: str) -> str:
    """Return the case that holds a quantized conversion, the strictest first."""
    verdicts = {(judge_row(r)[0], r.case) for r in rows if r.directory is not None}
    for verdict in (EQUAL, EFFECTIVE):
        if found := sorted(case for v, case in verdicts if v == verdict):
            return f"{found[0]}: {verdict}"
    if own := [case for case, f in FURTHER if f == key and read_architecture(root() / case / "hf") == name]:
        return f"{own[0]}: held to the model before quantization"
    if key == "int4awq" and name in ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"):
        return "tests/python/checkpoint/test_modelopt.py: equal by effective weights"
    return f"{_QUANTIZED_LAYOUTS}: its layout, by a model of random codes"


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
    "reference/models.md": {"arrangements": arrangements, "families": families, "matrix": matrix},
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
