"""Puts artefacts in one table and one plot; or all kinds of engines of one model beside each other.

  enginix compare ./engine-bf16 ./engine-fp8 ./engine-int4 ./engine-nvfp4 -o compare.html

shows of engines of every kind, checkpoints, and models: size on disk, bits a weight, format, perplexity with
its interval, agreement, KL divergence and questions answered as the gates found them (gates.json), and tokens
a second where --speed names a file of them: {"on": "machine, tool, load", "tokensPerSecond": {"NAME": 123}}.
What nobody measured is "not measured". Exit code 1: an artefact contradicts itself; the line says where.

  enginix compare ./tiny-qwen3
  enginix compare model.lock.json --target rtx-5090

shows what each kind takes of a model (a directory or its lock; no weight is read), what it needs, and where
it runs. With --target, kinds that this GPU does not run say why. Sizes are estimates. Exit code 1: no kind
takes it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from enginix import console
from enginix.errors import EXIT_NO, EXIT_OK, MachineError, UsageError

if TYPE_CHECKING:
    from enginix.report.kinds import Row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "artefacts",
        type=Path,
        nargs="+",
        metavar="ARTEFACT",
        help="engine, checkpoint, model; or one lock file",
    )
    parser.add_argument("--target", metavar="GPU", help="of a model: a GPU of data/gpus.json")
    parser.add_argument(
        "--speed", type=Path, metavar="JSON", help="of artefacts: tokens a second, as measured"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="of artefacts: the page, compare.html"
    )


def run(args: argparse.Namespace) -> int:
    if (
        len(args.artefacts) == 1
        and args.output is None
        and args.speed is None
        and _is_model(args.artefacts[0])
    ):
        return _kinds(args)
    if args.target is not None:
        raise UsageError("--target is for the kinds of one model", fix="leave it out, or pass one model")
    from enginix.files import write_text
    from enginix.report import comparison, measured
    from enginix.report.artefacts import read

    if args.output is not None and args.output.is_dir():
        raise MachineError("is a directory", where=str(args.output), fix="pass a file to -o")
    speeds = None if args.speed is None else measured.read_speeds(args.speed)
    found = comparison.compare([read(path) for path in args.artefacts], speeds)
    if args.output is not None:
        write_text(args.output, comparison.page(found))
        console.say(f"page: {args.output}")
    console.result(found.as_json(), comparison.text(found), as_json=args.json)
    return EXIT_NO if found.doubtful else EXIT_OK


def _is_model(path: Path) -> bool:
    """Whether the kinds of a model are asked for: a lock, or a directory that is no checkpoint or engine."""
    from enginix import manifest

    if (path / manifest.FILE).exists():
        return manifest.read(path).artefact in ("model", "quantized-model")
    return not (path / "rank0.safetensors").exists()


def _kinds(args: argparse.Namespace) -> int:
    from enginix.report.kinds import compare, read

    model = read(args.artefacts[0])
    rows = compare(model, args.target)
    head = f"{model.name}: {model.architecture}, {model.quantization or 'not quantized'}"
    console.result(
        {"model": model.name, "target": args.target, "kinds": [row.as_json() for row in rows]},
        "\n".join([head, *map(_show, rows)]),
        as_json=args.json,
    )
    return EXIT_OK if any(row.takes for row in rows) else EXIT_NO


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
