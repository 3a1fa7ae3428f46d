"""Computes a Hugging Face model's answers to all questions of the gates, once for all its engines.

enginix reference ./Qwen3-0.6B -o ./answers
enginix gate ./engine --reference ./answers --model ./Qwen3-0.6B
"""

from __future__ import annotations

import argparse

from enginix import console
from enginix.cli.option_shapes import add_output, add_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_path(parser, "model", "MODEL", "Hugging Face model directory")
    add_path(parser, "--questions", "JSONL", "questions to use instead of the pinned ones")
    parser.add_argument(
        "--device", default="cpu", help="device to compute on: cpu, cuda, cuda:N (default: cpu)"
    )
    add_output(parser, "DIR", "answers to write", required=True)


def run(args: argparse.Namespace) -> int:
    from enginix.evaluation.reference_answers import reference_asker
    from enginix.work_directory import new_directory

    with new_directory(args.output) as partial:
        material = reference_asker.keep_reference_answers(args.model, partial, args.device, args.questions)
        for path in partial.glob("*.safetensors"):
            path.chmod(0o644)  # safetensors keeps its files to their owner
    tokens = sum(len(p.tokens) for p in material.passages)
    console.print_result(
        {"answers": str(args.output), "material": material.sha256, "tokens": tokens},
        f"{args.output}: {tokens} tokens of text, {len(material.questions)} questions asked",
    )
    return 0
