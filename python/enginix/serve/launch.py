"""The exact command and environment of a server."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginix.errors import UsageError
from enginix.serve.tritonserver import TritonServer

LOOPBACK = ("127.0.0.1", "::1")
# Triton's name of each; it has no JSON.
LOG_FORMATS = {"default": "default", "iso8601": "ISO8601"}
_GPU = re.compile(r"\d{1,3}|(GPU|MIG)-[0-9A-Za-z/-]+")


@dataclass(frozen=True)
class Endpoints:
    """Address of all three endpoints, and their ports."""

    host: str
    http: int
    grpc: int
    metrics: int


@dataclass(frozen=True)
class Plan:
    """Everything that a start needs.

    Attributes:
        repository: the model repository.
        python: the ``python3`` whose environment runs the Python models.
        exit_timeout: seconds that running requests have to finish after SIGTERM.
        verbose: Triton's own verbosity, 0 is normal.
        log_format: a key of LOG_FORMATS.
        gpus: the only GPUs that the server sees, by index or UUID; empty leaves it to CUDA_VISIBLE_DEVICES.
    """

    server: TritonServer
    repository: Path
    python: Path
    endpoints: Endpoints
    exit_timeout: int = 30
    verbose: int = 0
    gpus: tuple[str, ...] = ()
    log_format: str = "default"

    def command(self, shm_prefix: str, repository: Path) -> list[str]:
        """The command line.

        Args:
            repository: what the server is to read: links to the model repository (:func:`link_repository`).
            shm_prefix: of the names of shared-memory regions; one of its own for each server, so that
                leftovers of a killed one are known.
        """
        e = self.endpoints
        return [
            str(self.server.program),
            f"--model-repository={repository}",
            f"--backend-directory={self.server.backends}",
            "--model-control-mode=none",
            # Every configuration is complete; nothing may be filled in by chance.
            "--disable-auto-complete-config",
            "--exit-on-error=true",
            "--strict-readiness=true",
            # gRPC would stay on 0.0.0.0 with --http-address alone.
            f"--http-address={e.host}",
            f"--grpc-address={e.host}",
            f"--metrics-address={e.host}",
            f"--http-port={e.http}",
            f"--grpc-port={e.grpc}",
            f"--metrics-port={e.metrics}",
            "--allow-sagemaker=false",
            "--allow-vertex-ai=false",
            f"--exit-timeout-secs={self.exit_timeout}",
            f"--log-verbose={self.verbose}",
            f"--log-format={LOG_FORMATS[self.log_format]}",
            f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
        ]

    def environment(self, state: Path) -> dict[str, str]:
        """The whole environment: nothing else is inherited but what names libraries, time zone and language.

        Args:
            state: a private directory, for HOME and temporary files.
        """
        env = {
            k: os.environ[k]
            for k in ("LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
            if k in os.environ
        }
        if self.gpus:
            # By index as nvidia-smi counts; CUDA's own order is by speed.
            env |= {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        return env | {
            # The stub takes the environment of the first python3.
            "PATH": f"{self.python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "HOME": str(state),
            "TMPDIR": str(state),
            "PYTHONDONTWRITEBYTECODE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }


def link_repository(repository: Path, into: Path) -> Path:
    """Directories of its own with links to the repository's files.

    Python writes the compiled ``model.py`` beside the file that it loads, and Triton's stub ignores
    PYTHONDONTWRITEBYTECODE: started by root on a single-user Nix store, the server would change the store.
    """
    for directory, _, files in os.walk(repository, followlinks=True):
        target = into / Path(directory).relative_to(repository)
        target.mkdir(parents=True)
        for name in files:
            (target / name).symlink_to(os.path.abspath(Path(directory) / name))
    return into


def describe(plan: Plan) -> dict[str, Any]:
    """The plan as ``--dry-run`` shows it."""
    state = Path("$STATE")
    return {
        "command": plan.command("enginix-$PREFIX-", plan.repository),
        "environment": plan.environment(state),
        "endpoints": {
            "http": plan.endpoints.http,
            "grpc": plan.endpoints.grpc,
            "metrics": plan.endpoints.metrics,
            "host": plan.endpoints.host,
        },
    }


def as_text(described: dict[str, Any]) -> str:
    """Environment and command as a shell would take them."""
    lines = [f"{k}={json.dumps(v)}" for k, v in sorted(described["environment"].items())]
    return " \\\n  ".join([*lines, *described["command"]])


def check_gpus(text: str | None) -> tuple[str, ...]:
    """GPUs of ``--gpus``: indices as nvidia-smi counts them, or UUIDs.

    Raises:
        UsageError: neither, or one twice.
    """
    if text is None:
        return ()
    names = tuple(text.split(","))
    for name in names:
        if not _GPU.fullmatch(name):
            raise UsageError(
                f"{name!r} is not a GPU",
                where="--gpus",
                fix="indices or UUIDs of nvidia-smi -L, joined by commas",
            )
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise UsageError(f"{twice[0]} is named twice", where="--gpus", fix="one GPU a rank")
    return names


def check_exit_timeout(seconds: int) -> int:
    """Refuses what Triton would."""
    if not 0 <= seconds <= 86400:
        raise UsageError(f"{seconds} is not between 0 and 86400", where="--exit-timeout")
    return seconds
