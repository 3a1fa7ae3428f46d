"""Builds an engine from a checkpoint: what a server loads, with its manifest and its gates.

Kind "reference" runs the checkpoint by plain PyTorch, on any machine. The gate "logits" compares it with the
Hugging Face model before the engine exists: if they differ by more than the bound, there is no engine.

  enginix build ./checkpoint --kind reference --model ./tiny-qwen3 -o ./engine
"""

from __future__ import annotations

import argparse
from pathlib import Path

from enginix import console
from enginix.errors import MachineError, UsageError

KINDS = ("reference", "tensorrt", "llmapi", "edgellm")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="output of enginix convert")
    parser.add_argument("--kind", choices=KINDS, required=True, help="what executes it")
    parser.add_argument(
        "--model",
        type=Path,
        required=True,
        metavar="DIR",
        help="the Hugging Face model that the checkpoint was made from: gates' reference, tokenizer",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="engine to write")
    parser.add_argument("--name", help="name of the engine (default: the model's)")
    parser.add_argument(
        "--link-checkpoint", action="store_true", help="link to the checkpoint instead of copying it"
    )
    parser.add_argument("--no-gates", action="store_true", help="skip the gates; the manifest says so")
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="X",
        help="bound of the gate logits (default: by dtype, gates.json)",
    )
    parser.add_argument("--device", default="cpu", help="where gates run: cpu, cuda, cuda:N (default: cpu)")


def run(args: argparse.Namespace) -> int:
    if args.kind != "reference":
        raise MachineError(
            f"engines of kind {args.kind} cannot be built by this version of enginix on this machine",
            fix="--kind reference runs on any machine",
        )
    if args.tolerance is not None and (args.no_gates or not 0 < args.tolerance < float("inf")):
        raise UsageError(
            "--tolerance with --no-gates" if args.no_gates else f"--tolerance is {args.tolerance}",
            fix="pass a positive number, with the gates on",
        )
    from enginix.engine.reference import Options, build

    options = Options(
        name=args.name,
        gated=not args.no_gates,
        link_checkpoint=args.link_checkpoint,
        tolerance=args.tolerance,
        device=args.device,
    )
    made, outcomes = build(args.checkpoint, args.model, args.output, options)
    for outcome in outcomes:
        console.say(f"gate {outcome.gate}: passed, {outcome.summary}")
    if not outcomes:
        console.say("note: not gated")
    console.result(
        {"engine": str(args.output), "kind": made.kind, "name": made.name, "gates": made.results["gates"]},
        f"{args.output}: {made.name}, kind reference, {'gated' if outcomes else 'not gated'}",
        as_json=args.json,
    )
    return 0
