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

from enginix.errors import UsageError
from enginix.kinds.registry import KIND_NAMES, find_kind, load_hook


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", type=Path, nargs="?", metavar="CHECKPOINT", help="output of enginix convert"
    )
    parser.add_argument("--kind", choices=KIND_NAMES, required=True, help="kind of the engine")
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
    parser.add_argument(
        "--gates",
        metavar="JSON",
        help="gates and their bounds (default: those of the number format); {} is recorded as not gated",
    )
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="DIR",
        help="model before quantization, or its answers, to compare with (default: --model)",
    )
    parser.add_argument(
        "--original",
        type=Path,
        metavar="DIR",
        help="model before quantization, for the gate weights, if --reference has answers",
    )
    parser.add_argument(
        "--questions",
        type=Path,
        metavar="JSONL",
        help="questions and answers for the gate task, one pair a line (default: the pinned ones)",
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
            f"kind {kind.name} is built by commands of its own",
            fix=", then ".join(kind.build_commands),
        )
    return int(load_hook(kind.build).run(args))
