#!/usr/bin/env python3
"""Asks vLLM the questions of kind llmapi's gates and judges its answers: a table; status 1 if one is wrong.

    tests/gpu/wheels.sh --vllm                     # where there is a network; unpack the parts into SITE
    python3 tests/gpu/vllm_questions.py --site SITE [--json FILE] [--only CASE ...] [--jobs N]
    python3 tests/gpu/vllm_questions.py --standin    # without a GPU: control flow alone

The way is that of an engine of kind llmapi: ``enginix build --kind llmapi``, the asker of Nix builds, the
judge. tests/gpu/vllm_adapter stands in the runtime's place. Models are tiny-qwen3 and the same in
Qwen3-0.6B's shape, in bfloat16 and in ModelOpt's FP8. Healthy engines must pass, broken ones must fail; ties,
margins and divergences are listed, from which bounds are set.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT / "python")]

import torch  # noqa: E402
from embedded_model import build_embedded_model  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from enginix.cli import main as run_enginix  # noqa: E402
from enginix.evaluation.engine_judgement import answer_metrics, answer_record, judge_answers  # noqa: E402
from enginix.evaluation.engine_protocol import engine_questions  # noqa: E402
from enginix.evaluation.reference_answers import answers as kept_answers  # noqa: E402
from enginix.evaluation.reference_answers import question_builder, reference_asker  # noqa: E402

TINY = ROOT / "tests/models/tiny-qwen3"
RUNTIME = "trtllm-1.1.0"
PASSES, FAILS, MEASURED = "passes", "fails", "measured"
ASK = "import sys; from enginix.kinds.asking.asker_main import main; sys.exit(main(sys.argv[1:]))"
FIGURES = {
    "greedy": ("top1Found",),
    "agreement": ("top1Found", "klFound"),
    "perplexity": ("ratioFound", "upper"),
    "task": ("score",),
    "invariance": ("ties",),
}
Damage = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """An engine to ask: a model with or without damage, and the verdict that it must get."""

    name: str
    model: str
    verdict: str
    damage: Damage | None = None
    fault: str = ""


def change_json(path: Path, changes: dict[str, Any]) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}, indent=2), "utf-8")


def set_rotary_base(base: float) -> Damage:
    def damage(model: Path) -> None:
        parameters = {"rope_type": "default", "rope_theta": base}
        change_json(model / "config.json", {"rope_theta": base, "rope_parameters": parameters})

    return damage


def set_end_token(model: Path) -> None:
    """Name a word of the vocabulary as the end token, in both files."""
    for name in ("config.json", "generation_config.json"):
        change_json(model / name, {"eos_token_id": 300})


def exchange_pieces(model: Path) -> None:
    """Exchange 100 pairs of pieces of the tokenizer."""
    path = model / "tokenizer.json"
    raw = json.loads(path.read_text("utf-8"))
    vocabulary = raw["model"]["vocab"]
    by_id = sorted(vocabulary, key=vocabulary.get)[400:600]
    for one, other in zip(by_id[::2], by_id[1::2], strict=True):
        vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    path.write_text(json.dumps(raw, ensure_ascii=False), "utf-8")


def scale_tensors(ending: str, factor: float, only: str = "") -> Damage:
    """Multiply scales whose names end so."""

    def damage(model: Path) -> None:
        count = 0
        for path in model.glob("*.safetensors"):
            tensors = load_file(path)
            for name in tensors:
                if name.endswith(ending) and only in name:
                    tensors[name], count = tensors[name] * factor, count + 1
            path.unlink()
            save_file(tensors, path, {"format": "pt"})
        if not count:
            raise ValueError(f"no tensor *{only}*{ending}")

    return damage


CASES = (
    Case("bfloat16", "tiny", PASSES),
    Case("bfloat16, rotary base × 10", "tiny", FAILS, set_rotary_base(1e5)),
    Case("bfloat16, rotary base × 0.5", "tiny", MEASURED, set_rotary_base(5e3)),
    Case("bfloat16, another end token", "tiny", FAILS, set_end_token),
    Case("bfloat16, end tokens are ignored", "tiny", FAILS, fault="never-stops"),
    Case("bfloat16, 100 pairs of pieces exchanged", "tiny", FAILS, exchange_pieces),
    Case("FP8", "tiny-fp8", PASSES),
    Case("FP8, one weight scale × 8", "tiny-fp8", FAILS,
         scale_tensors("weight_scale", 8.0, "layers.1.mlp.down_proj")),
    Case("FP8, activation scales ÷ 8", "tiny-fp8", FAILS, scale_tensors("input_scale", 1 / 8)),
    Case("FP8, rotary base × 10", "tiny-fp8", FAILS, set_rotary_base(1e5)),
    Case("0.6B shape, bfloat16", "wide", PASSES),
    Case("0.6B shape, bfloat16, rotary base × 10", "wide", FAILS, set_rotary_base(1e5)),
    Case("0.6B shape, bfloat16, another end token", "wide", FAILS, set_end_token),
    Case("0.6B shape, FP8", "wide-fp8", PASSES),
    Case("0.6B shape, FP8, one weight scale × 8", "wide-fp8", FAILS,
         scale_tensors("weight_scale", 8.0, "layers.7.mlp.down_proj")),
)  # fmt: skip


def quantize_model(model: Path, out: Path) -> Path:
    """Quantize to FP8 by ModelOpt on the CPU, calibrated on the licence."""
    from transformers import AutoTokenizer

    from enginix.quantize import ptq
    from enginix.quantize.formats import resolve_format

    text = (ROOT / "LICENSE").read_text("utf-8")
    ids = AutoTokenizer.from_pretrained(model)(text, add_special_tokens=False).input_ids
    length = 256
    rows = [ids[at : at + length] for at in range(0, len(ids) - length + 1, length)][:16]
    import numpy as np

    data = ptq.split_batches(np.asarray(rows, dtype=np.int32), 8, "cpu")
    quantized = ptq.insert_quantizers(ptq.load_model(model, "cpu"), resolve_format("fp8"), data)
    ptq.export_checkpoint(quantized, out)
    for path in model.iterdir():
        if path.suffix != ".safetensors" and not (out / path.name).exists():
            shutil.copyfile(path, out / path.name)
    return out


class Workshop:
    """Directories of one run."""

    def __init__(self, work: Path, args: argparse.Namespace) -> None:
        self.work, self.device = work, "cpu" if args.standin else "cuda"
        self.site, self.layers, self.fp8, self.driver = args.site, args.layers, args.fp8, args.driver
        self.models: dict[str, Path] = {}
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def time_step(self, what: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[what] = round(time.perf_counter() - started, 1)
        sys.stderr.write(f"{what}: {self.seconds[what]} s\n")

    def quantize_apart(self, name: str) -> None:
        """Quantize in a process of its own, so that its memory and time are bounded."""
        if self.fp8 is not None and name == "tiny-fp8":
            self.models[name] = self.fp8
            return
        words = [sys.executable, str(HERE / "vllm_questions.py"), "--quantize"]
        words += [str(self.models[name.removesuffix("-fp8")]), str(self.work / name)]
        site = ["--site", str(self.site)] if self.site else ["--standin"]
        try:
            with self.time_step(f"{name} by ModelOpt"):
                subprocess.run([*words, *site], timeout=150, check=True, stdout=subprocess.DEVNULL)
            self.models[name] = self.work / name
        except (subprocess.SubprocessError, OSError):
            traceback.print_exc()

    def make_models(self, names: set[str]) -> None:
        """Make the models that cases need, and ask their references; what ModelOpt cannot make is absent."""
        self.models["tiny"] = TINY
        if names & {"wide", "wide-fp8"}:
            with self.time_step("model of 0.6B shape"):
                self.models["wide"] = build_embedded_model(TINY, self.work / "wide", self.layers)
        plain = sorted({name.removesuffix("-fp8") for name in names})
        with ThreadPoolExecutor(2) as pool:
            quantized = pool.map(self.quantize_apart, sorted(names & {"tiny-fp8", "wide-fp8"}))
            for name in plain:
                self.keep_reference(name)
            list(quantized)

    def keep_reference(self, plain: str) -> None:
        """Ask transformers on the device, and write the questions."""
        directory = self.work / f"reference-{plain}"
        directory.mkdir()
        with self.time_step(f"reference answers of {plain}"):
            reference_asker.keep_reference_answers(self.models[plain], directory, self.device)
        asked = self.work / f"asked-{plain}"
        asked.mkdir()
        engine_questions.write_engine_questions(
            question_builder.build_engine_questions(self.models[plain]), asked
        )

    def write_python(self, at: Path, fault: str, *, eager: bool) -> Path:
        """Write the python3 of the runtime: this one, with the adapter and vLLM."""
        (at / "bin").mkdir(parents=True, exist_ok=True)
        vllm = self.site or HERE / "vllm_standin"
        paths = [HERE / "vllm_adapter", vllm, *([ROOT / "python"] if self.site is None else [])]
        exports = {
            "PYTHONPATH": ":".join(map(str, paths)),
            "VLLM_ADAPTER_FAULT": fault,
            "VLLM_ADAPTER_EAGER": "1" if eager else "0",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "WARNING",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "4" if self.site else "1",
            # The pack leaves FlashInfer out.
            "VLLM_USE_FLASHINFER_SAMPLER": "0",
            "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", ""),
        }
        # What the loader of CUDA needs stays, what the sandbox sets comes first.
        words = " ".join(f"{k}='{v}'" for k, v in exports.items() if k != "LD_LIBRARY_PATH")
        more = f'LD_LIBRARY_PATH="$LD_LIBRARY_PATH:{exports["LD_LIBRARY_PATH"]}"'
        script = at / "bin/python3"
        script.write_text(f'#!/bin/sh\n{words} {more} exec {sys.executable} "$@"\n')
        script.chmod(0o755)
        return at / "bin"

    def ask_case(self, number: int, case: Case, limit: int) -> Path:
        """Build the engine of a case, and ask it by the program of Nix builds; return its directory."""
        at = self.work / f"case-{number}"
        at.mkdir()
        source = self.models[case.model]
        if case.damage is not None:
            source = Path(shutil.copytree(source, at / "model"))
            case.damage(source)
        status = run_enginix(
            ["build", "--kind", "llmapi", "--model", str(source), "--runtime", RUNTIME, "--quiet",
             "-o", str(at / "engine")]
        )  # fmt: skip
        if status:
            raise RuntimeError(f"enginix build ended with {status}")
        # Healthy ones as users run them, compiled and by CUDA graphs; broken ones start faster without.
        said = self.ask_engine(case, at, limit, eager=case.verdict != PASSES)
        if said and case.verdict == PASSES:
            sys.stderr.write(f"{case.name}: again without graphs, after: {said}\n")
            self.seconds[f"without graphs: {case.name}"] = 1
            said = self.ask_engine(case, at, limit, eager=True)
        if said:
            raise RuntimeError(said)
        return at

    def ask_engine(self, case: Case, at: Path, limit: int, *, eager: bool) -> str:
        """Run the program of Nix builds; return what went wrong, or nothing."""
        python = self.write_python(at, case.fault, eager=eager)
        environment = {
            **os.environ,
            "PATH": f"{python}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT / "python"),
            "TMPDIR": "/tmp",
        }
        plain = case.model.removesuffix("-fp8")
        words = ["answers", "--engine", at / "engine", "--asked", self.work / f"asked-{plain}",
                 "--out", at / "said", "--accept-driver", "--stall-minutes", "3",
                 *(["--driver", self.driver] if self.driver else [])]  # fmt: skip
        started = time.perf_counter()
        try:
            with (at / "log").open("w") as log:
                done = subprocess.run(
                    [sys.executable, "-c", ASK, *map(str, words)],
                    env=environment, stdout=log, stderr=subprocess.STDOUT, timeout=limit, check=False,
                )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"took more than {limit} s: {(at / 'log').read_text()[-800:]}"
        finally:
            self.seconds[f"asked: {case.name}"] = round(time.perf_counter() - started, 1)
        log_end = (at / "log").read_text("utf-8", "replace")[-1500:]
        return f"asking ended with {done.returncode}: {log_end}" if done.returncode else ""

    def judge_case(self, case: Case, at: Path) -> dict[str, Any]:
        """Return the row of a case."""
        plain = case.model.removesuffix("-fp8")
        inputs = judge_answers.AnswerGateInputs(
            at / "engine", at / "said", self.models[plain], self.work / f"reference-{plain}"
        )
        outcomes, evidence = judge_answers.judge_engine_answers(inputs)
        failing = [o.gate for o in outcomes if not o.passed]
        detail = {o.gate: o.detail for o in outcomes}
        row: dict[str, Any] = {
            "passed": bool(outcomes) and not failing,
            "failing": failing,
            "summaries": {o.gate: o.summary for o in outcomes},
            "runtime": evidence.get("runtime"),
        }
        for gate, keys in FIGURES.items():
            row |= {f"{gate}.{key}": detail.get(gate, {}).get(key) for key in keys}
        with contextlib.suppress(Exception):
            row |= measure_gaps(at / "said", self.work / f"asked-{plain}", self.work / f"reference-{plain}")
        return row


def measure_gaps(said: Path, asked: Path, reference: Path) -> dict[str, Any]:
    """Return the engine's logit gaps where runs differ from each other, and from the reference."""
    engine_answers = answer_record.read_engine_answers(said)
    question_set = engine_questions.read_engine_questions(asked)
    answers = kept_answers.read_reference_answers(reference)
    runs = engine_answers.runs
    between = []
    for n, first in enumerate(runs["batch"]):
        for other in (runs["again"][n], runs["alone"][n]):
            if first is not None and other is not None and first.tokens != other.tokens:
                gap = answer_metrics._recorded_gap(first, other, engine_answers.next.get(n))
                between.append(gap if math.isfinite(gap) else None)
    apart = []
    for n, (first, tokens) in enumerate(zip(runs["batch"], answers.continuations, strict=True)):
        if first is not None and n in engine_answers.next:
            theirs = answer_record.GreedyAnswer(tuple(tokens), "length")
            if any(a != b for a, b in zip(first.tokens, theirs.tokens, strict=False)):
                gap = answer_metrics._recorded_gap(first, theirs, engine_answers.next[n])
                apart.append(gap if math.isfinite(gap) else None)
    logs = [one.logs for one in engine_answers.next.values()]
    margins = torch.cat([rows[:, 0] - rows[:, 1] for rows in logs]) if logs else torch.zeros(0)
    known = [gap for gap in apart if gap is not None]
    return {
        "gaps between runs": between,
        "gaps where the reference's token differs": apart,
        "median of these": statistics.median(known) if known else None,
        "margins below 0.05, 0.125, 0.25": [
            round(float((margins < most).double().mean()), 4) if len(margins) else None
            for most in (0.05, 0.125, 0.25)
        ],
        "prompts": len(question_set.prompts),
    }


def run_cases(
    shop: Workshop, cases: list[Case], jobs: int, limit: int, out: Path | None
) -> list[dict[str, Any]]:
    """Ask beside each other, judge one after another; rows are written as they come."""
    rows: list[dict[str, Any]] = []

    def keep(row: dict[str, Any]) -> None:
        rows.append(row)
        sys.stderr.write(f"{'ok  ' if row['right'] else 'FAIL'}  {row['case']}: {row['said']}\n")
        if out:
            out.write_text(json.dumps({"seconds": shop.seconds, "rows": rows}, indent=1) + "\n", "utf-8")

    with ThreadPoolExecutor(jobs) as pool:
        asked = {
            case.name: pool.submit(shop.ask_case, number, case, limit)
            for number, case in enumerate(cases)
            if case.model in shop.models
        }
        for case in cases:
            row: dict[str, Any] = {"case": case.name, "model": case.model, "must": case.verdict}
            if case.name not in asked:
                keep(row | {"right": False, "said": f"no model {case.model}"})
                continue
            try:
                row |= shop.judge_case(case, asked[case.name].result())
                said = "passed" if row["passed"] else f"failed {', '.join(row['failing'])}"
                right = case.verdict == MEASURED or row["passed"] == (case.verdict == PASSES)
                keep(row | {"said": said, "right": right})
            except Exception as e:
                keep(row | {"right": False, "said": f"{type(e).__name__}: {str(e)[-1500:]}"})
    return rows


def format_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| asked by vLLM | must | greedy | same token | KL | perplexity | task | ties | gates that fail |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        figures = [
            row.get(name)
            for name in ("greedy.top1Found", "agreement.top1Found", "agreement.klFound",
                         "perplexity.ratioFound", "task.score", "invariance.ties")
        ]  # fmt: skip
        shown = ["" if f is None else f"{f:.4g}" for f in figures]
        failing = ", ".join(row.get("failing", [])) or ("none" if row.get("passed") else row["said"][:200])
        lines.append("| " + " | ".join([row["case"], row["must"], *shown, failing]) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Make models, ask, judge, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--site", type=Path, help="directory of vLLM and what it needs")
    parser.add_argument("--standin", action="store_true", help="a stand-in of vLLM on the CPU")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="*", help="beginnings of names of cases")
    parser.add_argument("--jobs", type=int, default=5)
    parser.add_argument("--limit", type=int, default=170, help="seconds of one case")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--driver", type=Path, help="the GPU driver's root, where it is not found")
    parser.add_argument("--fp8", type=Path, help="tiny-qwen3 in ModelOpt's FP8, made before")
    parser.add_argument("--quantize", nargs=2, type=Path, metavar=("MODEL", "OUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if (args.site is None) != args.standin:
        parser.error("one of --site and --standin")
    if args.site is not None:
        sys.path.append(str(args.site))
    if args.quantize:
        quantize_model(*args.quantize)
        return 0
    cases = [c for c in CASES if not args.only or any(c.name.startswith(name) for name in args.only)]
    with tempfile.TemporaryDirectory(prefix="vllm-", dir="/tmp") as directory:
        shop = Workshop(Path(directory), args)
        shop.make_models({case.model for case in cases})
        if shop.device == "cuda":
            torch.cuda.empty_cache()
        rows = run_cases(shop, cases, args.jobs, args.limit, args.json)
    sys.stdout.write(format_table(rows))
    wrong = [row["case"] for row in rows if not row["right"]]
    sys.stdout.write(f"{len(rows) - len(wrong)} of {len(rows)} verdicts are right\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
