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
# Words that people and drivers write, and that tell no part from another.
_NOISE = frozenset(
    [
        *(
            "",
            "blackwell",
            "core",
            "desktop",
            "dgx",
            "edition",
            "geforce",
            "generation",
            "gpu",
            "hbm2",
            "hbm2e",
        ),
        *(
            "hbm3",
            "hbm3e",
            "hgx",
            "nvidia",
            "nvl36",
            "nvl72",
            "pcie",
            "server",
            "sxm",
            "sxm2",
            "sxm3",
            "sxm4",
        ),
        *("sxm5", "sxm6", "tensor", "tesla", "workstation"),
    ]
)
_SEPARATORS = str.maketrans(dict.fromkeys("_-(),/®™", " "))
_SIZED = re.compile(r"(.+)-([1-9]\d*)gb", re.ASCII)
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
    if (known := _find_known(plain, rows)) is not None:
        return _make_row(known, rows[known])
    if unnamed := _UNNAMED.fullmatch(plain):
        return _describe_unnamed(plain, int(unnamed[1]), int(unnamed[2] or 0), table["formatsBySm"]["rows"])
    if sizes := list_sizes(name):
        # What fits the smaller fits the larger, too; an engine runs on both.
        smallest = min(sizes, key=lambda known: int(rows[known]["memoryGB"]))
        return _make_row(smallest, rows[smallest])
    if (sized := _SIZED.fullmatch(plain)) and (known := _find_known(sized[1], rows)) is not None:
        row, gigabytes = rows[known], int(sized[2])
        if row["memoryGB"] == gigabytes:
            return _make_row(known, row)
        # The part's SM, with the memory that the name says.
        unnamed_name = f"sm{row['sm']}-{gigabytes}gb"
        return _describe_unnamed(unnamed_name, row["sm"], gigabytes, table["formatsBySm"]["rows"])
    near = suggest_name(plain, rows, "enginix target lists the names")
    raise UsageError(f"unknown target {name!r}", fix=f"{near}; {ANOTHER_GPU}")


def list_sizes(name: str) -> list[str]:
    """Return the rows that a name without a memory stands for, if there are several: ``a100`` has two."""
    plain, rows = normalize_name(name), load_table("gpus")["gpus"]
    known = _find_known(plain, rows)
    pattern = re.compile(rf"(rtx-)?{re.escape(plain)}-\d+gb")
    sizes = [row for row in rows if row == known or pattern.fullmatch(row)]
    return sizes if len(sizes) > 1 else []


def explain_size(name: str) -> str | None:
    """Return which of several sizes of memory a name was taken for, and what to say for another."""
    sizes = list_sizes(name)
    if not sizes:
        return None
    taken = find_gpu(name).name
    others = " or ".join(size for size in sizes if size != taken)
    return f"target {name!r} was taken for {taken}; say {others} for the other memory"


def _find_known(plain: str, rows: dict[str, Any]) -> str | None:
    """Return the table's name of a part: as it is, by an alias, or behind ``rtx-``."""
    if plain in rows:
        return plain
    named = [known for known, row in rows.items() if plain in row.get("aliases", ())]
    if named:
        return named[0]
    return f"rtx-{plain}" if f"rtx-{plain}" in rows else None


def normalize_name(name: str) -> str:
    """Return a name as the table writes it: ``NVIDIA GeForce RTX 4090`` becomes ``rtx-4090``."""
    words: list[str] = []
    for word in name.lower().translate(_SEPARATORS).split(" "):
        if word in ("gb", "gib") and words and re.fullmatch("[0-9]+", words[-1]):
            words[-1] += "gb"
        elif word not in _NOISE:
            words += _split_word(word)
    return "-".join(words)


def _split_word(word: str) -> list[str]:
    """Split ``rtx2080ti`` into ``rtx``, ``2080`` and ``ti``."""
    if glued := re.fullmatch("(rtx|gtx)([0-9].*)", word):
        return [glued[1], *_split_word(glued[2])]
    if number := re.fullmatch("([0-9]{4})(ti|super|d)", word):
        return [number[1], number[2]]
    return [word]


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
