"""Build a plan by TensorRT for RTX, on a CPU, and check what its builder says and writes."""

from __future__ import annotations

import re
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from enginix.errors import EXIT_CHECK_FAILED, EnginixError, MachineError
from enginix.kinds.rtx.network.decoder import DecoderNetwork
from enginix.tables import load_table

_SHOWN = 3  # messages of an error
_REBUILD = "build the engine again"


class PlanError(EnginixError):
    """The builder failed, or its plan is not what was asked for."""

    exit_code: ClassVar[int] = EXIT_CHECK_FAILED
    kind: ClassVar[str] = "plan"


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
        raise PlanError(f"begins with {head[:4]!r}, not {row['magic']!r}", where=path, fix=_REBUILD)
    (length,) = struct.unpack_from("<Q", head, row["lengthOffset"])
    version = ".".join(map(str, head[row["versionOffset"] : row["versionOffset"] + 4]))
    mask = head[row["targetsOffset"]]
    unknown = mask & ~sum(bits.values())
    if unknown:
        raise PlanError(
            f"is for GPUs that were not asked for: mask {mask:#04x}, unknown {unknown:#04x}",
            where=path,
            fix=_REBUILD,
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
            raise PlanError(f"{what} is {stated}, expected {expected}", where=path, fix=_REBUILD)
    return header


def import_tensorrt_rtx() -> Any:
    """Import NVIDIA's bindings, in the version that enginix knows.

    Raises:
        ImportError: they are not installed.
        MachineError: they are of another version.
    """
    import tensorrt_rtx_bindings as trt

    expected = load_table("rtx")["version"]["value"]
    if trt.__version__ != expected:
        raise MachineError(
            f"TensorRT for RTX is {trt.__version__}, expected {expected}",
            fix=f"install tensorrt-rtx-cu13-libs=={expected} and tensorrt-rtx-cu13-bindings=={expected}",
        )
    return trt


@dataclass
class LibraryLog:
    """Messages of the builder or of the runtime.

    Attributes:
        errors: of severity ERROR and INTERNAL_ERROR, in order; a build with one has failed, even where the
            builder returns a plan.
        kernels: names of the plan's kernels.
    """

    errors: list[str] = field(default_factory=list)
    kernels: list[str] = field(default_factory=list)

    def add(self, is_error: bool, message: str) -> None:
        if is_error:
            self.errors.append(message.strip().replace("\n", " "))
        elif message.startswith("Layers:"):
            self.kernels += re.findall(r"Name: (.*?), LayerType: ", message)


def make_logger(trt: Any, log: LibraryLog) -> Any:
    """Return a logger of the library that writes into ``log``."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            log.add(int(severity) <= int(trt.ILogger.Severity.ERROR), message)

    return Logger()


def build_plan(network: DecoderNetwork, log: LibraryLog, targets: Sequence[int], out: Path) -> PlanHeader:
    """Build a network's plan into a file.

    Args:
        log: of the logger that the network was made with.
        targets: SMs that the plan is for.

    Raises:
        PlanError: the builder reported an error or returned no plan, an attention is not one kernel, or the
            plan's header is not what was asked for.
        OSError: the plan could not be written.
    """
    trt, builder = network.writer.trt, network.writer.builder
    config = builder.create_builder_config()
    config.num_compute_capabilities = len(targets)
    for index, sm in enumerate(sorted(targets)):
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), index)
    # The list of kernels is written at this verbosity only.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    is_built = _write_stream(trt, builder, network.writer.network, config, out)
    where = f"{network.config.architecture}, SM {', '.join(map(str, sorted(targets)))}"
    if log.errors or not is_built:
        raise PlanError(
            "TensorRT for RTX refused it: " + ("; ".join(log.errors[:_SHOWN]) or "without a reason"),
            where=where,
            fix="lower --max-seq-len or --max-batch-size (Nix: limits.maxSeqLen, limits.maxBatchSize); or "
            "use kind llmapi or reference",
        )
    kernel = load_table("rtx")["plan"]["attentionKernel"]
    fused, layers = sum(kernel in name for name in log.kernels), network.config.num_hidden_layers
    if fused != layers:
        raise PlanError(
            f"{fused} of {layers} layers have a fused attention kernel, by the builder's list",
            where=where,
            fix="use kind llmapi or reference; please report it with the model's config.json",
        )
    return check_plan_header(out, trt.__version__, targets)


def _write_stream(trt: Any, builder: Any, network: Any, config: Any, out: Path) -> bool:
    """Let the builder write piece by piece: as one buffer the plan is in memory once more.

    Raises:
        OSError: a piece could not be written.
    """
    failures: list[OSError] = []
    with out.open("wb") as file:

        class Writer(trt.IStreamWriter):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.IStreamWriter.__init__(self)

            def write(self, data: bytes) -> int:
                # The bindings print and drop what a callback raises.
                try:
                    return 0 if failures else file.write(data)
                except OSError as e:
                    failures.append(e)
                    return 0

        is_built = bool(builder.build_serialized_network_to_stream(network, config, Writer()))
        if failures:
            raise failures[0]
        return is_built
