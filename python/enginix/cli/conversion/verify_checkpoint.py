"""Checks a TensorRT-LLM checkpoint: every tensor that the loader requires, with its shape and dtype, and no
other; no NaN; scales positive and consistent; quantization in every layer that should have it and in none
that must not. With --against, every weight is dequantized and held against the model's.

  enginix verify-checkpoint ./checkpoint
  enginix verify-checkpoint ./checkpoint --against ./model

Exit status 1: something is wrong; each finding is one line.
"""

from __future__ import annotations

import argparse

from enginix import console
from enginix.cli.option_shapes import add_path
from enginix.errors import EXIT_CHECK_FAILED, EXIT_OK

SHOWN = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_path(parser, "checkpoint", "DIR", "checkpoint directory")
    add_path(parser, "--against", "MODEL", "model that the checkpoint was converted from")


def run(args: argparse.Namespace) -> int:
    from enginix.checkpoint.verify import verify_checkpoint

    report = verify_checkpoint(args.checkpoint)
    if args.against is not None and not report.findings:
        from enginix.checkpoint.compare_with_model import CheckpointComparison

        report.findings.extend(CheckpointComparison(args.checkpoint, args.against).findings())
    console.print_notes(report.notes)
    lines = [str(f) for f in report.findings]
    bits = 8 * report.bytes / max(1, report.parameters)
    covered = f", {report.quantized} of {report.matrices} matrices quantized" if report.matrices else ""
    summary = f"{console.format_bytes(report.bytes)}, {bits:.1f} bits a weight{covered}"
    more = [f"… and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    console.print_result(
        {
            "checkpoint": str(args.checkpoint),
            "findings": lines,
            "notes": report.notes,
            "bytes": report.bytes,
            "bitsAWeight": round(bits, 2),
            "matrices": report.matrices,
            "quantized": report.quantized,
        },
        "\n".join(lines[:SHOWN] + more) or f"{args.checkpoint}: verified; {summary}",
    )
    return EXIT_CHECK_FAILED if lines else EXIT_OK
