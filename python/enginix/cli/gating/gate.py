"""Judges an engine by gates, which compare its answers with its model's. Exit status 1: a gate failed.

ENGINE is an engine of kind "reference", or a TensorRT-LLM checkpoint (with --model for its tokenizer).
--reference is the original Hugging Face model, or its answers as enginix reference writes them.

Gates: logits (the same function, for unquantized checkpoints), coverage, smoke, agreement, perplexity, task,
context, invariance. Which run by default, and with which bounds, depends on the number format
(docs/reference/gates.md).

An engine of kind rtx is asked in this Python, by NVIDIA's runtime on a GPU of its targets, and what to report
is printed. With --interpreter the network of its checkpoint is asked, on the CPU, and not that runtime.

An engine of kind tensorrt, llmapi or edgellm is asked by its own runtime, on its GPU (pass --rootfs, or run
this in a container of the runtime's image). The gates judge its answers: smoke, greedy, task, invariance, and
agreement and perplexity where the runtime scores a text. --said takes answers that were written elsewhere.

  enginix gate ./engine --reference ./Qwen3-0.6B -o ./evidence
  enginix gate ./engine --reference ./answers --gates '{"perplexity": {"ratio": 1.02}, "smoke": {}}'
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from enginix import console
from enginix.cli.option_shapes import add_flag, add_number, add_output, add_path
from enginix.wording import count_noun


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_path(parser, "engine", "ENGINE", "engine, or checkpoint, to judge")
    add_path(parser, "--reference", "DIR", "the original model, or its answers", required=True)
    add_path(parser, "--model", "DIR", "model with tokenizer and weights (default: the reference)")
    add_path(
        parser,
        "--original",
        "DIR",
        "the model before quantization, for the gate weights (default: the reference)",
    )
    parser.add_argument("--gates", metavar="JSON", help="gates and their bounds, instead of the defaults")
    add_path(parser, "--questions", "JSONL", "questions and answers for the gate task, one pair a line")
    parser.add_argument(
        "--device", default="cpu", help="device for the gates: cpu, cuda, cuda:N (default: cpu)"
    )
    add_output(parser, "DIR", "directory for gates.json and report.html")
    group = parser.add_argument_group("engines of kind tensorrt, llmapi and edgellm")
    add_path(group, "--said", "DIR", "answers that the engine gave elsewhere")
    add_path(group, "--rootfs", "DIR", "root file system of the runtime's image")
    add_path(group, "--driver", "DIR", "the GPU driver's root (default: found)")
    add_path(group, "--pin", "FILE", "the runtime's pin file, with the image's environment")
    add_path(group, "--python", "FILE", "edgellm: Python with the wheel and TensorRT")
    add_number(
        group, "--stall-minutes", "minutes without a sign until it counts as hung", default=30.0, type=float
    )
    group = parser.add_argument_group("engines of kind rtx")
    add_path(
        group,
        "--interpreter",
        "CHECKPOINT",
        "execute the network of the engine's checkpoint on the CPU, not the engine",
    )
    group.add_argument("--gated-checkpoint", type=Path, metavar="DIR", help=argparse.SUPPRESS)
    add_flag(group, "--gated-engine", "write a gated engine to -o, with links to ENGINE")


def run(args: argparse.Namespace) -> int:
    from enginix import manifest
    from enginix.evaluation.judgement import judge, run
    from enginix.evaluation.reference_answers import answers as kept_answers
    from enginix.integrity import require_unchanged
    from enginix.kinds.registry import is_portable
    from enginix.model.end_tokens import read_manifest_end_tokens
    from enginix.output_path import require_absent
    from enginix.report import evidence

    if (args.engine / manifest.MANIFEST_FILE).is_file():
        artefact_manifest = manifest.read_manifest(args.engine)
        if artefact_manifest.artefact == "engine" and not is_portable(artefact_manifest.kind):
            from enginix.kinds.gating import gate_engine

            return gate_engine.run_engine_gates(args, artefact_manifest)
    checkpoint, name = args.engine, Path(os.path.realpath(args.engine)).name
    is_answers = kept_answers.is_answers(args.reference)
    model_files = args.reference / kept_answers.MODEL_FILES if is_answers else args.reference
    end_tokens = None
    if (args.engine / "checkpoint").is_dir():
        engine_manifest = manifest.read_manifest(args.engine, "engine")
        checkpoint, name = args.engine / "checkpoint", engine_manifest.name
        tokenizer = args.engine / "tokenizer"
        end_tokens = read_manifest_end_tokens(engine_manifest) or ()
    else:
        tokenizer = args.model or model_files
    case = judge.CheckpointGateInputs(
        checkpoint=checkpoint,
        tokenizer=tokenizer,
        model=args.model or model_files,
        reference=args.reference,
        requested_gates=None if args.gates is None else judge.parse_gates(args.gates),
        questions=args.questions,
        device=args.device,
        original=args.original,
        end_tokens=end_tokens,
    )
    if args.output is not None:
        require_absent(args.output)
    outcomes, gate_evidence = judge.judge_checkpoint(case)
    for outcome in outcomes:
        console.print_message(
            f"gate {outcome.gate}: {'passed' if outcome.passed else 'FAILED'}, {outcome.summary}"
        )
    if args.output is not None:
        evidence.write_evidence_directory(args.output, args.engine, name, gate_evidence)
    if not outcomes:
        console.print_message("note: not gated")
    else:
        run.require_gates_passed(outcomes)
    # After the gates, which tell what a change does.
    require_unchanged(args.engine)
    verdicts = judge.gate_verdicts(outcomes) or "not gated"
    text = f"{args.engine}: " + (f"{count_noun(len(outcomes), 'gate')} passed" if outcomes else "not gated")
    console.print_result({"engine": str(args.engine), "gates": verdicts}, text)
    return 0
