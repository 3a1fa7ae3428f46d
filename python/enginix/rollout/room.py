"""Whether a second server fits beside the running one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from enginix.engine.target import Gpu, Machine, probe
from enginix.errors import MachineError
from enginix.runtime import driver

_MIB = 1 << 20
# The processes of a reference server beside its weights: three Pythons, one of them with torch.
_PROCESSES = 1 << 30


@dataclass(frozen=True)
class Room:
    """What a trial needs and what is free, in MiB, and of what."""

    needed: int
    free: int
    of: str

    @property
    def enough(self) -> bool:
        return self.free >= self.needed

    def __str__(self) -> str:
        return f"{self.needed} MiB needed on {self.of}, {self.free} free"


def of_gpus(names: Sequence[str], needed: int, machine: Machine | None = None) -> Room:
    """The fullest of the GPUs, by index or UUID.

    Raises:
        MachineError: no driver, or no such GPU.
    """
    machine = machine if machine is not None else probe(driver.find(None))
    fullest = min((_gpu(machine, name) for name in names), key=lambda gpu: gpu.free)
    return Room(needed, fullest.free // _MIB, f"GPU {fullest.index}")


def _gpu(machine: Machine, name: str) -> Gpu:
    for gpu in machine.gpus:
        if name in (str(gpu.index), gpu.uuid):
            return gpu
    known = ", ".join(f"{g.index} ({g.uuid})" for g in machine.gpus)
    raise MachineError(f"there is no GPU {name}", where="this machine", fix=f"it has {known}")


def of_host(needed: int, meminfo: Path = Path("/proc/meminfo")) -> Room:
    """The machine's own memory.

    Raises:
        MachineError: the kernel does not say what is available.
    """
    for line in meminfo.read_text("utf-8").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return Room(needed, int(value.split()[0]) // 1024, "this machine")
    raise MachineError("the kernel does not tell MemAvailable", where=str(meminfo))


def of_files(directory: Path) -> int:
    """MiB that a server on the CPU needs for what lies in a directory, links followed, each file once."""
    seen: dict[tuple[int, int], int] = {}
    for folder, _, names in os.walk(directory, followlinks=True):
        for name in names:
            found = (Path(folder) / name).stat()
            seen[found.st_dev, found.st_ino] = found.st_size
    return (sum(seen.values()) + _PROCESSES) // _MIB
