"""Check this machine before a build starts, in under two seconds, before any weight is read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from enginix.console import format_bytes
from enginix.errors import MachineError, UsageError
from enginix.files import find_existing_parent
from enginix.machine.driver import Driver
from enginix.machine.gpu_table import find_gpu
from enginix.machine.kind_support import explain_unsupported_gpu
from enginix.machine.target import Machine, MachineGpu, Target, is_version_at_least, probe_machine
from enginix.model.engine_classes import explain_no_engine_class
from enginix.model.family_rows import find_written_name
from enginix.model.llmapi_advice import limited_llmapi_advice
from enginix.model.number_formats import read_algorithms, supports_sm
from enginix.runtime.image import read_distribution_versions
from enginix.runtime.sandbox import check_namespaces
from enginix.runtime.table import Runtime
from enginix.tables import load_table
from enginix.wording import list_known

# Disk for an engine, relative to its weights: TensorRT's plan holds them again.
DISK_FACTOR = 1.1
# LLM API: its workspace holds a checkpoint and the engine before the engine is copied out.
WORKSPACE_FACTOR = 2.2
SCRATCH_BYTES = 1 << 30


@dataclass(frozen=True)
class PreflightResult:
    """The GPU to build on, and notes for the user.

    Attributes:
        gpu: the GPU that the engine is built on.
        notes: lines to print that are not errors.
    """

    machine: Machine
    gpu: MachineGpu
    notes: tuple[str, ...] = field(default=())


def require_machine(runtime: Runtime, rootfs: Path | None, driver: Driver, *, accept_driver: bool) -> Machine:
    """Return this machine, if a runtime's commands run on it.

    Args:
        rootfs: the runtime's root file system; None for the host's own.
        accept_driver: accept a driver older than the runtime requires.

    Raises:
        MachineError: no user namespaces, another runtime in ``rootfs``, no GPU, or an older driver.
    """
    if rootfs is not None:
        check_namespaces()
    check_version(runtime, rootfs)
    machine = probe_machine(driver)
    if not accept_driver:
        check_driver(runtime, machine)
    return machine


def check_gpu(target: Target, machine: Machine, *, workers: int, weights: int) -> PreflightResult:
    """Compare the machine's GPUs with the target.

    Args:
        weights: bytes of the heaviest rank's weights.

    Raises:
        MachineError: another SM, too few GPUs, or too little free memory; names the processes that hold it.
    """
    fitting = [g for g in machine.gpus if g.sm == target.sm]
    if not fitting:
        gpu_names = ", ".join(sorted({f"{g.name} (SM {g.sm})" for g in machine.gpus}))
        raise MachineError(
            f"the target {target.name} is SM {target.sm}; this machine has {gpu_names}",
            where="GPU",
            fix="build on a machine with that GPU, or for a target that this machine has; "
            "an engine runs on the SM that it was built on and on no other",
        )
    if workers > len(fitting):
        raise MachineError(
            f"{workers} workers, but {len(fitting)} GPU of SM {target.sm}",
            where="GPU",
            fix=f"--workers {len(fitting)}: the ranks are built one after another",
        )
    # The build takes the first GPU of those that it sees (Machine.only).
    gpu = fitting[0]
    if gpu.free < weights:
        holders = ", ".join(
            f"process {p.pid}" + (f" ({format_bytes(p.memory)})" if p.memory is not None else "")
            for p in gpu.processes
        )
        raise MachineError(
            f"{format_bytes(gpu.free)} of {format_bytes(gpu.total)} free on {gpu.name}; one rank's "
            f"weights alone take "
            f"{format_bytes(weights)}",
            where=f"GPU {gpu.index}",
            fix=f"end {holders}"
            if holders
            else "raise the tensor parallel size, or use a GPU with more memory",
        )
    notes = []
    if not target.is_product(gpu.name, gpu.total):
        notes.append(
            f"the target {target.name} is {target.product}, this is {gpu.name} of the same SM {gpu.sm}"
        )
    for p in gpu.processes:
        notes.append(f"process {p.pid} computes on the same GPU; tactics are timed while it does")
    return PreflightResult(machine, gpu, tuple(notes))


def check_driver(runtime: Runtime, machine: Machine) -> None:
    """Compare the driver with the oldest one that the runtime supports.

    Raises:
        MachineError: the driver is older.
    """
    if runtime.driver is not None and not is_version_at_least(machine.driver, runtime.driver):
        raise MachineError(
            f"runtime {runtime.id} (CUDA {runtime.cuda}) needs driver {runtime.driver} or later; this "
            f"machine has "
            f"{machine.driver}",
            where="driver",
            fix="update the driver, or use an older runtime; where NVIDIA's compatibility package serves "
            "this driver, pass --accept-driver",
        )


def check_disk(out: Path, work: Path, weights: int, *, workspace: bool) -> None:
    """Check the disk space for the engine at ``out``, and for the build's files in ``work``.

    Raises:
        MachineError: too little space; has the figures.
    """
    for path, needed, what in (
        (out, int(weights * DISK_FACTOR), "the engine"),
        (work, int(weights * WORKSPACE_FACTOR) if workspace else SCRATCH_BYTES, "temporary files"),
    ):
        free = shutil.disk_usage(find_existing_parent(path)).free
        if free < needed:
            raise MachineError(
                f"{format_bytes(free)} free, {format_bytes(needed)} needed for {what}",
                where=path,
                fix="free space there" + ("" if path is out else ", or set TMPDIR elsewhere"),
            )


def check_version(runtime: Runtime, rootfs: Path | None) -> str | None:
    """Return TensorRT-LLM's version in an image, by its package's directory name; None without an image.

    Raises:
        MachineError: the version is not the runtime's, or is missing.
    """
    if rootfs is None or runtime.site_packages is None:
        return None
    versions = read_distribution_versions(rootfs, runtime, "tensorrt_llm")
    if not versions:
        raise MachineError(
            f"no tensorrt_llm in {runtime.site_packages}",
            where=rootfs,
            fix=f"pass the root file system of {runtime.id} (enginix runtime pin)",
        )
    plain = versions[0].split("+")[0]
    if plain != runtime.version:
        raise MachineError(
            f"the image has tensorrt_llm {versions[0]}; runtime {runtime.id} is {runtime.version}",
            where=rootfs,
            fix="pass the runtime's own image",
        )
    return plain


def require_kind_support(kind: str, target: Target, version: str | None = None) -> None:
    """Check that a kind's software has code for a target.

    Args:
        version: of TensorRT-LLM; None for any.

    Raises:
        UsageError: it has none.
    """
    unsupported = explain_unsupported_gpu(kind, find_gpu(target.name), version)
    if unsupported is not None:
        raise UsageError(unsupported.why, where=f"target {target.name}", fix=unsupported.fix)


def check_support(
    algorithm: str | None,
    kv_cache: str | None,
    architecture: str | None,
    target: Target,
    say_format: Callable[[str], str] = "quantization {}".format,
) -> list[str]:
    """Check quantization, KV cache and architecture for a target, as nix/check/target.nix at evaluation.

    Args:
        say_format: how the caller's users name an algorithm, as ``--format fp8``.

    Returns:
        Warnings about combinations that build but are untested.

    Raises:
        UsageError: TensorRT-LLM would refuse the combination.
    """
    with limited_llmapi_advice(architecture):
        support, algorithms = load_table("engine_support"), read_algorithms()
        name = algorithm or "NO_QUANT"
        row = algorithms.get(name)
        if row is None:
            raise UsageError(f"unknown quantization {name!r}", fix=list_known(name, sorted(algorithms)))
        if not row["engine"]:
            raise UsageError(
                f"{name} cannot become an engine: {row['why']}",
                fix=row["instead"] + (", or serve this one with the llmapi kind" if row["llmapi"] else ""),
            )
        _refuse_unsupported_format(name, row, target, support, say_format)
        if kv_cache is not None:
            cache = load_table("number_formats")["kvCache"].get(kv_cache)
            if cache is None or not cache["engine"]:
                raise UsageError(
                    f"a KV cache in {kv_cache} cannot be built into an engine",
                    fix="use an FP8 KV cache or none",
                )
            _refuse_unsupported_format(f"a KV cache in {kv_cache}", cache, target, support, say_format)
        if architecture is not None and (no_class := explain_no_engine_class(architecture)):
            raise UsageError(
                no_class,
                fix="serve the model with the llmapi kind"
                if name == "NO_QUANT"
                else "serve this one with the llmapi kind",
            )
        facts = {"architectures": architecture, "quantizations": name, "kvCaches": kv_cache}
        return [
            w["text"]
            for w in support["warnings"]
            if target.sm >= w["when"].get("smFrom", 0)
            and all(facts[k] in v for k, v in w["when"].items() if k in facts)
        ]


def check_pipeline(architecture: str | None, stages: int) -> None:
    """Check pipeline stages for the engine's class, as nix/check/engine.nix does at evaluation.

    Raises:
        UsageError: TensorRT-LLM's class has no pipeline.
    """
    rows = load_table("engine_classes")
    why = rows["noPipeline"].get(rows["engine"].get(find_written_name(architecture)))
    if stages > 1 and why:
        raise UsageError(
            f"{stages} pipeline stages: TensorRT-LLM has no pipeline for {architecture}; {why}",
            fix="convert the model with --pipeline-parallel 1 and a larger --tensor-parallel",
        )


def _refuse_unsupported_format(
    name: str, row: dict[str, Any], target: Target, support: dict[str, Any], say_format: Callable[[str], str]
) -> None:
    if supports_sm(row, target.sm):
        return
    algorithms, representatives = read_algorithms(), load_table("number_formats")["gpuFormats"]
    gpu_formats = find_gpu(target.name).formats
    supported_formats = [f for f in gpu_formats if supports_sm(algorithms[representatives[f]], target.sm)]
    other_formats = [
        f for f in support["suggest"]["formats"] if f != name and supports_sm(algorithms[f], target.sm)
    ]
    gpus = [t for t in support["suggest"]["targets"] if supports_sm(row, find_gpu(t).sm)]
    if row["minSm"] is not None and target.sm < row["minSm"]:
        why = f'{name} needs SM {row["minSm"]} or later; target "{target.name}" is SM {target.sm}'
    else:
        low, high = row["refusedSm"]
        why = f"TensorRT-LLM's builder refuses {name} for SM {low} to {high - 1}; "
        why += f'target "{target.name}" is SM {target.sm}'
    offers = [f"{say_format(f)} on this GPU" for f in other_formats[:1]] + [f"target {t}" for t in gpus[:1]]
    if supported_formats:
        why += f"; engines for it take {', '.join(supported_formats)}"
    raise UsageError(why, fix="use " + ", or ".join(offers))
