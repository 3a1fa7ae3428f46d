"""Builds an engine from a checkpoint: what a server loads, with its manifest and its gates.

Kind "tensorrt" is compiled by TensorRT-LLM's trtllm-build inside a pinned runtime, on the target's GPU. Kind
"llmapi" is the model with the arguments of TensorRT-LLM's PyTorch backend, for runtimes after the engine era.
Kind "reference" runs the checkpoint by plain PyTorch, on any machine. The gate "logits" compares it with the
Hugging Face model before the engine exists: if they differ by more than the bound, there is no engine.

  enginix build ./checkpoint --kind reference --model ./tiny-qwen3 -o ./engine
  enginix build ./checkpoint --kind tensorrt --model ./model --target h200 --runtime trtllm-1.2.1 \\
    --rootfs ./rootfs --max-batch-size 8 --max-seq-len 16384 -o ./engine
"""

from __future__ import annotations

import argparse
from pathlib import Path

from enginix.cli.option_shapes import add_flag, add_number, add_output, add_path
from enginix.errors import UsageError
from enginix.kinds.registry import KIND_NAMES, find_kind, load_hook


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", type=Path, nargs="?", metavar="CHECKPOINT", help="output of enginix convert"
    )
    parser.add_argument("--kind", choices=KIND_NAMES, required=True, help="kind of the engine")
    add_path(
        parser,
        "--model",
        "DIR",
        "the Hugging Face model that the checkpoint was made from: gates' reference, tokenizer",
        required=True,
    )
    add_output(parser, "DIR", "engine to write", required=True)
    parser.add_argument("--name", help="name of the engine (default: the model's)")
    add_flag(parser, "--link-checkpoint", "link to the checkpoint instead of copying it")
    add_flag(parser, "--no-gates", "skip the gates; the manifest says so")
    add_number(
        parser,
        "--tolerance",
        "bound of the gate logits (default: by dtype, gates.json)",
        type=float,
        metavar="X",
    )
    parser.add_argument(
        "--gates",
        metavar="JSON",
        help="gates and their bounds (default: those of the number format); {} is recorded as not gated",
    )
    add_path(
        parser,
        "--reference",
        "DIR",
        "model before quantization, or its answers, to compare with (default: --model)",
    )
    add_path(
        parser,
        "--original",
        "DIR",
        "model before quantization, for the gate weights, if --reference has answers",
    )
    add_path(
        parser,
        "--questions",
        "JSONL",
        "questions and answers for the gate task, one pair a line (default: the pinned ones)",
    )
    parser.add_argument(
        "--device", default="cpu", help="device for the gates: cpu, cuda, cuda:N (default: cpu)"
    )

    from enginix.cli.engines import trtllm_build

    trtllm_build.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    kind = find_kind(args.kind)
    if kind.build is None:
        raise UsageError(
            f"kind {kind.name} is built by commands of its own", fix=", then ".join(kind.build_commands)
        )
    return int(load_hook(kind.build).run(args))
