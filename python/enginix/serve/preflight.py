"""What must hold before a server is started, each check cheap."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from enginix import manifest
from enginix.console import human_bytes
from enginix.errors import MachineError, ManifestError
from enginix.manifest import Manifest
from enginix.serve.tritonserver import TritonServer, refusal
from enginix.tables import table
from enginix.triton import contract
from enginix.triton.validate import validate

SHM = Path("/dev/shm")
# Triton's Python backend takes 1 MiB for each instance at start and grows by as much (its README,
# shm-default-byte-size).
SHM_PER_INSTANCE = 2 << 20


@dataclass(frozen=True)
class Repository:
    """A repository that this server can run.

    Attributes:
        instances: processes of Python models.
    """

    directory: Path
    manifest: Manifest
    instances: int


def check_repository(directory: Path, server: TritonServer) -> Repository:
    """Reads and validates a repository, and compares its engine with the server's runtime.

    Raises:
        ManifestError: not a repository of enginix, or an engine of another runtime; both are named.
        RepositoryError: see :func:`enginix.triton.validate.validate`.
    """
    directory = Path(os.path.abspath(directory))
    found = manifest.read(directory, "triton-repository")
    if (why := refusal(found, server)) is not None:
        raise ManifestError(
            why,
            where=str(directory),
            fix=f"pass another --tritonserver than {server.directory}, or another engine",
        )
    known: Mapping[str, contract.Model] | None = None
    chat = found.options.get("chat", False) is True
    if found.kind == "reference":
        known = contract.reference()
    elif found.kind == "llmapi":
        known = contract.llmapi(chat=chat)
    elif found.kind == "tensorrt":
        options = found.options
        known = contract.tensorrt(
            {
                name: str(options.get(name))
                for name in table("triton_contract")["datatypes"]
                if name in options
            },
            chat=chat,
        )
    configs = validate(directory, known=known)
    instances = sum(
        group.count
        for config in configs.values()
        if config.backend == "python"
        for group in config.instance_group
    )
    return Repository(directory, found, instances)


def check_shared_memory(instances: int, directory: Path = SHM) -> None:
    """Python models talk to Triton through shared memory.

    Raises:
        MachineError: not writable, or smaller than the instances need.
    """
    if not os.access(directory, os.W_OK):
        raise MachineError("not writable", where=str(directory), fix="mount a tmpfs there, mode 1777")
    status = os.statvfs(directory)
    free, needed = status.f_bavail * status.f_frsize, instances * SHM_PER_INSTANCE
    if free < needed:
        raise MachineError(
            f"{human_bytes(free)} free, {human_bytes(needed)} needed for {instances} Python model instances",
            where=str(directory),
            fix="enlarge it (docker run --shm-size), or remove leftovers",
        )
