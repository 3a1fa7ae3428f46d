"""Checks a TensorRT-LLM checkpoint: every tensor that the loader requires, its shape and dtype, no extra.

enginix verify-checkpoint ./checkpoint
"""

from __future__ import annotations

import argparse
from pathlib import Path

from enginix import console
from enginix.errors import EXIT_NO, EXIT_OK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="DIR", help="checkpoint directory")


def run(args: argparse.Namespace) -> int:
    from enginix.checkpoint.verify import verify

    findings = verify(args.checkpoint)
    lines = [f"{f.where}: {f.what}" for f in findings]
    console.result(
        {"checkpoint": str(args.checkpoint), "findings": lines},
        "\n".join(lines) or f"{args.checkpoint}: verified",
        as_json=args.json,
    )
    return EXIT_NO if findings else EXIT_OK
