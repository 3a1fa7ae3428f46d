"""Lists the targets: GPUs by the names that --target takes, with SM, memory and number formats.

  enginix target                     all of them, and which this machine has
  enginix target h200 'RTX 5090'     these, with the sources of their rows
  enginix target a100                both sizes of memory; --target takes the smaller
  enginix target sm89-16gb           any other GPU, by its SM and its memory in GB
  enginix target --this-machine      what to pass to --target for each GPU here

Formats are the number formats that ModelOpt and TensorRT-LLM name for the part's generation. Formats that
engines of kind tensorrt do not take there are named beside them.
"""

from __future__ import annotations

import argparse
from typing import Any

from enginix import console
from enginix.cli.option_shapes import add_flag, add_path
from enginix.console import format_bytes
from enginix.errors import EXIT_OK, MachineError, UsageError
from enginix.machine import driver
from enginix.machine.gpu_table import find_gpu, list_gpu_names, list_sizes
from enginix.machine.kind_support import has_code, list_running_kinds
from enginix.machine.target import Machine, Target, find_target, name_target, probe_machine
from enginix.model.number_formats import read_algorithms, supports_sm
from enginix.tables import load_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="targets to list (default: all)")
    add_flag(parser, "--this-machine", "name this machine's GPUs; exit 5 without one")
    add_path(parser, "--driver", "DIR", "the GPU driver's root (default: found)")


def run(args: argparse.Namespace) -> int:
    if args.this_machine:
        return _print_this_machine(args)
    names = [size for name in args.names for size in list_sizes(name) or [name]]
    chosen = [find_target(name) for name in names or list_gpu_names()]
    machine: Machine | None = None
    try:
        machine = probe_machine(driver.find_driver(args.driver))
    except MachineError as e:
        if args.driver is not None:
            raise
        console.print_message(f"note: {e.what}")
    rows = [_target_row(t, machine) for t in chosen]
    lines = [_format_target(row) for row in rows]
    if args.names:
        lines = [f"{line}\n  source: {row['source']}" for line, row in zip(lines, rows, strict=True)]
    listing: dict[str, Any] = {"targets": rows, "machine": machine.as_json() if machine else None}
    console.print_result(listing, "\n".join(lines))
    return EXIT_OK


def _print_this_machine(args: argparse.Namespace) -> int:
    """Print the target of each GPU that is here; fails where the driver tells none."""
    machine = probe_machine(driver.find_driver(args.driver))
    rows, lines = [], []
    for gpu in machine.gpus:
        name: str | None = name_target(gpu)
        refusal = ""
        try:
            find_gpu(str(name))
        except UsageError as e:
            name, refusal = None, f"; no target: {e.what} (fix: {e.fix})"
        row = {"target": name, "index": gpu.index, "product": gpu.name, "sm": gpu.sm, "memory": gpu.total}
        rows.append(row)
        lines.append(
            f"{name or '-':<16} GPU {gpu.index}: {gpu.name}, SM {gpu.sm}, {format_bytes(gpu.total)}{refusal}"
        )
    console.print_result({"driver": machine.driver, "gpus": rows}, "\n".join(lines))
    return EXIT_OK


def _target_row(gpu_target: Target, machine: Machine | None) -> dict[str, Any]:
    row, algorithms = find_gpu(gpu_target.name), read_algorithms()
    representatives = load_table("number_formats")["gpuFormats"]
    return {
        "name": row.name,
        "product": row.product,
        "part": row.part,
        "sm": row.sm,
        "memory": row.memory or None,
        "unified": row.unified,
        "formats": list(row.formats),
        "kinds": list_running_kinds(row),
        "tensorrtFormats": [
            f
            for f in row.formats
            if has_code("tensorrt", row) and supports_sm(algorithms[representatives[f]], row.sm)
        ],
        "here": sum(g.sm == row.sm and gpu_target.is_product(g.name, g.total) for g in machine.gpus)
        if machine
        else 0,
        "source": row.source,
    }


def _format_target(row: dict[str, Any]) -> str:
    memory = format_bytes(row["memory"]) if row["memory"] else "memory unknown"
    shared = ", shared with the CPU" if row["unified"] else ""
    lacking = [f for f in row["formats"] if f not in row["tensorrtFormats"]]
    refused = ""
    if "tensorrt" not in row["kinds"]:
        refused = f"; kinds: {', '.join(row['kinds'])}"
    elif lacking:
        refused = f"; engines of kind tensorrt take no {', '.join(lacking)}"
    presence = f"  ← {row['here']} here" if row["here"] else ""
    return console.wrap_line(
        f"{row['name']:<16} SM {row['sm']:<4} {memory + shared:<14} {row['part']:<12} "
        f"{', '.join(row['formats'])}{refused}{presence}",
        17,
    )
