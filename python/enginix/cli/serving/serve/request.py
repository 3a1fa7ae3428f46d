"""Arguments of ``enginix serve`` → a checked request for a server; nothing is started."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from enginix import manifest
from enginix.errors import UsageError
from enginix.kinds.registry import DEFAULT_KIND, find_start_module, get_kind, has_rank_processes
from enginix.machine import driver as drivers
from enginix.machine.driver import Driver
from enginix.serve import flags, hosts, launch, preflight, tritonserver
from enginix.serve.launch import Endpoints, ImageLaunch, LaunchSpec
from enginix.serve.preflight import ServedRepository
from enginix.serve.tritonserver import TritonServer


@dataclass(frozen=True)
class ServeRequest:
    """A start whose ports are not chosen yet.

    Attributes:
        plan: the launch spec, without ports.
        driver: driver of this machine's GPUs.
        endpoints: the endpoints that are on, with the requested ports; 0 takes any free port.
        local_ranks: ranks of this machine, where other machines have the rest.
    """

    plan: LaunchSpec
    repository: ServedRepository
    driver: Driver
    endpoints: tuple[tuple[str, int], ...]
    local_ranks: int | None

    @property
    def ports(self) -> list[tuple[str, int]]:
        """Return (option, requested port) of each endpoint."""
        return [(f"--{name}-port", port) for name, port in self.endpoints]

    def on(self, numbers: Sequence[int]) -> LaunchSpec:
        """Return the launch spec with these ports, one for each endpoint."""
        given = {name: number for (name, _), number in zip(self.endpoints, numbers, strict=True)}
        host = self.plan.endpoints.host
        endpoints = Endpoints(host, given["http"], given.get("grpc"), given.get("metrics"))
        return replace(self.plan, endpoints=endpoints)


def read_serve_request(args: argparse.Namespace) -> ServeRequest:
    """Resolve and check everything that the arguments name.

    Raises:
        UsageError: an argument is misspelt, conflicts with another, or needs one that is missing.
        EnginixError: something that they name is missing, broken, or does not fit.
    """
    if args.exit_after_ask and args.ask is None:
        raise UsageError("needs --ask", where="--exit-after-ask")
    server = _find_server(args)
    repository = preflight.check_repository(args.repository, server)
    machines, local_ranks = _find_hosts(args, server, repository)
    launch.check_host(args.host)
    gpus = launch.check_gpus(args.gpus)
    driver = drivers.find_driver(args.driver)
    inside = None
    if server.rootfs is not None:
        runtime = server.find_runtime(repository.manifest.kind, args.pin)
        inside = ImageLaunch(runtime, driver, repository.reads)
    spec = LaunchSpec(
        server=server,
        repository=repository.directory,
        python=(args.python or Path(sys.executable).with_name("python3")).absolute(),
        endpoints=Endpoints(args.host, 0, 0, 0),
        exit_timeout=launch.check_exit_timeout(args.exit_timeout),
        verbose=1 if args.verbose else 0,
        gpus=gpus,
        ranks=repository.ranks,
        inside=inside,
        flags=flags.check_triton_flags(args.triton_flag, server.version),
        admin_key=flags.read_admin_key(args.admin_key_file),
        environ=_worker_environment(repository) | launch.check_environ(args.env),
        hosts=machines,
        agent=hosts.find_agent(args.agent) if len(machines) > 1 else None,
    )
    if repository.ranks > 1:
        sandbox = spec.make_sandbox(Path("$STATE"))
        seen = spec.environment(Path("$STATE")) if sandbox is None else sandbox.environment()
        spec = replace(spec, mpirun=preflight.find_mpirun(server, seen))
    names = [n for n in ("http", "grpc", "metrics") if not getattr(args, f"no_{n}", False)]
    endpoints = tuple((name, getattr(args, f"{name}_port")) for name in names)
    return ServeRequest(spec, repository, driver, endpoints, local_ranks)


def _find_server(args: argparse.Namespace) -> TritonServer:
    if args.rootfs is None and args.model_runtime is None:
        return tritonserver.find_tritonserver(args.tritonserver)
    if args.rootfs is not None and args.tritonserver is not None:
        raise UsageError("--tritonserver and --rootfs exclude each other", fix="pass one of them")
    described = manifest.read_manifest(args.repository, "triton-repository").runtime
    if args.rootfs is None:
        return tritonserver.find_tritonserver(args.tritonserver, args.model_runtime, described)
    named = described if args.model_runtime in (None, described.get("id")) else args.model_runtime
    return tritonserver.find_in_image(args.rootfs, named)


def _find_hosts(
    args: argparse.Namespace, server: TritonServer, repository: ServedRepository
) -> tuple[tuple[hosts.Host, ...], int | None]:
    """Return the machines of the ranks, if there are several, and the number of ranks of this one."""
    kind = repository.manifest.kind or DEFAULT_KIND
    if args.hosts is not None or args.hostfile is not None:
        machines = (
            hosts.parse_hosts(args.hosts) if args.hosts is not None else hosts.read_hostfile(args.hostfile)
        )
        hosts.check_hosts(machines, repository.ranks, kind, server.rootfs is not None, repository.engine)
        if len(machines) == 1:
            hosts.check_single_host(repository.ranks, repository.engine)
        return machines, machines[0].slots
    local_ranks: int | None = args.worker
    if local_ranks is None:
        if has_rank_processes(kind):
            hosts.check_single_host(repository.ranks, repository.engine)
        return (), None
    if not has_rank_processes(kind) or not 0 < local_ranks < repository.ranks:
        raise UsageError(
            f"{local_ranks} ranks on this machine, of an engine of kind {kind} with {repository.ranks}",
            where="--worker",
            fix="pass the number of slots that --hosts of the first machine gives this one",
        )
    if server.rootfs is not None:
        raise UsageError(
            "--rootfs makes a sandbox, in which another machine cannot start ranks",
            where="--worker",
            fix="run it in a container of the runtime's image",
        )
    return (), local_ranks


def _worker_environment(repository: ServedRepository) -> dict[str, str]:
    """Return the variables that a kind needs; the LLM class starts a process for each of several GPUs."""
    kind, start = get_kind(repository.manifest.kind), find_start_module(repository.manifest.kind)
    if start is not None:
        return start.list_variables(repository.manifest.name)
    if kind is None or kind.triton is None or not kind.triton.starts_workers:
        return {}
    return {"TLLM_WORKER_USE_SINGLE_PROCESS": "1" if repository.manifest.target.get("count", 1) == 1 else "0"}
