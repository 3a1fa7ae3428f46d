"""The memory headroom for a second server beside the running one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from enginix.errors import MachineError
from enginix.files import measure_disk_size
from enginix.machine import driver
from enginix.machine.target import Machine, MachineGpu, probe_machine

_MIB = 1 << 20
# The processes of a reference server beside its weights: three Pythons, one of them with torch.
_PROCESSES = 1 << 30


@dataclass(frozen=True)
class MemoryHeadroom:
    """The memory that a trial needs and the free memory, in MiB, and the device that has it."""

    needed: int
    free: int
    of: str

    @property
    def is_enough(self) -> bool:
        return self.free >= self.needed

    def __str__(self) -> str:
        return f"{self.needed} MiB needed on {self.of}, {self.free} free"


def measure_gpu_headroom(names: Sequence[str], needed: int, machine: Machine | None = None) -> MemoryHeadroom:
    """Return the headroom of the fullest of the named GPUs (by index or UUID).

    Raises:
        MachineError: no driver, or no such GPU.
    """
    machine = machine if machine is not None else probe_machine(driver.find_driver(None))
    fullest = min((_find_named_gpu(machine, name) for name in names), key=lambda gpu: gpu.free)
    return MemoryHeadroom(needed, fullest.free // _MIB, f"GPU {fullest.index}")


def _find_named_gpu(machine: Machine, name: str) -> MachineGpu:
    for gpu in machine.gpus:
        if name in (str(gpu.index), gpu.uuid):
            return gpu
    known = ", ".join(f"{g.index} ({g.uuid})" for g in machine.gpus)
    raise MachineError(f"there is no GPU {name}", where="this machine", fix=f"it has {known}")


def measure_host_headroom(needed: int, meminfo: Path = Path("/proc/meminfo")) -> MemoryHeadroom:
    """Return the headroom of the machine's own memory.

    Raises:
        MachineError: the kernel does not report the available memory.
    """
    for line in meminfo.read_text("utf-8").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return MemoryHeadroom(needed, int(value.split()[0]) // 1024, "this machine")
    raise MachineError("the kernel does not report MemAvailable", where=meminfo)


def estimate_cpu_server(directory: Path) -> int:
    """Return the MiB that a CPU server needs for a directory's files, links followed, each file once."""
    return (measure_disk_size(directory) + _PROCESSES) // _MIB
