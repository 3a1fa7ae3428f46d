"""Tells which targets there are: GPUs by the names that --target takes, with SM, memory and number formats.

  enginix target                     all of them, and which this machine has
  enginix target h200 rtx-5090       these, with the sources of their rows

Formats are what NVIDIA's software computes with on the part. Which of them engines of kind tensorrt do not
take there is told beside them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from enginix import console
from enginix.console import human_bytes
from enginix.engine.target import Machine, Target, probe, target
from enginix.errors import MachineError
from enginix.runtime import driver
from enginix.tables import table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="targets (default: all)")
    parser.add_argument("--driver", type=Path, metavar="DIR", help="the GPU driver's root (default: found)")


def run(args: argparse.Namespace) -> int:
    chosen = [target(name) for name in args.names or table("gpus")["gpus"]]
    machine: Machine | None = None
    try:
        machine = probe(driver.find(args.driver))
    except MachineError as e:
        console.say(f"note: {e.what}")
    rows = [_row(t, machine) for t in chosen]
    lines = [_line(row) for row in rows]
    if args.names:
        lines = [f"{line}\n  source: {row['source']}" for line, row in zip(lines, rows, strict=True)]
    told: dict[str, Any] = {"targets": rows, "machine": machine.as_json() if machine else None}
    console.result(told, "\n".join(lines), as_json=args.json)
    return 0


def _row(wanted: Target, machine: Machine | None) -> dict[str, Any]:
    row, support = table("gpus")["gpus"][wanted.name], table("quantization_support")
    known = {name: support["algorithms"][algorithm] for name, algorithm in support["formats"].items()}

    def taken(name: str) -> bool:
        least, refused = known[name]["minSm"], known[name]["refusedSm"]
        inside = refused is not None and refused[0] <= wanted.sm < refused[1]
        return (least is None or wanted.sm >= least) and not inside

    memory = (row.get("memoryMiB") or 0) << 20 or (row["memoryGB"] or 0) * 10**9
    return {
        "name": wanted.name,
        "product": wanted.product,
        "part": row["part"],
        "sm": wanted.sm,
        "memory": memory or None,
        "unified": row.get("unified", False),
        "formats": row["formats"],
        "tensorrtFormats": [name for name in row["formats"] if taken(name)],
        "here": sum(g.sm == wanted.sm and wanted.is_product(g.name) for g in machine.gpus) if machine else 0,
        "source": row["source"],
    }


def _line(row: dict[str, Any]) -> str:
    memory = human_bytes(row["memory"]) if row["memory"] else "memory unknown"
    shared = ", shared with the CPU" if row["unified"] else ""
    lacking = [f for f in row["formats"] if f not in row["tensorrtFormats"]]
    refused = f"; engines of kind tensorrt take no {', '.join(lacking)}" if lacking else ""
    here = f"  ← {row['here']} here" if row["here"] else ""
    return (
        f"{row['name']:<16} SM {row['sm']:<4} {memory + shared:<14} {row['part']:<12} "
        f"{', '.join(row['formats'])}{refused}{here}"
    )
