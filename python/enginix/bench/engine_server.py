"""The server of an engine for the time of a measurement: Triton behind the gateway, or trtllm-serve."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from enginix import ports
from enginix.compatibility.check import check_before_start
from enginix.errors import MachineError, UsageError
from enginix.kinds.registry import find_kind
from enginix.manifest import Manifest, read_manifest
from enginix.runtime.image import read_image_versions
from enginix.runtime.table import find_runtime
from enginix.up import session
from enginix.up.endpoint import (
    EndpointOptions,
    RunningEndpoint,
    list_server_checks,
    require_all,
    run_endpoint,
)
from enginix.up.stages import Stage, UpRequest, is_served_by_triton, name_endpoint, name_model, plan_server


@dataclass(frozen=True)
class EngineServerOptions:
    """How an engine is served.

    Attributes:
        device: kind reference: None is the CPU.
        interpreter: kind rtx: checkpoint whose network the CPU executes.
        rootfs: kinds tensorrt and llmapi: root file system of the runtime's image; None is this machine's.
        pin: their runtime's pin file.
        driver: the GPU driver's root; None finds it.
        tritonserver: None finds it.
        gateway_python: ``python3`` that has LiteLLM; None finds it.
        start_timeout: seconds of each server.
        quiet: the stage before the server shows no progress.
    """

    device: str | None = None
    interpreter: Path | None = None
    rootfs: Path | None = None
    pin: Path | None = None
    driver: Path | None = None
    tritonserver: Path | None = None
    gateway_python: Path | None = None
    start_timeout: float = 600
    quiet: bool = False


@contextlib.contextmanager
def serve_engine(engine: Path, options: EngineServerOptions) -> Iterator[RunningEndpoint]:
    """Serve an engine on free ports of loopback until the block ends, as ``enginix up`` does.

    Raises:
        UsageError: an option that the kind has not, or a kind whose server is started by hand.
        MachineError: software is missing, or a server does not start; with its last lines.
        Mismatch: the engine does not run on this machine.
    """
    manifest = read_manifest(engine, "engine")
    kind = find_kind(manifest.kind or "")
    if kind.server_by_hand is not None:
        raise UsageError(
            f"the server of kind {kind.name} needs the engine's model",
            where=engine,
            fix=f"{kind.server_by_hand.format(engine=engine)}, "
            f"then enginix bench http://127.0.0.1:8000/v1 --engine {engine}",
        )
    _refuse_options(kind.name, options)
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="enginix-bench-")))
        if is_served_by_triton(kind.name):
            running = _serve_by_triton(engine.absolute(), manifest, work, options)
        else:
            _require_runtime(engine, manifest, options)
            running = _serve_by_trtllm(engine.absolute(), manifest, work, options)
        yield stack.enter_context(running)


def _refuse_options(kind: str, options: EngineServerOptions) -> None:
    own: dict[str, tuple[str, ...]] = {"device": ("reference",), "interpreter": ("rtx",)}
    own |= {name: ("tensorrt", "llmapi") for name in ("rootfs", "pin", "driver")}
    own |= {name: ("reference", "rtx") for name in ("tritonserver", "gateway_python")}
    for name, kinds in own.items():
        if getattr(options, name) is not None and kind not in kinds:
            raise UsageError(
                f"an option of kind {' and '.join(kinds)}; this engine is of kind {kind}",
                where=f"--{name.replace('_', '-')}",
                fix="leave it out",
            )


def _require_runtime(engine: Path, manifest: Manifest, options: EngineServerOptions) -> None:
    """Refuse an engine whose GPU or runtime is not here, before a server is started for it."""
    runtime = find_runtime(manifest.runtime, manifest.kind, options.pin)
    if options.rootfs is None and shutil.which("trtllm-serve") is None:
        raise MachineError(
            f"no trtllm-serve on this machine, and no image of {runtime.id} is named",
            where=engine,
            fix=f"on the machine with its GPU: enginix bench {engine} --rootfs DIR, the image's root;\n"
            f"       or start trtllm-serve there: enginix bench http://HOST:8000/v1 --engine {engine}",
        )
    check_before_start(manifest, engine, options.driver, live=read_image_versions(options.rootfs, runtime))


def _serve_by_triton(
    engine: Path, manifest: Manifest, work: Path, options: EngineServerOptions
) -> contextlib.AbstractContextManager[RunningEndpoint]:
    from enginix.gateway.launch import find_gateway_python

    python = find_gateway_python(options.gateway_python)
    app = "bench" if find_kind(manifest.kind or "").own_build is None else None
    require_all(list_server_checks(manifest.kind or "", python, options.tritonserver, options.device), app)
    repository = work / "repository"
    words = ["triton-repo", str(engine)]
    words += [] if options.device is None else ["--device", options.device]
    words += [] if options.interpreter is None else ["--interpreter", str(options.interpreter.absolute())]
    stage = Stage("triton-repo", (*words, "-o", str(repository)), repository)
    session.run_stages([stage], session.RunLog(work / "stages.jsonl"), as_json=True, quiet=options.quiet)
    request = _make_request(engine, manifest)
    gateway_port, port = ports.reserve_ports(ports.LOOPBACK[0], [("", 0), ("", 0)])
    return run_endpoint(
        plan_server(request, repository, port),
        name_endpoint(request),
        EndpointOptions(python, gateway_port, options.start_timeout, work, options.tritonserver),
    )


def _serve_by_trtllm(
    engine: Path, manifest: Manifest, work: Path, options: EngineServerOptions
) -> contextlib.AbstractContextManager[RunningEndpoint]:
    given = {"--rootfs": options.rootfs, "--pin": options.pin, "--driver": options.driver}
    paths = {flag: path for flag, path in given.items() if path is not None}
    words = tuple(word for flag, path in paths.items() for word in (flag, str(path.absolute())))
    request = _make_request(engine, manifest, words)
    plan = plan_server(request, engine, ports.choose_loopback_port())
    return run_endpoint(plan, request.name, EndpointOptions(None, 0, options.start_timeout, work))


def _make_request(engine: Path, manifest: Manifest, serve_options: tuple[str, ...] = ()) -> UpRequest:
    name = name_model(manifest.name) or "engine"
    return UpRequest(name, engine, None, kind=manifest.kind or "", serve_options=serve_options)
