"""Describes a model, from its configuration and safetensors headers alone.

MODEL is a model directory, a lock file, or owner/name on the Hub. Of a repository only small files and the
headers of the weights are fetched, by range request: kilobytes, whatever the model's size.

  enginix inspect ./tiny-qwen3
  enginix inspect nvidia/Qwen3-32B-NVFP4 --revision main
  enginix inspect qwen3-32b-nvfp4.lock.json --json
"""

from __future__ import annotations

import argparse

from enginix import console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="directory, lock file, or owner/name")
    parser.add_argument(
        "--revision", metavar="REV", help="branch, tag or commit of owner/name (default: main)"
    )


def run(args: argparse.Namespace) -> int:
    from enginix.inspect import describe_model, open_model
    from enginix.inspect.description_text import render_description

    with open_model(args.model, args.revision) as model:
        description = describe_model(model)
    console.print_result(description.as_json(), render_description(description))
    return 0
