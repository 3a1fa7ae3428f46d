"""Judges an engine: does it still say what the model says? Exit status 1 where a gate fails.

ENGINE is an engine of kind "reference", or a TensorRT-LLM checkpoint (with --model for its tokenizer).
--reference is the Hugging Face model that all began with, or its answers as enginix reference keeps them.

Gates: logits (the same function, for unquantized checkpoints), coverage, smoke, agreement, perplexity, task,
invariance. Which run by default, and with which bounds, depends on the number format (docs/gates.md).

  enginix gate ./engine --reference ./Qwen3-0.6B -o ./evidence
  enginix gate ./engine --reference ./answers --gates '{"perplexity": {"ratio": 1.02}, "smoke": {}}'
"""

from __future__ import annotations

import argparse
from pathlib import Path

from enginix import console
from enginix.errors import MachineError, UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", type=Path, metavar="ENGINE", help="engine, or checkpoint, to judge")
    parser.add_argument(
        "--reference", type=Path, required=True, metavar="DIR", help="the original model, or its answers"
    )
    parser.add_argument(
        "--model",
        type=Path,
        metavar="DIR",
        help="whose tokenizer reads the texts (default: the reference, or the engine's own for answers)",
    )
    parser.add_argument("--gates", metavar="JSON", help="gate → bounds, instead of the defaults")
    parser.add_argument(
        "--questions", type=Path, metavar="JSONL", help="question and answer a line, for the gate task"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N (default: cpu)")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="write gates.json, report.html here")


def run(args: argparse.Namespace) -> int:
    from enginix import manifest
    from enginix.gates import judge, run
    from enginix.report import evidence

    checkpoint, tokenizer, name = args.engine, args.model or args.reference, args.engine.resolve().name
    if (args.engine / "checkpoint").is_dir():
        found = manifest.read(args.engine, "engine")
        if found.kind != "reference":
            raise MachineError(
                f"an engine of kind {found.kind} is executed by its own runtime, not by this command",
                where=str(args.engine),
                fix="judge its checkpoint, or an engine of kind reference made of it",
            )
        checkpoint, tokenizer, name = args.engine / "checkpoint", args.engine / "tokenizer", found.name
    elif (args.reference / "answers.json").is_file() and args.model is None:
        raise UsageError("answers have no tokenizer", fix="pass the model's directory with --model")
    case = judge.Case(
        checkpoint=checkpoint,
        tokenizer=tokenizer,
        model=args.model or (tokenizer if (args.reference / "answers.json").is_file() else args.reference),
        reference=args.reference,
        wanted=None if args.gates is None else judge.parse(args.gates),
        questions=args.questions,
        device=args.device,
    )
    if args.output is not None:
        evidence.check_free(args.output)
    outcomes, told = judge.judge(case)
    for outcome in outcomes:
        console.say(f"gate {outcome.gate}: {'passed' if outcome.passed else 'FAILED'}, {outcome.summary}")
    if args.output is not None:
        evidence.write(args.output, name, told)
    if not outcomes:
        console.say("note: not gated")
    else:
        run.require(outcomes)
    verdicts = judge.verdicts(outcomes) or "not gated"
    text = f"{args.engine}: " + (f"{len(outcomes)} gates passed" if outcomes else "not gated")
    console.result({"engine": str(args.engine), "gates": verdicts}, text, as_json=args.json)
    return 0
