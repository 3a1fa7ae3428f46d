"""The GPUs of this machine, by the driver: from NVML, or from ``nvidia-smi`` where NVML cannot be loaded."""

from __future__ import annotations

import ctypes
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from enginix.errors import MachineError, UsageError
from enginix.machine.driver import Driver
from enginix.machine.gpu_table import GpuRow, describe_gpu, find_gpu, is_unnamed, list_gpu_names, name_size
from enginix.tables import load_table

_MIB = 1 << 20
_FIELDS = ("index", "name", "uuid", "compute_cap", "memory.total", "memory.free")


@dataclass(frozen=True)
class GpuProcess:
    """A process that computes on a GPU; ``memory`` in bytes, None if unknown."""

    pid: int
    memory: int | None


@dataclass(frozen=True)
class MachineGpu:
    """One GPU; memory in bytes."""

    index: int
    name: str
    uuid: str
    sm: int
    total: int
    free: int
    processes: tuple[GpuProcess, ...] = ()


@dataclass(frozen=True)
class Machine:
    """Driver and GPUs of this machine, as the driver reports them.

    Attributes:
        driver: the driver's version.
        cuda: newest CUDA that the driver supports, for instance ``13.0``; None if unknown.
        source: ``nvml`` or ``nvidia-smi``.
    """

    driver: str
    cuda: str | None
    gpus: tuple[MachineGpu, ...]
    source: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def only(self, sm: int) -> dict[str, str]:
        """Return variables that restrict CUDA to the GPUs of an SM; empty if there are no others.

        CUDA's own order puts the fastest GPU first, the driver's order is that of the bus. CUDA_DEVICE_ORDER
        makes CUDA use the bus order, so that both use the same indexes.
        """
        fitting = [str(g.index) for g in self.gpus if g.sm == sm]
        if len(fitting) in (0, len(self.gpus)):
            return {}
        return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(fitting)}


@dataclass(frozen=True)
class Target:
    """The GPU that an engine is for; a row of data/machine/gpus.json, or an SM and a size of memory."""

    name: str
    product: str
    sm: int

    def is_product(self, reported: str, memory: int | None = None) -> bool:
        """Tell whether a GPU name of the driver is this product: it has all of the product's words.

        Args:
            reported: as the driver says it, for instance ``NVIDIA GeForce RTX 4090``.
            memory: bytes as the driver reports them; tells parts of one name and two sizes of memory apart.
        """
        if is_unnamed(self.name):
            return True
        if not _has_product_words(self.product, reported):
            return False
        sizes = _split_product(self.product) - _list_product_words(self.product) - _split_product(reported)
        sizes = {word for word in sizes if re.fullmatch(r"\d+gb", word)}
        # A driver reports up to a tenth less than is on the box.
        return all(memory is not None and 0.88 < memory / (int(size[:-2]) << 30) <= 1.01 for size in sizes)


# Words of a product's name that make it another product.
_VARIANTS = {"3e", "d", "laptop", "nvl", "sff", "super", "ti", "v2"}


def _split_product(name: str) -> set[str]:
    return set(re.split(r"[ ()-]+", name.lower())) - {""}


def find_target(name: str) -> Target:
    """Return the target of that name, or of ``sm89-16gb``.

    Raises:
        UsageError: the name is unknown; suggests the nearest one.
    """
    row = find_gpu(name)
    return Target(row.name, row.product, row.sm)


def name_target(gpu: MachineGpu) -> str:
    """Return what ``--target`` takes for a GPU of this machine.

    That is its name in the table; where the table has another memory or none, the name with the memory that
    the driver reports (``rtx-4090-51gb``); else ``sm89-16gb``.
    """
    rows = [find_gpu(name) for name in list_gpu_names()]
    rows = [row for row in rows if row.sm == gpu.sm and _has_product_words(row.product, gpu.name)]
    if not rows:
        return _name_by_alias(gpu) or describe_gpu(gpu.sm, gpu.total)
    # "RTX 4000 SFF Ada" is no "RTX 4000 Ada": the product of the most words.
    most = max(len(_list_product_words(row.product)) for row in rows)
    rows = [row for row in rows if len(_list_product_words(row.product)) == most]
    fitting = [row.name for row in rows if row.memory and _is_size_of(row, gpu.total)]
    return fitting[0] if fitting else name_size(rows[0].name, gpu.total // 10**9)


def _name_by_alias(gpu: MachineGpu) -> str | None:
    """Return the row of what a driver calls a part otherwise, if it has that memory: ``NVIDIA Thor``."""
    try:
        row = find_gpu(gpu.name)
    except UsageError:
        return None
    is_row = row.sm == gpu.sm and row.name in list_gpu_names() and row.memory > 0
    return row.name if is_row and _is_size_of(row, gpu.total) else None


def _list_product_words(product: str) -> set[str]:
    # What is in parentheses is another name of it: "NVIDIA GB10 (DGX Spark)".
    return {word for word in _split_product(product.split(" (")[0]) if not re.fullmatch(r"\d+gb", word)}


def _has_product_words(product: str, reported: str) -> bool:
    product_words, reported_words = _list_product_words(product), _split_product(reported) | {"nvidia"}
    return product_words <= reported_words and not (reported_words - product_words) & _VARIANTS


def _is_size_of(row: GpuRow, memory: int) -> bool:
    """Tell whether reported bytes are the memory of a row.

    A driver reports up to a tenth less than is on the box; of a memory that the CPU shares, the kernel keeps
    up to a fifth.
    """
    stated = int(load_table("gpus")["gpus"][row.name]["memoryGB"]) << 30
    return (0.8 if row.unified else 0.88) < memory / stated <= 1.01


def probe_machine(driver: Driver) -> Machine:
    """Ask the driver for this machine's GPUs.

    Raises:
        MachineError: no driver, no GPU, or an unreadable answer.
    """
    nvml = _query_nvml(driver)
    if nvml is not None:
        return nvml
    smi = driver.program("nvidia-smi")
    if smi is None:
        raise MachineError(
            "no NVIDIA driver was found",
            where="this machine",
            fix="load the driver (NixOS: hardware.nvidia, hardware.graphics.enable), let "
            "/run/opengl-driver and /dev/nvidia* into the build "
            "(programs.nix-required-mounts.presets.nvidia-gpu), or pass --driver",
        )
    return _query_nvidia_smi(smi)


def _query_nvidia_smi(program: Path) -> Machine:
    # NVML could not be used.
    import csv
    import io

    from enginix import process

    def ask(what: str, fields: tuple[str, ...]) -> list[list[str]]:
        query = f"--query-{what}={','.join(fields)}"
        words: list[str | Path] = [program, query, "--format=csv,noheader,nounits"]
        done = process.run_program(words, timeout=30, check=False)
        if "No devices were found" in done.stdout + done.stderr:  # exit status 6, and 0 of older releases
            raise _make_no_gpu_error(str(program))
        if done.returncode != 0:
            message = (done.stderr or done.stdout).strip()[:200]
            raise MachineError(
                f"exit status {done.returncode}: {message or 'no message'}",
                where=str(program),
                fix="run it by hand; a driver that does not answer needs the machine to be started again",
            )
        rows = [[c.strip() for c in row] for row in csv.reader(io.StringIO(done.stdout)) if row]
        if any(len(row) != len(fields) for row in rows):
            raise MachineError(f"an answer that cannot be read: {done.stdout[:200]!r}", where=str(program))
        return rows

    def read_sm(name: str, reported: str) -> int:
        if not re.fullmatch(r"[0-9]+\.[0-9]", reported):  # "[N/A]": nvidia-smi of Jetson's older systems
            raise MachineError(
                f"the compute capability of {name!r} is {reported!r}",
                where=str(program),
                fix="pass --target: enginix target lists the names; sm87-64gb is a GPU of that SM and memory",
            )
        return int(reported.replace(".", ""))

    def size(reported: str, which: int) -> int:
        return int(reported) * _MIB if reported.isdigit() else _read_shared_memory()[which]

    try:
        gpu_rows = ask("gpu", (*_FIELDS, "driver_version"))
        process_rows = ask("compute-apps", ("gpu_uuid", "pid", "used_memory")) if gpu_rows else []
        processes_by_gpu: dict[str, list[GpuProcess]] = {}
        for uuid, pid, memory in process_rows:
            if pid.isdigit():  # not "[N/A]", as Jetson's has it
                used = int(memory) * _MIB if memory.isdigit() else None
                processes_by_gpu.setdefault(uuid, []).append(GpuProcess(int(pid), used))
        gpus = tuple(
            MachineGpu(
                index=int(row[0]),
                name=row[1],
                uuid=row[2],
                sm=read_sm(row[1], row[3]),
                total=size(row[4], 0),
                free=size(row[5], 1),
                processes=tuple(processes_by_gpu.get(row[2], ())),
            )
            for row in gpu_rows
        )
    except ValueError as e:
        raise MachineError(f"an answer that cannot be read: {e}", where=str(program)) from e
    if not gpus:
        raise _make_no_gpu_error(str(program))
    return Machine(driver=gpu_rows[0][6], cuda=None, gpus=gpus, source="nvidia-smi")


def _read_shared_memory(meminfo: Path = Path("/proc/meminfo")) -> tuple[int, int]:
    """Return the machine's total and available memory in bytes, for GPUs that share it.

    The driver reports no memory for such a GPU ("Not Supported", "[N/A]": NVIDIA DGX Spark user guide, known
    issues; Jetson).
    """
    rows = dict(line.split(":", 1) for line in meminfo.read_text("ascii").splitlines() if ":" in line)
    try:
        total, free = (int(rows[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    except (KeyError, ValueError, IndexError) as e:
        raise MachineError(
            "neither the driver nor the kernel reports the memory size", where=str(meminfo)
        ) from e
    return total, free


def _make_no_gpu_error(where: str) -> MachineError:
    return MachineError(
        "the driver is loaded, but no GPU is visible",
        where=where,
        fix="check CUDA_VISIBLE_DEVICES and /dev/nvidia*",
    )


_NOT_SUPPORTED = 3  # nvmlReturn_t in nvml.h


class _NvmlMemory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _NvmlProcess(ctypes.Structure):
    # nvmlProcessInfo_t of the _v2 and _v3 calls.
    _fields_ = (
        ("pid", ctypes.c_uint),
        ("memory", ctypes.c_ulonglong),
        ("gpuInstance", ctypes.c_uint),
        ("computeInstance", ctypes.c_uint),
    )


def _load_nvml(driver: Driver) -> ctypes.CDLL | None:
    driver_library = driver.library("libnvidia-ml.so.1")
    if driver.root is not None and driver_library is None:
        return None
    for name in filter(None, (str(driver_library) if driver_library else None, "libnvidia-ml.so.1")):
        try:
            return ctypes.CDLL(name)
        except OSError:
            # NVML is built against a newer C library than this Python's: use nvidia-smi.
            continue
    return None


def _query_nvml(driver: Driver) -> Machine | None:
    """Query NVML by its C interface (nvml.h, API version 2); None if it cannot be used."""
    lib = _load_nvml(driver)
    if lib is None or lib.nvmlInit_v2() != 0:
        return None
    try:
        return _read_nvml(lib)
    except AttributeError:
        return None
    finally:
        lib.nvmlShutdown()


def _read_nvml(lib: ctypes.CDLL) -> Machine | None:
    def text(call: Any, *args: Any) -> str:
        buffer = ctypes.create_string_buffer(96)
        if call(*args, buffer, ctypes.c_uint(len(buffer))) != 0:
            raise MachineError(
                "the driver does not answer", where="NVML", fix="run nvidia-smi and see what it says"
            )
        return buffer.value.decode("utf-8", "replace")

    version = text(lib.nvmlSystemGetDriverVersion)
    number, count = ctypes.c_int(), ctypes.c_uint()
    cuda = None
    if lib.nvmlSystemGetCudaDriverVersion_v2(ctypes.byref(number)) == 0:
        cuda = f"{number.value // 1000}.{number.value % 1000 // 10}"
    if lib.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0 or count.value == 0:
        raise _make_no_gpu_error("NVML")
    gpus = []
    for index in range(count.value):
        handle, memory = ctypes.c_void_p(), _NvmlMemory()
        major, minor = ctypes.c_int(), ctypes.c_int()
        if (
            lib.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)) != 0
            or lib.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor)) != 0
        ):
            return None
        status = lib.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
        if status == _NOT_SUPPORTED:
            memory.total, memory.free = _read_shared_memory()
        elif status != 0:
            return None
        gpus.append(
            MachineGpu(
                index=index,
                name=text(lib.nvmlDeviceGetName, handle),
                uuid=text(lib.nvmlDeviceGetUUID, handle),
                sm=major.value * 10 + minor.value,
                total=memory.total,
                free=memory.free,
                processes=_list_gpu_processes(lib, handle),
            )
        )
    return Machine(driver=version, cuda=cuda, gpus=tuple(gpus), source="nvml")


def _list_gpu_processes(lib: ctypes.CDLL, handle: ctypes.c_void_p) -> tuple[GpuProcess, ...]:
    capacity = 256
    count, rows = ctypes.c_uint(capacity), (_NvmlProcess * capacity)()
    call = (
        getattr(lib, "nvmlDeviceGetComputeRunningProcesses_v3", None)
        or lib.nvmlDeviceGetComputeRunningProcesses_v2
    )
    if call(handle, ctypes.byref(count), rows) != 0:
        return ()
    unknown = (1 << 64) - 1
    return tuple(
        GpuProcess(row.pid, None if row.memory == unknown else row.memory)
        for row in rows[: min(count.value, capacity)]
    )


def is_version_at_least(version: str, least: str) -> bool:
    """Tell whether a dotted version is at least another, number by number."""

    def numbers(text: str) -> list[int]:
        return [int(p) if p.isdigit() else 0 for p in text.split(".")]

    return numbers(version) >= numbers(least)
