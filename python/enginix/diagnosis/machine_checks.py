"""The checks of ``enginix doctor``: the stages' own preflights, run without a stage."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from enginix.console import format_bytes
from enginix.errors import EnginixError, MachineError
from enginix.files import find_existing_parent
from enginix.optional_libraries import CORE, EXTRAS, format_install_command, has_module

# Ports that the servers take where none is given.
PORTS = {"tritonserver": (8000, 8001, 8002), "gateway": (4000,)}
FEWEST_BYTES = 10 << 30  # of disk, for a model of a billion parameters and what is made of it


Status = Literal["ok", "absent", "failed"]


@dataclass(frozen=True)
class CheckResult:
    """One line of the diagnosis.

    Attributes:
        status: ``ok``; ``absent``: something that only some stages need; ``failed``: a stage would end here.
        needed_for: what ends without it.
        fix: how to mend it; None where it is ok.
    """

    name: str
    status: Status
    detail: str
    needed_for: str
    fix: str | None = None


def run_checks(*, ask_hub: bool) -> list[CheckResult]:
    """Run every check; none changes anything.

    Args:
        ask_hub: ask the Hub for one small answer.
    """
    from enginix.up.stages import locate_cache

    results = [
        _check(
            "GPU and driver", "kinds tensorrt, llmapi, edgellm; --device cuda", _describe_gpus, optional=True
        ),
        _check("user namespaces", "whatever runs in NVIDIA's image", _describe_namespaces, optional=True),
        *_check_libraries(),
        _check("tritonserver", "enginix serve, up, bench", _describe_tritonserver, optional=True),
        _check_space("disk of the cache", locate_cache(), "downloads, engines", "set XDG_CACHE_HOME"),
        _check_space("temporary directory", Path(tempfile.gettempdir()), "conversion", "set TMPDIR"),
        _check("shared memory", "Triton's Python models", _describe_shared_memory),
        _check("open files", "servers under load", _describe_open_files),
    ]
    results += _check_ports()
    if ask_hub:
        results.append(_check("hub", "enginix lock, fetch, up", _describe_hub))
    return results


def _check(name: str, needed_for: str, describe: Callable[[], str], *, optional: bool = False) -> CheckResult:
    try:
        return CheckResult(name, "ok", describe(), needed_for)
    except EnginixError as e:
        where = f"{e.where}: " if e.where else ""
        return CheckResult(name, "absent" if optional else "failed", where + e.what, needed_for, e.fix)


def _describe_gpus() -> str:
    from enginix.machine.driver import find_driver
    from enginix.machine.target import name_target, probe_machine

    machine = probe_machine(find_driver(None))
    gpus = ", ".join(f"{gpu.name} (--target {name_target(gpu)})" for gpu in machine.gpus)
    cuda = "" if machine.cuda is None else f", CUDA {machine.cuda}"
    return f"{gpus}; driver {machine.driver}{cuda}"


def _describe_namespaces() -> str:
    from enginix.runtime.sandbox import check_namespaces

    check_namespaces()
    return "bubblewrap makes them"


def _check_libraries() -> Iterator[CheckResult]:
    missing = [module for module in CORE if not has_module(module)]
    fix = format_install_command(None, "doctor") if missing else None
    detail = f"{', '.join(missing)} missing" if missing else "complete"
    yield CheckResult("libraries of enginix", "failed" if missing else "ok", detail, "every stage", fix)
    for name, extra in EXTRAS.items():
        missing = [module for module in extra.modules if not has_module(module)]
        commands = ", ".join(
            (*extra.commands, "up", "bench") if name in ("serve", "gateway") else extra.commands
        )
        if name == "gateway" and os.environ.get("ENGINIX_GATEWAY_PYTHON"):
            yield _check(f"extra {name}", commands, _describe_gateway_python, optional=True)
            continue
        if missing:
            fix = format_install_command(name, extra.commands[0])
            yield CheckResult(f"extra {name}", "absent", f"{', '.join(missing)} missing", commands, fix)
        else:
            yield CheckResult(f"extra {name}", "ok", "complete", commands)


def _describe_gateway_python() -> str:
    from enginix.gateway.launch import find_gateway_python, require_litellm

    python = find_gateway_python(None)
    return f"litellm {require_litellm(python)} of {python}"


def _describe_tritonserver() -> str:
    from enginix.serve.tritonserver import find_tritonserver

    server = find_tritonserver(None)
    return f"{server.version} in {server.directory}"


def _check_space(name: str, directory: Path, needed_for: str, fix: str) -> CheckResult:
    present = find_existing_parent(directory)
    free = shutil.disk_usage(present).free
    detail = f"{format_bytes(free)} free in {directory}"
    if not os.access(present, os.W_OK):
        return CheckResult(
            name, "failed", f"{present} is not writable", needed_for, f"{fix} to another directory"
        )
    if free < FEWEST_BYTES:
        return CheckResult(name, "failed", detail, needed_for, f"{fix} to a larger disk, or free space")
    return CheckResult(name, "ok", detail, needed_for)


def _describe_shared_memory() -> str:
    from enginix.serve.preflight import SHM, check_shared_memory

    check_shared_memory(1)
    return f"{format_bytes(shutil.disk_usage(SHM).free)} free in {SHM}"


def _describe_open_files() -> str:
    import resource

    from enginix.serve.preflight import check_open_files

    check_open_files()
    return f"{resource.getrlimit(resource.RLIMIT_NOFILE)[0]} at a time"


def _check_ports() -> Iterator[CheckResult]:
    from enginix.ports import reserve_ports

    for server, numbers in PORTS.items():
        taken = []
        for number in numbers:
            try:
                reserve_ports("127.0.0.1", [("port", number)])
            except EnginixError as e:
                taken.append(e.what)
        listed = ", ".join(map(str, numbers))
        if taken:
            fix = "end what listens there, or pass other ports"
            yield CheckResult(f"ports of {server}", "absent", "; ".join(taken), server, fix)
        else:
            yield CheckResult(f"ports of {server}", "ok", f"{listed} free on loopback", server)


def _describe_hub() -> str:
    """Ask the endpoint for any answer, without a token: a refusal is an answer, too."""
    import urllib.error
    import urllib.request

    from enginix.hub.session import read_endpoint

    endpoint = read_endpoint()
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=10).close()
    except urllib.error.HTTPError as e:
        e.close()
    except (urllib.error.URLError, OSError) as e:
        raise MachineError(
            f"no answer: {getattr(e, 'reason', e)}",
            where=endpoint,
            fix="check the network, proxies (https_proxy) and HF_ENDPOINT",
        ) from e
    return f"{endpoint} answers"
