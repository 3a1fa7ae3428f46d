"""OpenAI's interface of an artefact on loopback: its server, and the gateway where it needs one."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from enginix.errors import MachineError
from enginix.optional_libraries import FROM_FLAKE, locate_flake
from enginix.ports import LOOPBACK, reserve_ports
from enginix.up import session
from enginix.up.stages import ServerPlan, is_served_by_triton


@dataclass(frozen=True)
class EndpointOptions:
    """How servers are started.

    Attributes:
        gateway_python: ``python3`` that has LiteLLM; None puts no gateway in front.
        port: of the gateway.
        start_timeout: seconds of each server.
        work: directory of logs and of the gateway's description.
        tritonserver: None finds it.
    """

    gateway_python: Path | None
    port: int
    start_timeout: float
    work: Path
    tritonserver: Path | None = None


@dataclass(frozen=True)
class RunningEndpoint:
    """Servers that answer.

    Attributes:
        url: up to ``/v1``.
        servers: in the order of their start.
        begun: when the first was started, by the clock of ``time.monotonic``.
        seconds: from then until the last answered.
    """

    url: str
    servers: tuple[session.RunningServer, ...]
    begun: float
    seconds: float


@contextlib.contextmanager
def run_endpoint(plan: ServerPlan, name: str, options: EndpointOptions) -> Iterator[RunningEndpoint]:
    """Run a server, and the gateway in front of it, until the block ends.

    Args:
        name: of the model at the gateway.

    Raises:
        MachineError: one ended, or did not answer in time; with its last lines.
    """
    words = [*plan.words]
    if plan.name == "tritonserver":
        words += ["--start-timeout", str(options.start_timeout)]
        words += (
            [] if options.tritonserver is None else ["--tritonserver", str(options.tritonserver.resolve())]
        )
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(session.run_server(plan.name, words, options.work / "server.log"))]
        if options.gateway_python is None:
            url = plan.backend["url"]
            probe = f"{url}/models"
        else:
            # Beside it: the gateway is ready when the server behind it has answered.
            description = options.work / "gateway.json"
            content = {"version": 1, "name": name, "models": {name: [plan.backend]}}
            description.write_text(json.dumps(content), "utf-8")
            words = ["gateway", str(description), "--port", str(options.port)]
            words += ["--python", str(options.gateway_python), "--start-timeout", str(options.start_timeout)]
            servers.append(
                stack.enter_context(session.run_server("gateway", words, options.work / "gateway.log"))
            )
            url = f"http://127.0.0.1:{options.port}/v1"
            probe = f"http://127.0.0.1:{options.port}/health/ready"
        try:
            session.await_url(probe, servers, options.start_timeout)
        except MachineError:
            # Another server may have taken the port since it was checked.
            if options.gateway_python is not None and not servers[-1].is_listening(probe):
                reserve_ports(LOOPBACK[0], [("--port", options.port)])
            raise
        yield RunningEndpoint(url, tuple(servers), begun, time.monotonic() - begun)


def list_server_checks(
    kind: str, gateway_python: Path, tritonserver: Path | None, device: str | None
) -> list[Callable[[], object]]:
    """List what must be there to serve a kind behind the gateway; each raises ``MachineError``."""
    from enginix.device import find_device
    from enginix.gateway.launch import require_litellm
    from enginix.optional_libraries import require_extra
    from enginix.serve.tritonserver import find_tritonserver

    checks: list[Callable[[], object]] = [lambda: require_litellm(gateway_python)]
    if is_served_by_triton(kind):
        checks += [lambda: require_extra("serve", "triton-repo"), lambda: find_tritonserver(tritonserver)]
    if device is not None:
        checks.append(lambda: find_device(device))
    return checks


def require_all(checks: Sequence[Callable[[], object]], app: str | None) -> None:
    """Run checks and name all that is missing at once, before an hour of work.

    Args:
        app: of the flake, which brings all that the checks ask for; None where none does.

    Raises:
        MachineError: of one check, or of several with their fixes.
    """
    missing: list[MachineError] = []
    for check in checks:
        try:
            check()
        except MachineError as e:
            missing.append(e)
    if not missing:
        return
    what = "; ".join(f"{e.where}: {e.what}" for e in missing)
    if app is not None and any(FROM_FLAKE in (e.fix or "") for e in missing):
        raise MachineError(what, fix=f"{FROM_FLAKE}: nix run {locate_flake()}#{app} -- …")
    if len(missing) == 1:
        raise missing[0]
    raise MachineError(what, fix="\n       ".join(e.fix for e in missing if e.fix))
