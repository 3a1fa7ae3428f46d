"""Turns text into calibration data for `enginix quantize`: one hashed file of token ids.

The texts are plain text (.txt), JSONL (.jsonl, one object a line), both also gzipped, or a directory of
them, such as the files of a dataset. Documents are drawn in an order that the seed gives, tokenized by the
model's own tokenizer, joined and cut into rows of equal length. The same texts, tokenizer and options give
the same bytes.

Without --text it uses the text that ships with enginix (docs/how-to/quantize.md). Text of your own domain
calibrates better: a file, or a dataset of the Hub that enginix lock --dataset pins and enginix fetch brings,
whose repository and commit the calibration data then names.

  enginix calibrate ./qwen3-8b -o ./calibration
  enginix calibrate ./qwen3-8b --text ./tickets.jsonl --field messages --size 512 -o ./calibration
  enginix fetch texts.lock.json -o ./texts && enginix calibrate ./qwen3-8b --text ./texts -o ./calibration
  enginix quantize ./qwen3-8b --format fp8 --calibration ./calibration -o ./qwen3-8b-fp8
"""

from __future__ import annotations

import argparse
import os
import sys

from enginix import console
from enginix.cli.option_shapes import add_number, add_output, add_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_path(parser, "model", "MODEL", "directory with the tokenizer; no weights needed")
    add_output(parser, "DIR", "directory to write", required=True)
    add_path(parser, "--text", "PATH", "text, JSONL, or a directory of them (default: enginix's own text)")
    parser.add_argument(
        "--field",
        default="text",
        help="field of a JSONL line: text, or a list of chat messages (default: text)",
    )
    add_number(parser, "--size", "number of rows (default: all rows of the text, at most 256)")
    add_number(parser, "--sequence-length", "tokens a row (default: 512)", default=512)
    add_number(parser, "--seed", "seed of the random draw (default: 1234)", default=1234)


def _hide_torch() -> None:
    """Let transformers read the tokenizer without PyTorch, whose import takes most of the command's time.

    Only in a process that ends with this command: transformers remembers that it found no PyTorch.
    """
    if sys.argv[1:2] == ["calibrate"] and not {"torch", "transformers"} & sys.modules.keys():
        sys.modules["torch"] = None  # type: ignore[assignment]  # as Python does where an import is refused
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def run(args: argparse.Namespace) -> int:
    _hide_torch()
    from enginix.quantize.calibration import CALIBRATION_FILE, Recipe, make_calibration

    recipe = Recipe(args.size, args.sequence_length, args.seed, args.field)
    done = make_calibration(args.model, args.output, args.text, recipe)
    path = args.output / CALIBRATION_FILE
    console.print_result(
        {"calibration": str(path), "sha256": done.sha256, "tokens": int(done.tokens.size)},
        f"{path}: {len(done.tokens)} × {args.sequence_length} tokens, sha256 {done.sha256}",
    )
    return 0
