"""Lists the targets: GPUs by the names that --target takes, with SM, memory and number formats.

  enginix target                     all of them, and which this machine has
  enginix target h200 rtx-5090       these, with the sources of their rows

Formats are the number formats that NVIDIA's software computes with on the part. Formats that engines of kind
tensorrt do not take there are named beside them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from enginix import console
from enginix.console import format_bytes
from enginix.errors import MachineError
from enginix.machine import driver
from enginix.machine.target import Machine, Target, find_target, probe_machine
from enginix.model.number_formats import read_algorithms, supports_sm
from enginix.tables import load_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="targets to list (default: all)")
    parser.add_argument("--driver", type=Path, metavar="DIR", help="the GPU driver's root (default: found)")


def run(args: argparse.Namespace) -> int:
    chosen = [find_target(name) for name in args.names or load_table("gpus")["gpus"]]
    machine: Machine | None = None
    try:
        machine = probe_machine(driver.find_driver(args.driver))
    except MachineError as e:
        console.print_message(f"note: {e.what}")
    rows = [_target_row(t, machine) for t in chosen]
    lines = [_format_target(row) for row in rows]
    if args.names:
        lines = [f"{line}\n  source: {row['source']}" for line, row in zip(lines, rows, strict=True)]
    listing: dict[str, Any] = {"targets": rows, "machine": machine.as_json() if machine else None}
    console.print_result(listing, "\n".join(lines), as_json=args.json)
    return 0


def _target_row(gpu_target: Target, machine: Machine | None) -> dict[str, Any]:
    row, algorithms = load_table("gpus")["gpus"][gpu_target.name], read_algorithms()
    representatives = load_table("number_formats")["gpuFormats"]
    memory = (row.get("memoryMiB") or 0) << 20 or (row["memoryGB"] or 0) * 10**9
    return {
        "name": gpu_target.name,
        "product": gpu_target.product,
        "part": row["part"],
        "sm": gpu_target.sm,
        "memory": memory or None,
        "unified": row.get("unified", False),
        "formats": row["formats"],
        "tensorrtFormats": [
            f for f in row["formats"] if supports_sm(algorithms[representatives[f]], gpu_target.sm)
        ],
        "here": sum(g.sm == gpu_target.sm and gpu_target.is_product(g.name) for g in machine.gpus)
        if machine
        else 0,
        "source": row["source"],
    }


def _format_target(row: dict[str, Any]) -> str:
    memory = format_bytes(row["memory"]) if row["memory"] else "memory unknown"
    shared = ", shared with the CPU" if row["unified"] else ""
    lacking = [f for f in row["formats"] if f not in row["tensorrtFormats"]]
    refused = f"; engines of kind tensorrt take no {', '.join(lacking)}" if lacking else ""
    presence = f"  ← {row['here']} here" if row["here"] else ""
    return (
        f"{row['name']:<16} SM {row['sm']:<4} {memory + shared:<14} {row['part']:<12} "
        f"{', '.join(row['formats'])}{refused}{presence}"
    )
