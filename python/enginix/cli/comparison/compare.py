"""Compares artefacts in one table and one plot; or shows all kinds of engines of one model side by side.

  enginix compare ./engine-bf16 ./engine-fp8 ./engine-int4 ./engine-nvfp4 -o compare.html

shows of engines of every kind, checkpoints, and models: size on disk, bits a weight, format, perplexity with
its interval, agreement, KL divergence and questions answered as the gates found them (gates.json), and tokens
a second, as enginix bench --engine measured it (DIR.bench.json beside the engine), or as a file says that
--speed names: {"on": "machine, tool, load", "tokensPerSecond": {"NAME": 123}}.
A missing figure is "not measured". Below are seconds and memory of the builds that have a run log beside them
(DIR.run.json). Exit code 1: an artefact contradicts itself; the line says where.

  enginix compare ./tiny-qwen3
  enginix compare model.lock.json --target rtx-5090

shows what each kind takes of a model (a directory or its lock; no weight is read), what it needs, and where
it runs. With --target, kinds that this GPU does not run say why. Sizes are estimates. Exit code 1: no kind
takes it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from enginix import console
from enginix.cli.option_shapes import add_output, add_path
from enginix.errors import EXIT_CHECK_FAILED, EXIT_OK, UsageError

if TYPE_CHECKING:
    from enginix.report.kinds import KindRow


MOST_GPUS = 12  # in one line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "artefacts",
        type=Path,
        nargs="+",
        metavar="ARTEFACT",
        help="engine, checkpoint or model; or one lock file",
    )
    parser.add_argument(
        "--target", metavar="GPU", help="for one model: GPU to check kinds against (enginix target)"
    )
    add_path(parser, "--speed", "JSON", "for artefacts: file with measured tokens per second")
    add_output(parser, "FILE", "for artefacts: HTML page to write")


def run(args: argparse.Namespace) -> int:
    if (
        len(args.artefacts) == 1
        and args.output is None
        and args.speed is None
        and _is_model(args.artefacts[0])
    ):
        return _compare_kinds(args)
    if args.target is not None:
        raise UsageError("--target is for the kinds of one model", fix="leave it out, or pass one model")
    from enginix.files import write_new_text
    from enginix.output_path import require_absent_file
    from enginix.report import gate_figures
    from enginix.report.artefacts import read_artefact
    from enginix.report.comparison.artefact_comparison import compare_artefacts
    from enginix.report.comparison.page import render_comparison_page
    from enginix.report.comparison.text import render_comparison_text

    if args.output is not None:
        require_absent_file(args.output)
    speeds = None if args.speed is None else gate_figures.read_speeds(args.speed)
    artefact_comparison = compare_artefacts([read_artefact(path) for path in args.artefacts], speeds)
    if args.output is not None:
        page = write_new_text(args.output, render_comparison_page(artefact_comparison))
        console.print_message(f"page: {page}")
    console.print_result(
        artefact_comparison.as_json(), render_comparison_text(artefact_comparison, console.find_table_width())
    )
    return EXIT_CHECK_FAILED if artefact_comparison.has_doubts else EXIT_OK


def _is_model(path: Path) -> bool:
    """Tell whether a path is a model: a lock, or a directory that is neither checkpoint nor engine."""
    from enginix import manifest

    if (path / manifest.MANIFEST_FILE).exists():
        return manifest.read_manifest(path).artefact in ("model", "quantized-model")
    return not (path / "rank0.safetensors").exists()


def _compare_kinds(args: argparse.Namespace) -> int:
    from enginix.report.kinds import compare_kinds, read_compared_model

    model = read_compared_model(args.artefacts[0])
    rows = compare_kinds(model, args.target)
    head = f"{model.name}: {model.architecture}, {model.quantization or 'not quantized'}"
    console.print_result(
        {"model": model.name, "target": args.target, "kinds": [asdict(row) for row in rows]},
        "\n".join([head, *(_format_kind(row, args.target) for row in rows)]),
    )
    return EXIT_OK if any(row.takes for row in rows) else EXIT_CHECK_FAILED


def _format_gpus(names: Sequence[str]) -> str:
    """List a few GPUs; of more than a person reads only their number."""
    if len(names) <= MOST_GPUS:
        return ", ".join(names)
    return f"{len(names)} GPUs that enginix target lists; --target GPU asks about one"


def _format_kind(row: KindRow, target: str | None) -> str:
    verdict = {True: "yes", False: "no", None: "maybe"}[row.takes]
    lines = [
        f"{row.kind}: {verdict}{'; ' * bool(row.why)}{'; '.join(row.why)}",
        f"  is      {row.described['is']}",
    ]
    if row.takes is not False:
        runs = "any machine, CPU or GPU" if row.targets is None else target or _format_gpus(row.targets)
        lines += [
            f"  size    about {console.format_bytes(row.size)}",
            f"  build   {row.described['build']}",
            f"  runs on {runs} ({row.described['gpus']})",
            f"  server  {row.described['server']}",
        ]
    lines.append(f"  future  {row.described['future']}")
    return "\n".join(console.wrap_line(line, 10) for line in lines)
