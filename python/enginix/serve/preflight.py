"""Checks before a server is started, each of them cheap."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from enginix import manifest
from enginix.compatibility.check import require_runnable, require_versions
from enginix.console import format_bytes
from enginix.digests import SourceWatch, is_in_store
from enginix.errors import MachineError, ManifestError
from enginix.integrity import find_engine, require_input, require_same_results, require_unchanged
from enginix.kinds.llmapi import triton_model
from enginix.kinds.registry import find_start_module, get_kind, has_rank_processes, is_portable, load_hook
from enginix.kinds.triton_repository.validate import PATHS, validate_repository
from enginix.machine.driver import Driver
from enginix.machine.target import Machine, probe_machine
from enginix.manifest import Manifest, read_golden
from enginix.runtime.image import read_image_versions
from enginix.serve.tritonserver import TritonServer, find_refusal
from enginix.triton import contract
from enginix.triton.config import FILE as CONFIG_FILE
from enginix.triton.config import read_pbtxt
from enginix.triton.repository_content import ContentModule

SHM = Path("/dev/shm")
# Triton's Python backend takes 1 MiB for each instance at start and grows by as much (its README,
# shm-default-byte-size).
SHM_PER_INSTANCE = 2 << 20


@dataclass(frozen=True)
class ServedRepository:
    """A repository that this server can run.

    Attributes:
        instances: processes of Python models.
        ranks: processes that the engine needs, one for each GPU.
        reads: directories outside the repository that its models name: engine, tokenizer, code.
        engine: the engine's directory, for kinds that need a GPU.
        watches: notice a file of repository or engine that changes after its digest was compared.
    """

    directory: Path
    manifest: Manifest
    instances: int
    ranks: int = 1
    reads: tuple[Path, ...] = ()
    engine: Path | None = None
    watches: tuple[SourceWatch, ...] = ()

    def require_unchanged(self) -> None:
        """Refuse a server whose files changed between the comparison of their digests and its readiness.

        Raises:
            ManifestError: a file was written, replaced, added or removed, also if it was restored since.
        """
        for watch in self.watches:
            watch.require_unchanged()


def check_repository(directory: Path, server: TritonServer) -> ServedRepository:
    """Read and validate a repository, and compare its engine with the server's runtime.

    Raises:
        ManifestError: not a repository of enginix, or its engine is for another runtime (names both); it or
            its engine changed, or has no golden tokens.
        RepositoryError: see :func:`enginix.kinds.triton_repository.validate.validate_repository`.
    """
    directory = Path(os.path.abspath(directory))
    watch = SourceWatch(directory)
    repository_manifest = manifest.read_manifest(directory, "triton-repository")
    if (why := find_refusal(repository_manifest, server)) is not None:
        raise ManifestError(
            why,
            where=directory,
            fix=f"pass another --tritonserver than {server.directory}, or another engine",
        )
    known: Mapping[str, contract.ModelContract] | None = None
    kind = get_kind(repository_manifest.kind)
    if kind is not None and kind.triton is not None:
        content_module: ContentModule = load_hook(kind.triton.repository)
        known = content_module.read_contract(repository_manifest.options)
    configs = validate_repository(directory, known=known)
    instances = sum(
        group.count
        for config in configs.values()
        if config.backend == "python"
        for group in config.instance_group
    )
    named = set(_iterate_named_paths(directory, configs))
    reads = tuple(sorted({path for _, path in named}))
    # tensorrt_llm's tokenizer lies in the engine, for both kinds that need a GPU.
    tokenizers = [p for p in reads if p.name == "tokenizer"]
    engine = tokenizers[0].parent if tokenizers and _needs_gpu(repository_manifest) else None
    served_engine = _require_named_engine(directory, repository_manifest, named)
    watches = (watch, SourceWatch(served_engine))
    _require_whole_chain(directory, repository_manifest, served_engine)
    return ServedRepository(
        directory, repository_manifest, instances, _count_ranks(repository_manifest), reads, engine, watches
    )


def _needs_gpu(repository_manifest: Manifest) -> bool:
    """Return whether the engine's manifest names the GPU that serves it."""
    kind, start = get_kind(repository_manifest.kind), find_start_module(repository_manifest.kind)
    if start is not None:
        return start.needs_gpu(repository_manifest.options)
    return kind is not None and kind.runs_in_image


def _require_whole_chain(directory: Path, repository_manifest: Manifest, engine: Path | None) -> None:
    """Refuse a repository, or an engine in it, that changed since it was made or gated."""
    require_unchanged(directory)
    # A repository that was added to a store may still name an engine outside of it.
    if engine is not None and not (is_in_store(directory) and is_in_store(engine)):
        engine_manifest = manifest.read_manifest(engine, "engine")
        require_input(directory, repository_manifest, "engine", engine)
        require_same_results(directory, repository_manifest, engine_manifest)
        require_unchanged(engine)
    # A build of this kind always records them, gated or not.
    if is_portable(repository_manifest.kind) and read_golden(repository_manifest) is None:
        raise ManifestError(
            "its manifest has no golden tokens, which the server's first answer is compared with",
            where=directory,
            fix="build the engine and the repository again",
        )


def find_repository_engine(directory: Path, repository_manifest: Manifest) -> Path | None:
    """Return the engine that a repository names; None if neither its manifest nor its models name one.

    Raises:
        ManifestError: the engine that its manifest names is missing, or a model reads outside of both.
        RepositoryError: a model's configuration cannot be read.
    """
    configs = {p.parent.name: read_pbtxt(p) for p in sorted(directory.glob(f"*/{CONFIG_FILE}"))}
    return _require_named_engine(directory, repository_manifest, _iterate_named_paths(directory, configs))


def _require_named_engine(
    directory: Path, repository_manifest: Manifest, named: Iterable[tuple[str, Path]]
) -> Path | None:
    # Code is no part of an artefact, and a checkpoint is compared with its engine when it is loaded.
    paths = sorted({path for key, path in named if key not in ("enginix_path", "interpreter_checkpoint")})
    engine = find_engine(paths)
    if not isinstance(repository_manifest.inputs.get("engine"), dict):
        return engine
    if paths and engine is None:
        raise ManifestError(
            f"its engine's manifest is missing: no directory above {paths[0]} has one",
            where=directory,
            fix="restore the engine, or make the repository again: enginix triton-repo",
        )
    for path in paths:
        normal = Path(os.path.normpath(path))
        if not any(normal.is_relative_to(root) for root in (engine, directory) if root is not None):
            raise ManifestError(
                f"a model reads {path}, which is neither in the repository nor in its engine {engine}",
                where=directory,
                fix="make the repository again: enginix triton-repo",
            )
    return engine


def _iterate_named_paths(directory: Path, configs: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    """Yield the paths that models name, with the keys that name them."""
    for config in configs.values():
        for key in PATHS:
            if key in config.parameters:
                yield key, Path(config.parameters[key].string_value)
    for path in directory.glob(f"*/1/{triton_model.MODEL_YAML}"):
        described = json.loads(path.read_text("utf-8"))
        yield from ((key, Path(described[key])) for key in ("model", "tokenizer") if key in described)


def _count_ranks(repository_manifest: Manifest) -> int:
    """Count the server's ranks: the C++ backend has a process for each GPU, the LLM class starts its own."""
    count = repository_manifest.target.get("count", 1)
    ranks = count if type(count) is int and count > 0 else 1
    return ranks if has_rank_processes(repository_manifest.kind) else 1


def check_backend(repository: ServedRepository, server: TritonServer) -> None:
    """Check that the installation has the C++ backend for an engine of kind ``tensorrt``, and the version of
    TensorRT-LLM that built the engine: in the image, or on this machine inside a container of it.

    Raises:
        MachineError: the backend is missing.
        Mismatch: TensorRT-LLM has another version, even if the installation names the right runtime.
    """
    kind = get_kind(repository.manifest.kind)
    if kind is not None and kind.runs_in_image:
        live = read_image_versions(server.rootfs or Path("/"), server.find_runtime())
        require_versions(repository.manifest, repository.directory, live)
    if not has_rank_processes(repository.manifest.kind):
        return
    outside = Path(f"{server.rootfs or ''}{server.backends}") / "tensorrtllm"
    if not any(outside.glob("libtriton_tensorrtllm*.so")):
        raise MachineError(
            "libtriton_tensorrtllm.so is missing",
            where=outside,
            fix="serve it inside the image of the runtime that it is for",
        )


# Places of OpenMPI in NVIDIA's images, besides PATH: HPC-X, and NVIDIA's link to it.
MPI_PLACES = ("/usr/local/mpi/bin", "/opt/hpcx/ompi/bin")


def find_mpirun(server: TritonServer, environment: Mapping[str, str]) -> str:
    """Return the path of mpirun, as the server's installation sees it.

    Args:
        environment: the server's environment; its PATH is searched first.

    Raises:
        MachineError: mpirun is missing.
    """
    for place in (*environment.get("PATH", os.defpath).split(os.pathsep), *MPI_PLACES):
        path = Path(f"{server.rootfs or ''}{place}") / "mpirun"
        if place.startswith("/") and os.access(path, os.X_OK):
            return f"{place}/mpirun"
    raise MachineError(
        "mpirun is missing, which starts several ranks",
        where=server.rootfs or "PATH",
        fix="take the image of the runtime, or put OpenMPI's directory on PATH",
    )


def check_gpus(
    repository: ServedRepository, driver: Driver, gpus: Sequence[str], local_ranks: int | None = None
) -> list[str]:
    """Check that an engine's GPUs exist, fit the engine, and have memory for its weights.

    Args:
        gpus: GPUs that will serve, by index or UUID; empty is all.
        local_ranks: ranks of this machine, where other machines have the rest.

    Returns:
        Notes on differences that are not fatal.

    Raises:
        MachineError: a GPU is missing, there are too few, or too little GPU memory is free.
        Mismatch: the engine does not run on these GPUs (``enginix check``).
    """
    if repository.engine is None:
        return []
    machine: Machine | None
    try:
        machine = probe_machine(driver)
    except MachineError:
        machine = None
    if machine is not None and gpus:
        by_name = {str(g.index): g for g in machine.gpus} | {g.uuid: g for g in machine.gpus}
        for name in gpus:
            if name not in by_name and not name.startswith("MIG-"):
                have = ", ".join(f"{g.index} ({g.uuid})" for g in machine.gpus)
                raise MachineError(f"no GPU {name}", where="--gpus", fix=f"this machine has {have}")
        chosen = tuple(by_name[n] for n in gpus if n in by_name)
        # A slice of a GPU looks like the whole GPU here; TensorRT-LLM refuses it later if it does not fit.
        machine = replace(machine, gpus=chosen) if len(chosen) == len(gpus) else machine
    count = repository.manifest.target.get("count", 1) if local_ranks is None else local_ranks
    if gpus and type(count) is int and len(gpus) != count:
        raise MachineError(
            f"{len(gpus)} GPUs for an engine of {count} ranks",
            where="--gpus",
            fix=f"name {count}, one a rank",
        )
    verdict = require_runnable(repository.engine, machine, count=local_ranks)
    if machine is not None:
        for gpu, needed in zip(machine.gpus, _rank_weights(repository.engine), strict=False):
            if gpu.free < needed:
                raise MachineError(
                    f"{format_bytes(gpu.free)} of GPU memory free, {format_bytes(needed)} needed for the "
                    f"weights alone",
                    where=f"GPU {gpu.index}",
                    fix="end what uses it (nvidia-smi), or name another with --gpus",
                )
    return [f"{d.field}: built for {d.built}, here {d.live}: {d.do}" for d in verdict.differences]


def _rank_weights(engine: Path) -> list[int]:
    if plans := list((engine / "engine").glob("*.plan")):  # kind rtx
        return [path.stat().st_size for path in plans]
    plans = sorted(
        (engine / "engine").glob("rank*.engine"), key=lambda p: int(re.sub(r"\D", "", p.name) or 0)
    )
    return [path.stat().st_size for path in plans]


def check_open_files(least: int = 1024) -> None:
    """Raise this process's limit of open files to its maximum; streams and models take many files.

    Raises:
        MachineError: the maximum is below ``least``.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if hard != unlimited and hard < least:
        raise MachineError(
            f"{hard} open files are allowed, {least} are needed",
            where="RLIMIT_NOFILE",
            fix="ulimit -n, LimitNOFILE= of a unit, docker run --ulimit nofile",
        )
    new_limit = 65536 if hard == unlimited else min(hard, 65536)
    if soft != unlimited and soft < new_limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (new_limit, hard))


def check_shared_memory(instances: int, directory: Path = SHM) -> None:
    """Check the shared memory, which Python models and Triton communicate through.

    Raises:
        MachineError: not writable, or smaller than the instances need.
    """
    if not os.access(directory, os.W_OK):
        raise MachineError("not writable", where=directory, fix="mount a tmpfs there, mode 1777")
    free, needed = shutil.disk_usage(directory).free, instances * SHM_PER_INSTANCE
    if free < needed:
        raise MachineError(
            f"{format_bytes(free)} free, {format_bytes(needed)} needed for {instances} Python model "
            "instances",
            where=directory,
            fix="enlarge it (docker run --shm-size), or remove leftovers",
        )
