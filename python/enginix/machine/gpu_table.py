"""The GPUs that --target names: rows of data/machine/gpus.json, and any other part by its SM and memory.

nix/check/gpus.nix reads names in the same way; tests/python/engine_tensorrt/test_twin_gpus.py holds the
two together.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from enginix.errors import UsageError
from enginix.tables import load_table
from enginix.wording import suggest_name

ANOTHER_GPU = "a GPU that has no name here is written sm89-16gb: its SM and its memory in GB"
_SIZED = re.compile(r"(.+)-([1-9][0-9]{0,5})gb", re.ASCII)
_UNNAMED = re.compile(r"sm([1-9][0-9]{1,2})(?:-([1-9][0-9]{0,5})gb)?(-unlisted)?", re.ASCII)
# A slice of a GPU, named by its memory: of MIG ("a100-40gb-mig-1g.5gb") or of a vGPU ("a10-12q").
_MIG_SLICE = re.compile(r"(.+)-(?:[1-7]c\.)?[1-9]g\.([1-9][0-9]{0,5})gb(?:[.-](?:me|gfx|all))*", re.ASCII)
_VIRTUAL_GPU = re.compile(r"(.+?)(?:-[1-7])?-([1-9][0-9]{0,2})[abcq](?:nome|meall|me|gfx)?", re.ASCII)
# The end of a row's name that is its memory.
_OWN_SIZE = re.compile(r"-[0-9]+gb$", re.ASCII)


@dataclass(frozen=True)
class TargetGpu:
    """A target GPU.

    Attributes:
        name: as the table has it, or ``sm89-16gb``.
        memory: bytes as a driver reports them if known, else the maker's gigabytes of 10^9; 0 for unknown.
        formats: number formats that NVIDIA's software executes on it.
        unified: its memory is the CPU's as well.
        system: the only system that has the part, in Nix's words; None for any.
        is_listed: whether the table has its SM.
    """

    name: str
    sm: int
    memory: int
    formats: tuple[str, ...] = ()
    unified: bool = False
    system: str | None = None
    is_listed: bool = True


@dataclass(frozen=True, kw_only=True)
class GpuRow(TargetGpu):
    """One GPU of the table, or one that the user described, with what is known of its part."""

    product: str
    part: str
    source: str


def list_gpu_names() -> list[str]:
    """Return the names of the table, in its order."""
    return list(load_table("gpus")["gpus"])


def find_gpu(name: str) -> GpuRow:
    """Return the GPU of that name: ``rtx-4090``, ``NVIDIA GeForce RTX 4090`` or ``sm89-24gb``.

    A name that stands for two sizes of memory, such as ``a100``, is the part with less. A part's name with
    another memory (``rtx-4090-48gb``, ``a10-12q``, ``a100-40gb-mig-1g.5gb``) is the part with that memory.

    Raises:
        UsageError: the name is unknown, or no GPU has its SM; the fix names the nearest one.
    """
    rows = load_table("gpus")["gpus"]
    plain = normalize_name(name)
    if (known := _find_known(plain, rows)) is not None:
        return _make_row(known, rows[known])
    if unnamed := _UNNAMED.fullmatch(plain):
        return _describe_unnamed(plain, int(unnamed[1]), int(unnamed[2] or 0), unnamed[3] is None)
    if (smallest := _find_smallest(plain, rows)) is not None:
        return _make_row(smallest, rows[smallest])
    for pattern in (_MIG_SLICE, _SIZED, _VIRTUAL_GPU):
        if sized := pattern.fullmatch(plain):
            find = _find_part if pattern is _SIZED else _find_sliced_part
            if (known := find(sized[1], rows)) is not None:
                return _resize_row(known, rows[known], int(sized[2]))
    for foreign in load_table("gpus")["names"]["foreign"]:
        if re.fullmatch(foreign["pattern"], plain):
            raise UsageError(
                f"target {name!r} {foreign['why']}",
                fix='use another GPU; kind "reference" runs on a CPU, without a target',
            )
    near = suggest_name(plain, rows, "enginix target lists the names")
    raise UsageError(f"unknown target {name!r}", fix=f"{near}; {ANOTHER_GPU}")


def _find_smallest(plain: str, rows: dict[str, Any]) -> str | None:
    """Return the row with the least memory of a name that stands for several; None for other names.

    What fits the smaller fits the larger, too; an engine runs on both.
    """
    sizes = list_sizes(plain)
    return min(sizes, key=lambda known: int(rows[known]["memoryGB"])) if sizes else None


def _find_part(plain: str, rows: dict[str, Any]) -> str | None:
    """Return the row of a part's name, whatever its memory."""
    known = _find_known(plain, rows)
    return known if known is not None else _find_smallest(plain, rows)


def _find_sliced_part(plain: str, rows: dict[str, Any]) -> str | None:
    """Return the row of a part that is sliced: a label has the whole part's memory, a vGPU type its board."""
    boards: dict[str, str] = load_table("gpus")["names"]["boards"]
    plain = plain.removesuffix("-mig")
    known = _find_part(plain, rows) or boards.get(plain)
    return known if known is not None else _find_part(_OWN_SIZE.sub("", plain), rows)


def _resize_row(known: str, row: dict[str, Any], gigabytes: int) -> GpuRow:
    """Return a row with the memory that a name says."""
    if row["memoryGB"] == gigabytes:
        return _make_row(known, row)
    product = re.sub(r" \(.*| \d+GB", "", row["product"])
    return replace(
        _make_row(known, row),
        name=name_size(known, gigabytes),
        product=f"{product} {gigabytes}GB",
        memory=gigabytes * 10**9,
    )


def name_size(known: str, gigabytes: int) -> str:
    """Return the name of a row's part with another memory: ``rtx-4090-48gb``."""
    return f"{_OWN_SIZE.sub('', known)}-{gigabytes}gb"


def list_sizes(name: str) -> list[str]:
    """Return the rows that a name without a memory stands for, if there are several: ``a100`` has two."""
    plain, rows = normalize_name(name), load_table("gpus")["gpus"]
    known = _find_known(plain, rows)
    pattern = re.compile(rf"(rtx-|jetson-)?{re.escape(plain)}-\d+gb")
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
    """Return the table's name of a part: as it is, by an alias, or behind ``rtx-`` or ``jetson-``."""
    if plain in rows:
        return plain
    named = [known for known, row in rows.items() if plain in row.get("aliases", ())]
    if named:
        return named[0]
    return next((f"{maker}-{plain}" for maker in ("rtx", "jetson") if f"{maker}-{plain}" in rows), None)


def normalize_name(name: str) -> str:
    """Return a name as the table writes it: ``NVIDIA GeForce RTX 4090`` becomes ``rtx-4090``."""
    table = load_table("gpus")["names"]
    separators = str.maketrans(dict.fromkeys("".join(table["separators"]), " "))
    words: list[str] = []
    for word in name.lower().translate(separators).split(" "):
        if word in ("gb", "gib", "g") and words and re.fullmatch("[0-9]+", words[-1]):
            words[-1] += "gb"
        elif word not in table["noise"]:
            words += [part for part in _split_word(word) if part not in table["noise"]]
    if words[-1:] == ["laptop"] and re.fullmatch("[0-9]+gb", "".join(words[-2:-1])):
        words[-2:] = ["laptop", words[-2]]  # a driver's "RTX A3000 12GB Laptop GPU"
    return "-".join(words)


def _split_word(word: str) -> list[str]:
    """Split ``rtx2080ti`` into ``rtx``, ``2080`` and ``ti``; ``80g`` is ``80gb``."""
    if size := re.fullmatch("([0-9]+)(g|gib)", word):
        return [f"{size[1]}gb"]
    if glued := re.fullmatch("(rtx|gtx)(pro|a?[0-9])(.*)", word):
        if glued[2] == "pro":
            return [glued[1], "pro", *(_split_word(glued[3]) if glued[3] else [])]
        return [glued[1], *_split_word(glued[2] + glued[3])]
    if number := re.fullmatch("(a?[0-9]{4})(ti|super|ada|laptop|d)(.*)", word):
        return [number[1], number[2], *(_split_word(number[3]) if number[3] else [])]
    if board := re.fullmatch("([a-z]+[0-9]+)(sxm[0-9]?|pcie|nvl)", word):
        return [board[1], board[2]]
    if rest := re.fullmatch("(super|laptop|gpu)(.+)", word):
        return [rest[1], *_split_word(rest[2])]
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
        row["sm"],
        memory,
        tuple(row["formats"]),
        row.get("unified", False),
        load_table("gpus")["partSystems"].get(row["part"]),
        product=row["product"],
        part=row["part"],
        source=row["source"],
    )


def _describe_unnamed(name: str, sm: int, gigabytes: int, is_listed: bool) -> GpuRow:
    table = load_table("gpus")
    formats, known = table["formatsBySm"]["rows"], table["sms"]["known"]
    if sm not in known and is_listed:
        nearest = [*[k for k in known if k < sm][-1:], *[k for k in known if k > sm][:1]]
        raise UsageError(
            f"target {name!r}: no GPU with SM {sm} is known; nearest: {', '.join(map(str, nearest))}",
            fix=f"write one of these; for a GPU that enginix does not know yet {name}-unlisted",
        )
    reached = [row["formats"] for row in formats if row["least"] <= sm]
    if not reached:
        raise UsageError(
            f"target {name!r}: SM {sm} is before SM {formats[0]['least']}",
            fix='use a newer GPU; kind "reference" runs on a CPU, without a target',
        )
    return GpuRow(
        name,
        sm,
        gigabytes * 10**9,
        tuple(reached[-1]),
        is_listed=is_listed,
        product=f"a GPU of SM {sm}",
        part="other",
        source="SM and memory as the name gives them; formats by SM (formatSources)",
    )
