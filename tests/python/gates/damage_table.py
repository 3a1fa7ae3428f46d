"""The damage table: kinds of damage × number formats, each caught by which gate, or measured as harmless.

    python tests/python/gates/damage_table.py [--executed] [--only weights …] [--work DIR] [--write]

Gates that compare come first; what they do not catch is executed. Damage is harmless where it does not double
the divergence that the format has anyway. --executed compares nothing: an engine may have no checkpoint.
--work keeps the quantized checkpoints. --write puts the table into docs/reference/damage.md.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "tests"), str(Path(__file__).parent)]

import torch  # noqa: E402

import engine_damage  # noqa: E402
from enginix.checkpoint.convert import ConvertOptions, convert_model  # noqa: E402
from enginix.errors import CheckpointError  # noqa: E402
from enginix.evaluation.judgement import model_files, model_weights, quality, suite  # noqa: E402
from enginix.evaluation.judgement.positions import judge_positions  # noqa: E402
from enginix.evaluation.reference_answers import answers as kept_answers  # noqa: E402
from enginix.evaluation.reference_answers import hf, material  # noqa: E402
from enginix.evaluation.reference_answers.answers import ReferenceAnswers  # noqa: E402
from enginix.evaluation.reference_answers.subject import ExecutorSubject, TransformersSubject  # noqa: E402
from enginix.model.tokenizer_files import copy_tokenizer_files  # noqa: E402
from enginix.reference.config import read_executor_config  # noqa: E402
from enginix.reference.executor import Executor  # noqa: E402
from tiny_model import Tensors, damaged, quantize  # noqa: E402

MODEL = ROOT / "tests/models/tiny-qwen3"
PLAIN = "bfloat16"
GROUPS = ("files", "configuration", "weights", "scales", "executors")
FORMATS = (PLAIN, "FP8", "FP8_KV", "FP8_PC_PT", "INT8_SQ", "INT4_AWQ", "W4A8_AWQ", "NVFP4")
LAYER = "transformer.layers.1"
PAGE = ROOT / "docs/reference/damage.md"
BEGIN, END = "<!-- damages: tests/python/gates/damage_table.py -->", "<!-- end of damages -->"
EXECUTED_BEGIN = "<!-- executed: tests/python/gates/damage_table.py --executed -->"
EXECUTED_END = "<!-- end of executed -->"
# Of the groups, those that a comparison finds.
COMPARED_GROUPS = ("configuration", "weights")
# Nats a token that no text shows: an unquantized engine's own divergence is smaller still.
UNSEEN = 1e-6


def change_config(**changes: Any) -> Callable[[Path], None]:
    return lambda out: engine_damage.edit(out / "config.json", lambda raw: raw.update(changes))


CONFIGURATIONS: dict[str, Callable[[Path], None]] = {
    "rotary base 10001 for 10000": change_config(rotary_base=10001.0),
    "rotary base 15000": change_config(rotary_base=15000.0),
    "rotary base 20000": change_config(rotary_base=20000.0),
    "rotary scaling, linear × 1.1": change_config(rotary_scaling={"type": "linear", "factor": 1.1}),
    "rotary scaling, dynamic": change_config(
        rotary_scaling={"type": "dynamic", "factor": 64.0, "alpha": 64.0}
    ),
    "epsilon 1e-5 for 1e-6": change_config(norm_epsilon=1e-5),
    "epsilon 1e-2": change_config(norm_epsilon=1e-2),
    "64 positions for 2048": change_config(max_position_embeddings=64),
}


def scale_leaves(leaf: str, factor: float, only: str = "") -> Callable[[Tensors], object]:
    def change(tensors: Tensors) -> None:
        for name in tensors:
            if name.endswith(leaf) and only in name:
                tensors[name] = (tensors[name].float() * factor).to(tensors[name].dtype)
                # TensorRT-LLM's form of NVFP4 has products of scales; KV scales have their reciprocals.
                for other, power in (("alpha", 1), ("kv_cache_rcp_scaling_factor", -1)):
                    beside = f"{name.removesuffix(leaf)}{other}"
                    if beside in tensors and beside != name:
                        tensors[beside] = tensors[beside] * factor**power

    return change


def scale_matrix(name: str, factor: float) -> Callable[[Tensors], object]:
    """One matrix's own scale, or its weights where it has none."""

    def change(tensors: Tensors) -> None:
        for leaf in (
            "per_channel_scale", "weights_global_scaling_factor", "weights_scaling_factor", "weight",
        ):  # fmt: skip
            if f"{name}.{leaf}" in tensors:
                tensors[f"{name}.{leaf}"] = (tensors[f"{name}.{leaf}"].float() * factor).to(
                    tensors[f"{name}.{leaf}"].dtype
                )
                if leaf == "weights_global_scaling_factor":
                    tensors[f"{name}.alpha"] = tensors[f"{name}.alpha"] * factor
                return

    return change


def roll_rows(name: str) -> Callable[[Tensors], object]:
    def change(tensors: Tensors) -> None:
        tensors[name] = engine_damage.raw_bytes(tensors[name]).roll(7, 0).view(tensors[name].dtype)

    return change


def zero_rows(name: str, rows: slice) -> Callable[[Tensors], object]:
    def change(tensors: Tensors) -> None:
        engine_damage.raw_bytes(tensors[name])[rows] = 0

    return change


WEIGHTS: dict[str, Callable[[Tensors], object]] = {
    **engine_damage.WEIGHTS,
    "layer 0 head 0 zeroed": lambda t: engine_damage.zero_head(t, 0, 0),
    "one matrix × 1.02": scale_matrix(f"{LAYER}.mlp.fc", 1.02),
    "one matrix × 1.1": scale_matrix(f"{LAYER}.mlp.fc", 1.1),
    "one matrix × 8": scale_matrix(f"{LAYER}.mlp.fc", 8.0),
    "a matrix's rows rolled": roll_rows(f"{LAYER}.mlp.proj.weight"),
    "four rows of up zeroed": zero_rows(f"{LAYER}.mlp.gate.weight", slice(8, 12)),
    "the head rolled by a token": roll_rows("lm_head.weight"),
    "last norm × 1.01": lambda t: t["transformer.ln_f.weight"].mul_(1.01),
}
ACTIVATIONS = "activation_scaling_factor"
SCALES: dict[str, Callable[[Tensors], object]] = {
    f"activation scales × {factor:g}": lambda t, f=factor: [  # type: ignore[misc]
        scale_leaves(leaf, f)(t) for leaf in (ACTIVATIONS, "activation_global_scaling_factor")
    ]
    for factor in (0.125, 0.5, 2.0, 64.0)
}
SCALES["activation scales × 0.125 in one matrix"] = lambda t: [
    scale_leaves(leaf, 0.125, f"{LAYER}.mlp.proj")(t)
    for leaf in (ACTIVATIONS, "activation_global_scaling_factor")
]
SCALES["KV cache scales × 0.125"] = scale_leaves("kv_cache_scaling_factor", 0.125)
SCALES["KV cache scales × 64"] = scale_leaves("kv_cache_scaling_factor", 64.0)


def beyond(start: int, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Executor], Executor]:
    """An executor (stand-in) whose logits are changed from some position on."""
    return lambda executor: engine_damage.spoil(
        executor, lambda logits: torch.cat([logits[:start], change(logits[start:])])
    )


def add_noise(logits: torch.Tensor) -> torch.Tensor:
    growth = torch.linspace(0, 1.5, max(1, len(logits)))[:, None]
    return logits + growth * torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))


EXECUTORS: dict[str, Callable[[Executor], Executor]] = {
    "NaN beyond 128 (stand-in)": beyond(128, lambda t: torch.full_like(t, float("nan"))),
    "NaN beyond 1024 (stand-in)": beyond(1024, lambda t: torch.full_like(t, float("nan"))),
    "equal logits beyond 1024 (stand-in)": beyond(1024, torch.zeros_like),
    "noise that grows with position (stand-in)": beyond(0, add_noise),
}


class DamageJudge:
    """Judges damaged engines of one model by the gates that compare, and then by those that score texts."""

    def __init__(self, model: Path) -> None:
        self.model = model
        tokenizer = hf.TransformersTokenizer(model)
        self.material = material.load_material(tokenizer, 2048, 2048)
        subject = TransformersSubject(model)
        texts = [p.tokens for p in self.material.passages]
        positions = [p for o in material.sample_positions(len(self.material.long)) for p in o]
        passages = tuple(kept_answers.score_texts(subject, texts)[0])
        long, _ = kept_answers.score_positions(subject, self.material.long, positions)
        self.answers = ReferenceAnswers(
            {}, self.material.sha256, frozenset((2, 0)), passages, (), (), (), long=long
        )

    def compare(self, checkpoint: Path) -> bool:
        try:
            return model_weights.judge_weights(checkpoint, {"the model": self.model}, {"steps": 1.0}).passed
        except Exception:
            return False

    def execute(
        self, checkpoint: Path, change: Callable[[Executor], Executor] | None
    ) -> tuple[list[str], torch.Tensor]:
        """Return the gates that fail, or loading, and the divergence at each position; empty without one."""
        config = read_executor_config(checkpoint)
        names = ("positions", "agreement", "activations", "perplexity")
        bounds = suite.resolve_checkpoint_bounds(config, {name: {} for name in names})
        try:
            executor = Executor.load(checkpoint, dtype="float32")
        except CheckpointError:
            return ["loading"], torch.empty(0)
        subject: Any = ExecutorSubject(executor if change is None else change(executor))
        scored = suite.ScoredPassages(subject, self.material, self.answers)
        engine = suite.JudgedEngine(
            subject, hf.TransformersTokenizer(self.model), config, without_rounding=executor.without_rounding
        )
        judges: dict[str, Callable[[], Any]] = {
            "positions": lambda: judge_positions(subject, self.material, self.answers, bounds["positions"]),
            "agreement": lambda: quality.judge_agreement(*scored.get(), self.answers, bounds["agreement"]),
            "activations": lambda: suite.judge_rounding(engine, scored, bounds["activations"]),
            "perplexity": lambda: quality.judge_perplexity(
                scored.get()[0], self.answers, bounds["perplexity"]
            ),
        }
        failed, divergence = [], torch.empty(0)
        for name, run in judges.items():
            try:
                outcome = run()
                if name == "agreement":
                    divergence = torch.cat(list(scored.get()[1]))
                if not outcome.passed:
                    failed.append(name)
            except Exception:
                failed.append(name)
        return failed, divergence


def list_rows(
    judge: DamageJudge, made: dict[str, Path], work: Path, groups: Sequence[str], *, compares: bool
) -> Iterator[tuple[str, list[str]]]:
    """Yield each kind of damage and its cells, one a format."""
    for number, (name, (change, _)) in enumerate(engine_damage.FILES.items() if "files" in groups else ()):
        files = work / f"files{number}"
        copy_tokenizer_files(judge.model, files)
        change(files)
        caught = not model_files.judge_files(files, judge.model, (2, 0), {}).passed
        yield name, ["files" if caught else "PASSES"] * len(FORMATS)
    healthy = {name: float(judge.execute(made[name], None)[1].mean()) for name in FORMATS}

    def cell(form: str, out: Path, change: Callable[[Executor], Executor] | None = None) -> str:
        if change is None:
            files = ("config.json", "rank0.safetensors")
            same = all(filecmp.cmp(out / name, made[form] / name, shallow=False) for name in files)
            assert not same, f"{out}: this damage changes nothing in {form}"
            if compares and not judge.compare(out):
                return "weights"
        failed, divergence = judge.execute(out, change)
        if failed:
            return failed[0] if len(failed) == 1 else f"{failed[0]} + {len(failed) - 1}"
        times = float(divergence.mean()) / max(healthy[form], UNSEEN)
        return f"harmless, × {times:.2f}" if times < 2 else f"PASSES, × {times:.2f}"

    def damage_config(name: str, form: str, out: Path) -> Path:
        shutil.copytree(made[form], out)
        CONFIGURATIONS[name](out)
        return out

    number = 0
    chosen = {"configuration": CONFIGURATIONS, "weights": WEIGHTS, "scales": SCALES}
    for name in (name for group, kinds in chosen.items() if group in groups for name in kinds):
        cells = []
        for form in FORMATS:
            number += 1
            out = work / f"damage{number}"
            if name in CONFIGURATIONS:
                cells.append(cell(form, damage_config(name, form, out)))
            elif name in WEIGHTS:
                cells.append(cell(form, damaged(made[form], out, WEIGHTS[name])))
            else:
                leaf = "kv_cache" if name.startswith("KV") else "activation_"
                has_leaf = leaf in json.dumps(list(_list_tensors(made[form])))
                cells.append(cell(form, damaged(made[form], out, SCALES[name])) if has_leaf else "")
            shutil.rmtree(out, ignore_errors=True)
        yield name, cells
    for name, change in EXECUTORS.items() if "executors" in groups else ():
        yield name, [cell(form, made[form], change) for form in FORMATS]


def _list_tensors(checkpoint: Path) -> list[str]:
    from enginix.model import read_header

    return list(read_header(checkpoint / "rank0.safetensors").tensors)


def make_checkpoints(model: Path, work: Path) -> dict[str, Path]:
    """Return format → a healthy checkpoint of the model; those that are there already stay."""
    made = {}
    for name in FORMATS:
        out = work / f"made-{name}"
        if name == PLAIN:
            made[name] = out
            if not out.is_dir():
                convert_model(model, out, ConvertOptions())
        else:
            made[name] = out / "checkpoint"
            if not made[name].is_dir():
                out.mkdir(parents=True, exist_ok=True)
                quantize(model, name, out)
    return made


def make_table(keep: Path | None, groups: Sequence[str], *, compares: bool) -> str:
    """Return the table in Markdown."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        made = make_checkpoints(MODEL, keep or work)
        judge = DamageJudge(MODEL)
        assert all(judge.compare(checkpoint) for checkpoint in made.values()), "a healthy checkpoint fails"
        lines = [f"| damage | {' | '.join(FORMATS)} |", f"|---|{'---|' * len(FORMATS)}"]
        passes: list[str] = []
        kinds = 0
        for name, cells in list_rows(judge, made, work, groups, compares=compares):
            kinds += 1
            lines.append(f"| {name} | {' | '.join(cells)} |")
            passes += [f"{name}, {form}" for form, c in zip(FORMATS, cells, strict=True) if "PASSES" in c]
            sys.stderr.write(lines[-1] + "\n")
        cells_of = [line.split(" | ")[1:] for line in lines[2:]]
        count = sum(bool(cell.strip(" |")) for row in cells_of for cell in row)
        lines += [
            "",
            f"{kinds} kinds of damage, {count} cells; {len(passes)} pass: {'; '.join(passes) or 'none'}.",
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep the quantized checkpoints here")
    parser.add_argument("--only", nargs="+", choices=GROUPS, help="kinds of damage")
    parser.add_argument("--executed", action="store_true", help="as if no checkpoint could be compared")
    parser.add_argument("--write", action="store_true", help="put the table into its page")
    args = parser.parse_args()
    default = COMPARED_GROUPS if args.executed else GROUPS
    groups = tuple(args.only or default)
    if args.write and groups != default:
        parser.error("--write needs every kind: leave --only out")
    text = make_table(args.work, groups, compares=not args.executed)
    sys.stdout.write(text + "\n")
    if args.write:
        begin, end = (EXECUTED_BEGIN, EXECUTED_END) if args.executed else (BEGIN, END)
        write_table(begin, end, text)


def write_table(begin: str, end: str, text: str) -> None:
    """Put a table between two lines of the page."""
    before, _, rest = PAGE.read_text().partition(begin)
    PAGE.write_text(f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}")


def list_kinds() -> list[str]:
    """Return every kind of damage, in the table's order."""
    return [*engine_damage.FILES, *CONFIGURATIONS, *WEIGHTS, *SCALES, *EXECUTORS]


def read_kinds(page: str) -> list[str]:
    """Return the kinds of damage of the page's table."""
    lines = page.split(BEGIN)[1].split(END)[0].strip().splitlines()
    return [line.split("|")[1].strip() for line in lines if line.startswith("|")][2:]


if __name__ == "__main__":
    main()
