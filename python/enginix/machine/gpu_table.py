"""The GPUs that --target names: rows of data/machine/gpus.json, and any other part by its SM and memory.

nix/check/gpus.nix reads names in the same way; tests/python/engine_tensorrt/test_twin.py holds the two
together.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from enginix.errors import UsageError
from enginix.tables import load_table
from enginix.wording import suggest_name

ANOTHER_GPU = "a GPU that has no name here is written sm89-16gb: its SM and its memory in GB"
# Words that people write and that tell no part from another.
_MAKER_WORDS = ("", "nvidia", "geforce", "tesla", "gpu")
_UNNAMED = re.compile(r"sm([1-9]\d{1,2})(?:-([1-9]\d*)gb)?", re.ASCII)


@dataclass(frozen=True)
class GpuRow:
    """One GPU of the table, or one that the user described.

    Attributes:
        name: as the table has it, or ``sm89-16gb``.
        memory: bytes as a driver reports them if known, else the maker's gigabytes of 10^9; 0 for unknown.
        formats: number formats that NVIDIA's software executes on it.
        unified: its memory is the CPU's as well.
        system: the only system that has the part, in Nix's words; None for any.
    """

    name: str
    product: str
    part: str
    sm: int
    memory: int
    formats: tuple[str, ...]
    unified: bool
    source: str
    system: str | None = None


def list_gpu_names() -> list[str]:
    """Return the names of the table, in its order."""
    return list(load_table("gpus")["gpus"])


def find_gpu(name: str) -> GpuRow:
    """Return the GPU of that name: ``rtx-4090``, ``NVIDIA GeForce RTX 4090`` or ``sm89-24gb``.

    A name that stands for two sizes of memory, such as ``a100``, is the part with less.

    Raises:
        UsageError: the name is unknown; the fix names the nearest one.
    """
    table = load_table("gpus")
    rows = table["gpus"]
    plain = normalize_name(name)
    if plain in rows:
        return _make_row(plain, rows[plain])
    for known, row in rows.items():
        if plain in row.get("aliases", ()):
            return _make_row(known, row)
    if unnamed := _UNNAMED.fullmatch(plain):
        return _describe_unnamed(plain, int(unnamed[1]), int(unnamed[2] or 0), table["formatsBySm"]["rows"])
    if sizes := [known for known in rows if re.fullmatch(rf"{re.escape(plain)}-\d+gb", known)]:
        # What fits the smaller fits the larger, too; an engine runs on both.
        smallest = min(sizes, key=lambda known: int(rows[known]["memoryGB"]))
        return _make_row(smallest, rows[smallest])
    near = suggest_name(plain, rows, "enginix target lists the names")
    raise UsageError(f"unknown target {name!r}", fix=f"{near}; {ANOTHER_GPU}")


def normalize_name(name: str) -> str:
    """Return a name as the table writes it: ``NVIDIA GeForce RTX 4090`` becomes ``rtx-4090``."""
    words = [
        w for w in re.split(r"[ _-]+", name.lower()) if w not in ("nvidia", "geforce", "gpu", "tesla", "")
    ]
    return re.sub(r"^rtx(?=\d)", "rtx-", "-".join(words))


def describe_gpu(sm: int, memory: int) -> str:
    """Return the name of a GPU that the table does not have: ``sm89-16gb``; ``memory`` in bytes."""
    return f"sm{sm}-{memory // 10**9}gb"


def is_unnamed(name: str) -> bool:
    """Tell whether a target is described by its SM and memory: any GPU of that SM is it."""
    return _UNNAMED.fullmatch(name) is not None


def _make_row(name: str, row: dict[str, Any]) -> GpuRow:
    memory = int(row["memoryMiB"]) << 20 if row.get("memoryMiB") else (row["memoryGB"] or 0) * 10**9
    return GpuRow(
        name,
        row["product"],
        row["part"],
        row["sm"],
        memory,
        tuple(row["formats"]),
        row.get("unified", False),
        row["source"],
        load_table("gpus")["partSystems"].get(row["part"]),
    )


def _describe_unnamed(name: str, sm: int, gigabytes: int, formats: list[dict[str, Any]]) -> GpuRow:
    reached = [row["formats"] for row in formats if row["least"] <= sm]
    if not reached:
        raise UsageError(
            f"target {name!r}: SM {sm} is before SM {formats[0]['least']}", fix="use a newer GPU"
        )
    return GpuRow(
        name,
        f"a GPU of SM {sm}",
        "other",
        sm,
        gigabytes * 10**9,
        tuple(reached[-1]),
        False,
        "SM and memory as the name gives them; formats by SM (formatSources)",
    )
