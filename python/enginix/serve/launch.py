"""The exact command and environment of a server."""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from enginix import ports
from enginix.errors import UsageError
from enginix.machine.driver import Driver
from enginix.runtime.sandbox import Sandbox, make_read_binds
from enginix.runtime.table import Runtime
from enginix.serve import flags, ranks
from enginix.serve.hosts import Agent, Host
from enginix.serve.tritonserver import TritonServer
from enginix.triton import config
from enginix.triton.contract import ENSEMBLE, EXECUTOR

# The script in the private directory that mpirun calls for other machines.
AGENT = "agent"
_GPU = re.compile(r"\d{1,3}|(GPU|MIG)-[0-9A-Za-z/-]+")


@dataclass(frozen=True)
class Endpoints:
    """Listen address of all endpoints, and their ports; the port of a disabled endpoint is ``None``."""

    host: str
    http: int
    grpc: int | None
    metrics: int | None


@dataclass(frozen=True)
class ImageLaunch:
    """Settings for a server inside a runtime's image (:class:`enginix.runtime.sandbox.Sandbox`).

    Attributes:
        reads: directories of the host that models name; visible under the same paths.
    """

    runtime: Runtime
    driver: Driver
    reads: tuple[Path, ...] = ()


@dataclass(frozen=True)
class LaunchSpec:
    """Settings of a server's command and environment.

    Attributes:
        repository: the model repository.
        python: the ``python3`` with the environment of the Python models; unused inside an image.
        exit_timeout: seconds that running requests have to finish after SIGTERM.
        verbose: Triton's own verbosity, 0 is normal.
        gpus: the only GPUs that the server sees, by index or UUID; empty leaves it to CUDA_VISIBLE_DEVICES.
        ranks: processes of the server, one for each GPU; mpirun starts them if there are several.
        mpirun: the launcher of several ranks.
        inside: settings of a server in an image; ``None`` runs it on the host's files.
        flags: options of tritonserver that a user added, checked by
            :func:`enginix.serve.flags.check_triton_flags`.
        admin_key: opens the restricted APIs.
        environ: further variables that the server sees.
        hosts: the machines of its ranks, this one first; empty is this one alone.
        agent: program that starts ranks on the others.
    """

    server: TritonServer
    repository: Path
    python: Path
    endpoints: Endpoints
    exit_timeout: int = 30
    verbose: int = 0
    gpus: tuple[str, ...] = ()
    ranks: int = 1
    mpirun: str = "mpirun"
    inside: ImageLaunch | None = None
    flags: tuple[str, ...] = ()
    admin_key: str = field(default_factory=lambda: flags.read_admin_key(None), repr=False)
    environ: Mapping[str, str] = field(default_factory=dict)
    hosts: tuple[Host, ...] = ()
    agent: Agent | None = None

    def command(self, shm_prefix: str, repository: Path) -> list[str]:
        """Return the command line; that of mpirun if there are several ranks.

        Args:
            repository: directory that the server reads: links to the model repository
                (:func:`link_repository`).
            shm_prefix: prefix of the names of shared-memory regions; unique for each server, so that
                leftovers of a killed one can be found.
        """
        local_ranks = self.hosts[0].slots if self.hosts else self.ranks
        commands = [
            # Another machine has no links, and needs none: its ranks load no Python models.
            self._rank(rank, shm_prefix, repository if rank < local_ranks else self.repository)
            for rank in range(self.ranks)
        ]
        if self.ranks == 1:
            return commands[0]
        state = repository.parent
        # HOME and TMPDIR exist on this machine alone.
        exported = sorted(set(self.environment(state)) - {"HOME", "TMPDIR"})
        return ranks.build_mpirun_command(self.mpirun, commands, self.hosts, str(state / AGENT), exported)

    def _rank(self, rank: int, shm_prefix: str, repository: Path) -> list[str]:
        words = [
            str(self.server.program),
            f"--id=rank{rank}",
            f"--model-repository={repository}",
            f"--backend-directory={self.server.backends}",
            # Every configuration is complete: auto-completion could only hide a mistake.
            "--disable-auto-complete-config",
            "--exit-on-error=true",
            "--strict-readiness=true",
            f"--exit-timeout-secs={self.exit_timeout}",
            f"--log-verbose={self.verbose}",
            ranks.shm_option(shm_prefix, rank),
            *self.flags,
        ]
        return [*words, *(ranks.FURTHER_RANK_OPTIONS if rank else self._endpoint_options())]

    def _endpoint_options(self) -> list[str]:
        e = self.endpoints
        is_ipv6 = ":" in e.host
        # libevent and gRPC spell an IPv6 address differently, and Triton passes both on as they are.
        libevent_host, grpc_host = (f"ipv6:{e.host}", f"[{e.host}]") if is_ipv6 else (e.host, e.host)
        words = [
            "--model-control-mode=none",
            # With --http-address alone, gRPC would listen on 0.0.0.0.
            f"--http-address={libevent_host}",
            f"--grpc-address={grpc_host}",
            f"--metrics-address={libevent_host}",
            f"--http-port={e.http}",
        ]
        words.append("--allow-grpc=false" if e.grpc is None else f"--grpc-port={e.grpc}")
        words.append("--allow-metrics=false" if e.metrics is None else f"--metrics-port={e.metrics}")
        return words + flags.closing_options(self.server.version, self.admin_key)

    def environment(self, state: Path) -> dict[str, str]:
        """Return the whole environment; only variables for libraries, time zone and language are inherited.

        Inside an image these variables are added to the image's
        (:class:`enginix.runtime.sandbox.Sandbox`).

        Args:
            state: a private directory, for HOME and temporary files.
        """
        named = dict(self.environ)
        if self.gpus:
            # Indexes as nvidia-smi counts; CUDA's own order is by speed.
            named |= {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        named["TOKENIZERS_PARALLELISM"] = "false"
        if self.inside is not None:
            return named
        env = {
            k: os.environ[k]
            for k in ("LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
            if k in os.environ
        }
        return {
            **env,
            # The stub takes the environment of the first python3.
            "PATH": f"{self.python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "HOME": str(state),
            "TMPDIR": str(state),
            "PYTHONDONTWRITEBYTECODE": "1",
            **named,
        }

    def make_sandbox(self, state: Path) -> Sandbox | None:
        """Return the sandbox of a server inside an image."""
        if self.inside is None:
            return None
        return Sandbox(
            self.inside.runtime,
            self.server.rootfs,
            state,
            self.inside.driver,
            binds=make_read_binds((self.repository, *self.inside.reads)),
            network=True,
            extra=self.environment(state),
        )


def link_repository(repository: Path, into: Path) -> Path:
    """Make directories with links to the repository's files.

    Python writes the compiled ``model.py`` beside the file that it loads, and Triton's stub ignores
    PYTHONDONTWRITEBYTECODE: started by root on a single-user Nix store, the server would change the store.
    """
    for directory, _, files in os.walk(repository, followlinks=True):
        target = into / Path(directory).relative_to(repository)
        target.mkdir(parents=True)
        for name in files:
            (target / name).symlink_to(os.path.abspath(Path(directory) / name))
    return into


def link_named_paths(models: Path, links: Path) -> None:
    """Give the models ASCII names of the directories that they read.

    Triton's stub starts Python in the C locale and without its environment (pybind11's isolated
    configuration), so PYTHONUTF8 has no effect there: a name with other characters is not found.

    Args:
        models: links to a repository (:func:`link_repository`); the repository stays as it is.
        links: new directory.
    """
    for path in sorted(models.glob(f"*/{config.FILE}")):
        model_config = config.read_pbtxt(path)
        is_changed = False
        for key, value in model_config.parameters.items():
            name = value.string_value
            if name.isascii() or not os.path.isabs(name):
                continue
            links.mkdir(mode=0o700, exist_ok=True)
            link = links / f"{path.parent.name}-{key}"
            link.symlink_to(name)
            value.string_value, is_changed = str(link), True
        if is_changed:
            path.unlink()
            path.write_text(config.render_pbtxt(model_config), "utf-8")


def unbatch_reference(models: Path) -> None:
    """Turn off Triton's batching for the models of kind ``reference``, which batch by themselves.

    Args:
        models: links to a repository (:func:`link_repository`); the repository stays as it is.
    """
    for name in (EXECUTOR, ENSEMBLE):
        path = models / name / config.FILE
        if not path.is_file():
            continue
        model_config = config.read_pbtxt(path)
        # NVIDIA's models do not have these parameters.
        if model_config.max_batch_size and {"enginix_path", "max_tokens_limit"} <= set(
            model_config.parameters
        ):
            path.unlink()
            path.write_text(config.render_pbtxt(config.remove_batching(model_config)), "utf-8")


def describe_launch(spec: LaunchSpec) -> dict[str, Any]:
    """Return the launch as ``--dry-run`` shows it."""
    state = Path("$STATE")
    command = spec.command("enginix-$PREFIX-", spec.repository if len(spec.hosts) < 2 else state / "models")
    environment = spec.environment(state)
    if (sandbox := spec.make_sandbox(state)) is not None:
        environment = sandbox.environment()
    return {
        "command": [w.replace(spec.admin_key, "$KEY") for w in command],
        "rootfs": str(spec.server.rootfs) if spec.server.rootfs else None,
        "ranks": spec.ranks,
        "environment": environment,
        "endpoints": {
            "http": spec.endpoints.http,
            "grpc": spec.endpoints.grpc,
            "metrics": spec.endpoints.metrics,
            "host": spec.endpoints.host,
        },
    }


def format_launch(described: dict[str, Any]) -> str:
    """Return environment and command as shell text."""
    lines = [f"{k}={json.dumps(v)}" for k, v in sorted(described["environment"].items())]
    return " \\\n  ".join([*lines, *described["command"]])


def check_gpus(text: str | None) -> tuple[str, ...]:
    """Parse ``--gpus``: indices as nvidia-smi counts them, or UUIDs.

    Raises:
        UsageError: a name is neither, or a GPU is named twice.
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


def check_environ(given: Iterable[str]) -> dict[str, str]:
    """Parse ``NAME=VALUE`` arguments of ``--env``.

    NCCL detects links and interfaces itself; enginix does not set its variables. A machine's own settings are
    passed here, and are visible in ``--dry-run``.

    Raises:
        UsageError: another form, or a variable that enginix sets.
    """
    variables = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise UsageError(f"{text!r} is not NAME=VALUE", where="--env")
        if name in ("PATH", "HOME", "TMPDIR", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "LD_PRELOAD"):
            raise UsageError(
                f"{name} is set by enginix",
                where="--env",
                fix="--gpus names the GPUs; the runtime brings the rest",
            )
        variables[name] = value
    return variables


def check_host(host: str) -> str:
    """Return a listen address that Triton can bind.

    Raises:
        UsageError: not an IP address, or one with a zone.
    """
    ports.address_family(host)
    if "%" in host:
        raise UsageError(
            f"{host!r} names a zone, which Triton's HTTP listener cannot bind",
            where="--host",
            fix="an address without a zone, or ::",
        )
    if (mapped := getattr(ipaddress.ip_address(host), "ipv4_mapped", None)) is not None:
        raise UsageError(
            f"{host!r} is an IPv4 address as IPv6 writes it, which Triton's HTTP listener cannot bind",
            where="--host",
            fix=str(mapped),
        )
    return host


def check_exit_timeout(seconds: int) -> int:
    """Refuse an exit timeout that Triton does not accept."""
    if not 0 <= seconds <= 86400:
        raise UsageError(f"{seconds} is not between 0 and 86400", where="--exit-timeout")
    return seconds
