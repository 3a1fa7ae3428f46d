"""From a model's name to an OpenAI endpoint on loopback: every stage, then the servers, until Ctrl-C.

  enginix up Qwen/Qwen3-0.6B                       pin, download, convert, gate, serve
  enginix up ./qwen3-0.6b --format fp8             quantized with ModelOpt, compared with the model
  enginix up qwen3-0.6b.lock.json --dry-run        the stages and their commands, nothing else
  enginix up Qwen/Qwen3-0.6B --print-nix           the same as a Nix expression

MODEL is a repository of the Hub, a lock, or a directory. For a repository the lock is written into this
directory and read again by the next run, so that the model stays the same until enginix lock --update.
Stages are commands of enginix (convert, build, …); what each writes is kept under $XDG_CACHE_HOME/enginix/up,
named by everything that went into it. A second run starts the servers at once, and an interrupted one goes on
where it stopped. stages.jsonl there has the seconds, speed and memory of each stage that ran.

Kind reference runs on every machine, by PyTorch: it is the yardstick, not the fastest. Kinds tensorrt and
llmapi need the runtime's image: --runtime and --rootfs. Kind rtx needs TensorRT for RTX in this Python, and a
GPU that it takes, where enginix was never run (docs/reference/rtx.md). $ENGINIX_GATEWAY_PYTHON and
$ENGINIX_QUANTIZE_PYTHON name environments that have LiteLLM and ModelOpt, where this one lacks them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from enginix import console
from enginix.cli.option_shapes import add_flag, add_number, add_path, refuse_options
from enginix.console import format_bytes
from enginix.errors import EXIT_OK, MachineError, ModelError, UsageError
from enginix.files import refuse_damage
from enginix.kinds.registry import DEFAULT_KIND, KIND_NAMES, find_kind
from enginix.ports import LOOPBACK, reserve_ports
from enginix.runtime.table import DEFAULT_RUNTIME

if TYPE_CHECKING:
    from enginix.hub.lock import Lock
    from enginix.up.session import StageRecord
    from enginix.up.stages import Stage, UpRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="owner/name of the Hub, lock file, or directory")
    parser.add_argument("--kind", choices=KIND_NAMES, default=DEFAULT_KIND, help="kind of engine (reference)")
    parser.add_argument("--format", metavar="FORMAT", help="quantize first: fp8, nvfp4, int4_awq, …")
    add_path(parser, "--calibration", "DIR", "own calibration data (default: enginix's text)")
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit, for a new lock (main)")
    add_flag(parser, "--no-gates", "do not compare the engine with the model")
    parser.add_argument("--target", metavar="GPU", help="kinds tensorrt and llmapi: GPU (enginix target)")
    parser.add_argument(
        "--runtime",
        metavar="ID",
        help="kinds tensorrt and llmapi: a name (enginix runtime list) or FILE.json",
    )
    add_path(parser, "--rootfs", "DIR", "root file system of the runtime's image")
    parser.add_argument("--device", metavar="DEVICE", help="kind reference: cpu, cuda, cuda:N (cpu)")
    add_flag(parser, "--interpreter", "kind rtx: execute its network on the CPU, for tests")
    add_path(parser, "--tritonserver", "DIR", "as enginix serve has it")
    add_path(parser, "--gateway-python", "P", "python3 that has litellm")
    add_number(parser, "--port", "of the endpoint (4000; 0: a free one)", default=4000)
    parser.add_argument("--ask", metavar="PROMPT", help="ask once when ready")
    add_flag(parser, "--exit-after-ask", "end after --ask")
    add_number(parser, "--start-timeout", "of each server (600)", default=600, type=float, metavar="S")
    add_flag(parser, "--dry-run", "print the stages and their commands")
    add_flag(parser, "--print-nix", "print the Nix expression of the same stages")


def run(args: argparse.Namespace) -> int:
    from enginix.up import session, stages

    if args.exit_after_ask and args.ask is None:
        raise UsageError("--exit-after-ask without --ask", fix="add --ask PROMPT")
    if args.ask == "":
        raise UsageError("is empty", where="--ask", fix="give a question")
    _check_options(args)
    request = _read_request(args)
    if args.print_nix:
        lock_file = None if request.lock is None else request.source.name
        console.print_result(
            {"nix": stages.format_nix(request, lock_file)}, stages.format_nix(request, lock_file)
        )
        return EXIT_OK
    cache = stages.locate_cache()
    planned = stages.plan_stages(request, cache)
    if args.dry_run:
        return _print_stages(planned)
    gateway_python = _require_software(args)
    reserve_ports(LOOPBACK[0], [("--port", args.port)])
    _require_disk(request, planned, cache)
    log = session.RunLog(cache / "stages.jsonl")
    records = session.run_stages(planned, log, as_json=args.json, quiet=args.quiet)
    return _serve(args, request, planned[-1].output, gateway_python, records)


def _check_options(args: argparse.Namespace) -> None:
    """Refuse before any stage, and before a lock is written, what a later stage would refuse."""
    if args.format is not None:
        from enginix.quantize.formats import MIXED, find_format

        if args.format == MIXED:
            raise UsageError(
                "enginix up has no option for the budget of format mixed",
                where="--format",
                fix="enginix quantize --format mixed --effective-bits N, then enginix up DIR",
            )
        find_format(args.format)
    # Nix has a runtime by default; the command line has none.
    needed = {"tensorrt": ("target", "runtime"), "llmapi": ("runtime",)}.get(args.kind, ())
    for option in needed:
        if getattr(args, option) is None and not (args.print_nix and option == "runtime"):
            raise UsageError(
                f"--{option} is needed for kind {args.kind}",
                where="enginix up",
                fix=f"for instance --{option} " + ("h200" if option == "target" else DEFAULT_RUNTIME),
            )
    kind = find_kind(args.kind)
    if args.interpreter and not kind.has_interpreter:
        raise UsageError(f"kind {args.kind} has no interpreter", where="--interpreter", fix="leave it out")
    unread: tuple[str, ...] = () if kind.has_target else ("target", "runtime")
    if kind.own_build is not None:
        unread = ("target", "runtime", "rootfs", "device", "no_gates")
    refuse_options(args, unread, f"not an option of kind {args.kind}")
    if args.target is not None:
        from enginix.machine.target import find_target

        find_target(args.target)
    if args.runtime is not None and needed:
        from enginix.runtime.table import find_runtime

        find_runtime(args.runtime, args.kind)
    for option in ("calibration", "rootfs", "tritonserver", "gateway_python"):
        path, name = getattr(args, option), f"--{option.replace('_', '-')}"
        if path is not None and not os.path.exists(path):
            raise UsageError(f"{path} does not exist", where=name, fix="pass a path that does")
        if path is not None and option in ("rootfs", "tritonserver") and not path.is_dir():
            raise UsageError(f"{path} is no directory", where=name, fix="pass the directory that it is in")
    if args.calibration is not None:
        from enginix.quantize.calibration import read_calibration

        read_calibration(args.calibration)


def _read_request(args: argparse.Namespace) -> UpRequest:
    from enginix.up import stages

    path = Path(args.model)
    lock: Lock | None = None
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError("no config.json", where=path, fix="pass a model's directory")
        source = path.resolve()
    else:
        source, lock = _read_or_write_lock(args, path)
    gpu = [] if args.target is None else ["--target", args.target]
    runtime = [] if args.runtime is None else ["--runtime", args.runtime]
    image = [] if args.rootfs is None else ["--rootfs", str(args.rootfs.resolve())]
    device = [] if args.device is None else ["--device", args.device]
    return stages.UpRequest(
        name=stages.name_model(args.model if lock is None else lock.repo),
        source=source,
        lock=lock,
        kind=args.kind,
        format=args.format,
        calibration=None if args.calibration is None else args.calibration.resolve(),
        build_options=tuple([*gpu, *runtime, *image, *device]),
        serve_options=tuple(image),
        gates=not args.no_gates,
        interpreted=args.interpreter,
    )


def _read_or_write_lock(args: argparse.Namespace, path: Path) -> tuple[Path, Lock]:
    """Return the lock of a repository: the file that was given, one of an earlier run, or a new one."""
    from enginix.files import write_text
    from enginix.hub.lock import Selection, read_lock
    from enginix.up.stages import name_model

    if path.is_file():
        return path.resolve(), read_lock(path)
    from enginix.hub.hub_urls import choose_revision, parse_hub_source
    from enginix.hub.locking import make_lock

    hub_source = parse_hub_source(args.model)
    file = Path(f"{name_model(hub_source.name)}.lock.json").resolve()
    if file.exists():
        lock = read_lock(file)
        if lock.repo != hub_source.name:
            raise UsageError(
                f"pins {lock.repo}, not {hub_source.name}",
                where=file,
                fix=f"run in another directory, or pass the lock: enginix up {file.name}",
            )
        console.print_message(
            f"{file.name}: {lock.repo} at {lock.revision[:12]}, as an earlier run pinned it"
        )
        return file, lock
    revision = choose_revision(hub_source, args.revision)
    new = make_lock(hub_source.name, Selection(revision=revision or "main"))
    console.print_notes(new.notes)
    write_text(file, new.lock.dump())
    console.print_message(f"{file.name}: {new.lock.repo} at {new.lock.revision[:12]}, pinned")
    return file, new.lock


def _print_stages(planned: tuple[Stage, ...]) -> int:
    rows = [
        {
            "stage": s.name,
            "command": ["enginix", *s.words],
            "output": str(s.output),
            "here": s.output.exists(),
        }
        for s in planned
    ]
    lines = [f"{'#' if s.output.exists() else ' '} enginix {shlex.join(s.words)}" for s in planned]
    legend = "\n# is here already" if any(s.output.exists() for s in planned) else ""
    console.print_result({"stages": rows}, "\n".join(lines) + legend)
    return EXIT_OK


def _require_software(args: argparse.Namespace) -> Path:
    """Return an environment with LiteLLM; name all that is missing at once, before an hour of work.

    Raises:
        MachineError: LiteLLM, tritonserver, ModelOpt or libraries of the kind are missing.
    """
    from enginix.gateway.launch import find_gateway_python
    from enginix.optional_libraries import require_extra
    from enginix.up.endpoint import list_server_checks, require_all

    python = find_gateway_python(args.gateway_python)
    checks = list_server_checks(args.kind, python, args.tritonserver, args.device)
    own_build = find_kind(args.kind).own_build
    if own_build is not None:
        checks.append(lambda: require_extra(own_build.extra, own_build.command))
    if args.format is not None and not os.environ.get("ENGINIX_QUANTIZE_PYTHON"):
        checks.append(lambda: require_extra("quantize", "quantize"))
    # The flake's has no TensorRT for RTX.
    require_all(checks, "up" if own_build is None else None)
    return python


def _require_disk(request: UpRequest, planned: tuple[Stage, ...], cache: Path) -> None:
    """Refuse what does not fit the disk: the model, and its checkpoint, both about the lock's size."""
    import tempfile

    if any(not stage.output.exists() for stage in planned):
        fix = "set XDG_CACHE_HOME to a directory that this user may write"
        with refuse_damage(MachineError, cache, fix, what="cannot be written"):
            cache.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=cache).close()
    missing = [s for s in planned if not s.output.exists() and s.name in ("fetch", "quantize", "convert")]
    size = sum(s.input_bytes for s in missing)
    free = shutil.disk_usage(cache).free
    if size > free:
        raise MachineError(
            f"the stages need about {format_bytes(size)}, and {format_bytes(free)} are free",
            where=cache,
            fix="free space, or set XDG_CACHE_HOME to a larger disk",
        )
    if size:
        console.print_message(
            f"{request.name}: the stages write about {format_bytes(size)}; {format_bytes(free)} are free"
        )


def _serve(
    args: argparse.Namespace,
    request: UpRequest,
    artefact: Path,
    gateway_python: Path,
    records: Sequence[StageRecord],
) -> int:
    import tempfile

    from enginix import ports
    from enginix.up import endpoint, session
    from enginix.up.stages import name_endpoint, plan_server

    name = name_endpoint(request)
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="enginix-up-")))
        [port] = ports.reserve_ports("127.0.0.1", [("--port", args.port)])
        plan = plan_server(request, artefact, ports.choose_loopback_port())
        options = endpoint.EndpointOptions(gateway_python, port, args.start_timeout, work, args.tritonserver)
        running = stack.enter_context(endpoint.run_endpoint(plan, name, options))
        address = running.url.removesuffix("/v1")
        described: dict[str, object] = {
            "url": f"{address}/v1",
            "model": name,
            "kind": request.kind,
            "stages": [r.as_json() for r in records],
        }
        if not args.json:
            console.print_result(described, _describe_endpoint(address, name))
        if args.ask is not None:
            from enginix.up.chat import complete_text

            text = complete_text(f"{address}/v1", name, args.ask)
            console.print_piece(f"{args.ask}{text}\n")
            described["answer"] = {"text": text}
        if args.json:
            console.print_result(described, "")
        if args.exit_after_ask:
            return EXIT_OK
        return session.wait_for_end(running.servers)


def _describe_endpoint(address: str, name: str) -> str:
    body = json.dumps({"model": name, "prompt": "Once upon a time", "max_tokens": 32})
    return (
        f"ready: {address}/v1 serves {name}; Ctrl-C ends it\n\n"
        f"  curl {address}/v1/completions -H 'Content-Type: application/json' -d '{body}'\n\n"
        f"  import openai\n"
        f'  client = openai.OpenAI(base_url="{address}/v1", api_key="none")\n'
        f'  client.completions.create(model="{name}", prompt="Once upon a time", max_tokens=32)\n\n'
        f"next: enginix chat {address}/v1"
    )
