"""The tables of the gates' pages: what every healthy number format and every damage does on tiny-qwen3.

make gates-table                                         # prints them
python tests/python/gates/gates_table.py --write         # and puts them into the pages
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
FORGETS = "an engine that is Amnesic (stand-in)"
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "tests")]

import torch  # noqa: E402

from checkpoint_judge import ENDS, Judge  # noqa: E402
from enginix.checkpoint.convert import ConvertOptions, convert_model  # noqa: E402
from enginix.errors import GateError  # noqa: E402
from enginix.evaluation.judgement import suite  # noqa: E402
from enginix.evaluation.judgement.outcome import GateOutcome  # noqa: E402
from enginix.evaluation.reference_answers import answers, hf, material  # noqa: E402
from enginix.evaluation.reference_answers.subject import TransformersSubject  # noqa: E402

MODEL = ROOT / "tests/models/tiny-qwen3"
REFERENCE, MEASUREMENTS = ROOT / "docs/reference/gates.md", ROOT / "docs/explanation/measurements.md"
BEGIN, END = "<!-- tables: make gates-table -->", "<!-- end of tables -->"
BOUNDS_BEGIN, BOUNDS_END = "<!-- bounds: make gates-table -->", "<!-- end of bounds -->"
FAMILIES_BEGIN, FAMILIES_END = "<!-- families: make gates-table -->", "<!-- end of families -->"
CONTEXT_BEGIN, CONTEXT_END = "<!-- context: make gates-table -->", "<!-- end of context -->"


def _tests(name: str = "test_quality") -> Any:
    """A test module: its damage and its engines are what is shown."""
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _row(what: str, found: dict[str, GateOutcome]) -> str:
    agreement, perplexity, task = (found[g].detail for g in ("agreement", "perplexity", "task"))
    failed = [name for name, outcome in found.items() if not outcome.passed]
    cells = [what]
    if "top1Found" in agreement and "ratioFound" in perplexity and "score" in task:
        low, high = perplexity["interval"]
        cells += [
            f"{agreement['top1Found']:.1%}",
            f"{agreement['klFound']:.2g}",
            f"{perplexity['ratioFound']:.4g} ({low:.4g} to {high:.4g})",
            f"{task['score']} / {task['referenceScore']}",
        ]
    else:
        cells += ["", "", "", ""]
    return "| " + " | ".join([*cells, ", ".join(failed) or "none"]) + " |"


HEAD = [
    "| {} | same token | mean KL | perplexity ratio (95%) | questions | gates that fail |",
    "|---|---|---|---|---|---|",
]


def tables() -> str:
    """Both, in Markdown."""
    tests = _tests()
    torch.set_num_threads(1)
    tokenizer = hf.TransformersTokenizer(MODEL)
    asked = material.load_material(tokenizer, 2048, 2048)
    judge = Judge(
        tokenizer, asked, answers.ask_reference(TransformersSubject(MODEL), asked, ENDS, {}, tokenizer)
    )
    with tempfile.TemporaryDirectory() as work:
        plain = Path(work) / "plain"
        convert_model(MODEL, plain, ConvertOptions())
        healthy, broken = [HEAD[0].format("healthy"), HEAD[1]], [HEAD[0].format("broken"), HEAD[1]]
        healthy.append(_row("bfloat16", judge(plain)))
        made = {}
        for name in tests.FORMATS:
            (Path(work) / name).mkdir()
            made[name] = tests.quantize(MODEL, name, Path(work) / name)
            healthy.append(_row(name, judge(made[name])))
        for number, (name, change) in enumerate(tests.DAMAGE.items()):
            out = tests.damaged(made["FP8"], Path(work) / f"damage{number}", change)
            broken.append(_row(f"FP8, {name}", judge(out)))
        loud = tests.make_loud(MODEL, Path(work) / "loud")
        convert_model(loud, Path(work) / "one", ConvertOptions(kv_cache="FP8"))
        broken.append(_row("FP8 KV scales of 1.0, keys × 256", judge(Path(work) / "one")))
        for kind, expected in _tests("test_misbehaving_engines").MISBEHAVIOUR:
            found = judge(plain, wrap=kind)
            assert all(not found[gate].passed for gate in expected)
            broken.append(_row(f"an engine that is {kind.__name__} (stand-in)", found))
        swapped = tests.swap_tokenizer(MODEL, Path(work) / "swapped")
        broken.append(
            _row(
                "tokenizer with 100 pieces exchanged",
                judge(plain, tokenizer=hf.TransformersTokenizer(swapped)),
            )
        )
        spared = tests.spare_a_layer(made["FP8"], Path(work) / "spared")
        broken.append(_row("FP8, one matrix silently unquantized", judge(spared)))
        try:
            TransformersSubject(Path(work) / "nowhere")
        except GateError as e:
            broken.append(f"| a reference that is missing | | | | | all: {e.what.split(':')[0]} |")
    assert all(row.endswith("| none |") for row in healthy[2:]), healthy
    assert not any(row.endswith("| none |") for row in broken[2:]), broken
    assert "a reference that is missing" in broken[-1], broken
    return "\n".join([*healthy, "", *broken])


def families() -> str:
    """What the gates find of further families, sound and with an error of NVIDIA's converter, in Markdown."""
    tests = _tests("test_family_gates")
    torch.set_num_threads(1)
    lines = [
        "| architecture | checkpoint | same token | mean KL | perplexity ratio | gates that fail |",
        "|---|---|---|---|---|---|",
    ]
    for case in tests.CASES:
        with tempfile.TemporaryDirectory() as work:
            judge = tests.FamilyJudge(case, MODEL, Path(work))
            sound = judge.convert_soundly()
            broken = judge.convert_wrongly(sound)
            for what, checkpoint in (("sound", sound), (case.error, broken)):
                found = judge(checkpoint)
                failed = [name for name, outcome in found.items() if not outcome.passed]
                assert bool(failed) == (checkpoint == broken), (case.name, what, failed)
                agreement, perplexity = (found[gate].detail for gate in ("agreement", "perplexity"))
                cells = [case.name, what, f"{agreement['top1Found']:.1%}", f"{agreement['klFound']:.2g}"]
                cells += [f"{perplexity['ratioFound']:.4g}", ", ".join(failed) or "none"]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def bounds() -> str:
    """The default bounds by format, in Markdown."""
    rows = []
    for name, row in suite.load_table("gates")["formats"].items():
        of = row["bounds"]
        rows.append(
            f"| {name} | {of['agreement']['top1']:.0%} | {of['agreement']['kl']:g} "
            f"| {of['perplexity']['ratio']:g} | {of['context']['share']:.0%} | {row['reason']} |"
        )
    return "\n".join(
        [
            "| format | same token | mean KL | ratio | planted facts | reason |",
            "|---|---|---|---|---|---|",
            *rows,
        ]
    )


def context() -> str:
    """What the gate context finds of tiny-recall, in Markdown."""
    tests = _tests("test_context")
    torch.set_num_threads(1)
    rows = [
        "| tiny-recall | facts found | of | the reference | lost, won | asked | verdict |",
        "|---|---|---|---|---|---|---|",
    ]

    wrong = []

    def add(what: str, outcome: GateOutcome, expected: bool) -> None:
        found = outcome.detail
        verdict = "passed" if outcome.passed else "rejected"
        if outcome.passed != expected or not (expected or tests.far_below_every_bound(outcome)):
            wrong.append(f"{what}: {outcome.summary}")
        asked = math.ceil(found["share"] * found["referenceScore"])
        cells = [what, found["score"], found["questions"], found["referenceScore"]]
        cells += [f"{found['lost']}, {found['won']}", asked, verdict]
        rows.append("| " + " | ".join(map(str, cells)) + " |")

    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        model = tests.make_recalling(MODEL, work / "tiny-recall")
        judge, sound = tests.Judge(model), work / "sound"
        convert_model(model, sound, ConvertOptions())
        add("bfloat16", judge(sound), True)
        made = {}
        for name in tests.FORMATS:
            (work / name).mkdir()
            made[name] = tests.quantize(model, name, work / name)
            add(name, judge(made[name]), True)
        for number, (name, make) in enumerate(tests.BROKEN.items()):
            add(name, judge(make(sound, model, work / f"broken{number}/out")), False)
        add(FORGETS, judge(sound, tests.Amnesic), False)
        for name, checkpoint in made.items():
            shuffled = tests.damaged(checkpoint, work / f"{name}/shuffled", tests.shuffle)
            add(f"{name}, one layer's keys, queries and values shuffled", judge(shuffled), False)
            add(f"{name}, {FORGETS}", judge(checkpoint, tests.Amnesic), False)
    sys.stdout.write("\n".join(rows) + "\n\n" if wrong else "")
    assert not wrong, wrong
    return "\n".join(rows)


def _put(page: str, begin: str, end: str, text: str) -> str:
    before, rest = page.split(begin)
    return f"{before}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put them into their pages below docs")
    parser.add_argument("--context", action="store_true", help="that gate's table and the bounds alone")
    parser.add_argument("--families", action="store_true", help="the table of further families alone")
    args = parser.parse_args()
    made = []
    if not args.context:
        made.append((MEASUREMENTS, FAMILIES_BEGIN, FAMILIES_END, families()))
    if not args.families:
        made.append((MEASUREMENTS, CONTEXT_BEGIN, CONTEXT_END, context()))
        made.append((REFERENCE, BOUNDS_BEGIN, BOUNDS_END, bounds()))
    if not args.context and not args.families:
        made.append((MEASUREMENTS, BEGIN, END, tables()))
    for page, begin, end, text in made:
        sys.stdout.write(text + "\n\n")
        if args.write:
            page.write_text(_put(page.read_text("utf-8"), begin, end, text), "utf-8")


if __name__ == "__main__":
    main()
