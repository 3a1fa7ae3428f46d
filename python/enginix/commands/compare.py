"""Shows all kinds of engines of one model beside each other: what each takes, needs, and where it runs.

MODEL is a model's directory or its lock; no weight is read. With --target, kinds that this GPU does not run
say why. Sizes are estimates from the weights' files. Exit code 1: no kind is known to take the model.

  enginix compare ./tiny-qwen3
  enginix compare model.lock.json --target rtx-5090
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from enginix import console
from enginix.errors import EXIT_NO, EXIT_OK

if TYPE_CHECKING:
    from enginix.report.kinds import Row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="directory or lock file")
    parser.add_argument("--target", metavar="GPU", help="a GPU of data/gpus.json")


def _show(row: Row) -> str:
    said = {True: "yes", False: "no", None: "maybe"}[row.takes]
    lines = [
        f"{row.kind}: {said}{'; ' * bool(row.why)}{'; '.join(row.why)}",
        f"  is      {row.described['is']}",
    ]
    if row.takes is not False:
        runs = "any machine, CPU or GPU" if row.targets is None else ", ".join(row.targets)
        lines += [
            f"  size    about {console.human_bytes(row.size)}",
            f"  build   {row.described['build']}",
            f"  runs on {runs} ({row.described['gpus']})",
            f"  server  {row.described['server']}",
        ]
    return "\n".join([*lines, f"  future  {row.described['future']}"])


def run(args: argparse.Namespace) -> int:
    from enginix.report.kinds import compare, read

    model = read(args.model)
    rows = compare(model, args.target)
    head = f"{model.name}: {model.architecture}, {model.quantization or 'not quantized'}"
    console.result(
        {"model": model.name, "target": args.target, "kinds": [row.as_json() for row in rows]},
        "\n".join([head, *map(_show, rows)]),
        as_json=args.json,
    )
    return EXIT_OK if any(row.takes for row in rows) else EXIT_NO
