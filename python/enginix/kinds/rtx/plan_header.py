"""The beginning of a plan: magic, length, version of the library, target GPUs."""

from __future__ import annotations

import struct
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from enginix.kinds.rtx.errors import PlanError
from enginix.tables import load_table

_FIX = "build the engine again"


@dataclass(frozen=True)
class PlanHeader:
    """What a plan says of itself.

    Attributes:
        length: bytes of the whole plan.
        version: of the library, for instance ``1.7.1.116``.
        targets: SMs that it is for, sorted.
    """

    length: int
    version: str
    targets: tuple[int, ...]


def read_plan_header(path: Path) -> PlanHeader:
    """Read the header of a plan.

    Raises:
        PlanError: the file is no plan, or names a GPU that no row of rtx.json has.
    """
    row, bits = load_table("rtx")["plan"], load_table("rtx")["targets"]["bits"]
    with path.open("rb") as file:
        head = file.read(64)
    if len(head) < 64 or not head.startswith(row["magic"].encode()):
        raise PlanError(f"begins with {head[:4]!r}, not {row['magic']!r}", where=str(path), fix=_FIX)
    (length,) = struct.unpack_from("<Q", head, row["lengthOffset"])
    version = ".".join(map(str, head[row["versionOffset"] : row["versionOffset"] + 4]))
    mask = head[row["targetsOffset"]]
    unknown = mask & ~sum(bits.values())
    if unknown:
        raise PlanError(
            f"is for GPUs that were not asked for: mask {mask:#04x}, unknown {unknown:#04x}",
            where=str(path),
            fix=_FIX,
        )
    return PlanHeader(length, version, tuple(sorted(int(sm) for sm, bit in bits.items() if mask & bit)))


def check_plan_header(path: Path, version: str, targets: Collection[int]) -> PlanHeader:
    """Compare a plan's header with its file and with what was asked for.

    Raises:
        PlanError: the length, the version or the targets differ.
    """
    header, size = read_plan_header(path), path.stat().st_size
    for what, stated, expected in (
        ("length", header.length, size),
        ("version of TensorRT for RTX", header.version, version),
        ("target SMs", list(header.targets), sorted(targets)),
    ):
        if stated != expected:
            raise PlanError(f"{what} is {stated}, expected {expected}", where=str(path), fix=_FIX)
    return header
