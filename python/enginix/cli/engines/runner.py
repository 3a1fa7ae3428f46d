"""Serves a model by trtllm-serve (OpenAI interface); builds its engine first, once, into your cache.

  enginix runner ./engine --rootfs ROOT                     serve an engine that exists
  enginix runner --checkpoint C --model M --request R.json --rootfs ROOT

The second form is what mkRunner's command does: the engine is built at first run for the GPU of this
machine, under $XDG_CACHE_HOME/enginix, and reused from then on (enginix cache list). Before the server
starts, the engine is compared with the GPU, the driver and the runtime; a mismatch is an error that says
what to rebuild.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from enginix import console, manifest
from enginix.cli.option_shapes import add_flag, add_image_options, add_number, add_path
from enginix.compatibility import check
from enginix.digests import SourceWatch
from enginix.errors import MachineError, UsageError
from enginix.integrity import require_unchanged
from enginix.kinds.llmapi.trtllm_serve import Serving, make_serve_command
from enginix.kinds.tensorrt import runner
from enginix.machine import driver as drivers
from enginix.machine.driver import Driver
from enginix.machine.target import find_target, name_target, probe_machine
from enginix.ports import explain_open_address
from enginix.runtime import table
from enginix.runtime.image import read_image_versions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", type=Path, nargs="?", metavar="ENGINE", help="output of enginix build")
    add_path(parser, "--checkpoint", "DIR", "build from it at first run")
    add_path(parser, "--model", "DIR", "the model that the checkpoint was made from")
    add_path(parser, "--request", "FILE", "build request, as JSON")
    add_image_options(parser)
    parser.add_argument("--host", default="127.0.0.1", help="listen address (default: loopback)")
    parser.add_argument("--port", type=int, default=8000, help="listen port (default: 8000)")
    add_number(
        parser,
        "--kv-cache-fraction",
        "share of the free GPU memory for the KV cache, 0 to 1",
        type=float,
        metavar="X",
    )
    add_flag(parser, "--build-only", "build the engine and print its path")


def run(args: argparse.Namespace) -> int:
    if (args.engine is None) == (args.request is None):
        raise UsageError("pass ENGINE, or --request with --model", fix="see enginix runner --help")
    if args.kv_cache_fraction is not None and not 0 < args.kv_cache_fraction <= 1:
        raise UsageError(
            f"--kv-cache-fraction is {args.kv_cache_fraction}", fix="pass a number above 0 and up to 1"
        )
    if not 0 <= args.port <= 65535:
        raise UsageError(f"--port is {args.port}", fix="pass 0 to 65535")
    driver = drivers.find_driver(args.driver)
    engine = args.engine if args.engine is not None else _build_engine(args, driver)
    watch = SourceWatch(engine)
    engine_manifest = manifest.read_manifest(engine, "engine")
    require_unchanged(engine)
    runtime = table.find_runtime(engine_manifest.runtime, engine_manifest.kind, args.pin)
    check.check_before_start(
        engine_manifest, engine, args.driver, live=read_image_versions(args.rootfs, runtime)
    )
    if args.build_only:
        console.print_result({"engine": str(engine)}, str(engine))
        return 0
    return _serve_engine(args, engine.absolute(), driver, runtime, watch)


def _build_engine(args: argparse.Namespace, driver: Driver) -> Path:
    from enginix.kinds.tensorrt.build.engine_build import build_tensorrt_engine
    from enginix.kinds.tensorrt.build.engine_checkpoint import BuildCheckpoint
    from enginix.kinds.tensorrt.build.request import BuildPaths, make_build_request, read_request

    if args.model is None:
        raise UsageError("--model is needed with --request")
    try:
        machine = probe_machine(driver)
    except MachineError as e:
        raise MachineError(
            f"no NVIDIA GPU to build for: {e.what}", fix="run it on the machine that serves"
        ) from e
    build_request = read_request(args.request)
    gpu = machine.gpus[0]
    # The engine is for the GPU that is here; a row of the table that names it tells its product.
    build_request["pin"] = str(args.pin) if args.pin else None
    target_name = build_request.get("target")
    build_request["target"] = find_target(name_target(gpu) if target_name is None else target_name).name
    request = make_build_request(build_request, args.checkpoint, args.model)
    facts = BuildCheckpoint.read_input(args.checkpoint, args.model)
    name = runner.hash_identity(
        {
            "inputs": facts.identity(args.model),
            "request": build_request,
            "gpu": gpu.name,
            "sm": gpu.sm,
            "runtime": request.runtime.id,
        }
    )

    def make(path: Path) -> None:
        build_tensorrt_engine(
            request, args.checkpoint, args.model, BuildPaths(path, args.rootfs, args.driver)
        )

    return runner.get_or_build_engine(name, make)


def _serve_engine(
    args: argparse.Namespace, engine: Path, driver: Driver, runtime: table.Runtime, watch: SourceWatch
) -> int:
    from enginix.beside import end_if_files_change
    from enginix.runtime.child import run_in_foreground
    from enginix.runtime.sandbox import Sandbox, check_namespaces, make_read_binds

    engine_manifest = manifest.read_manifest(engine, "engine")
    console.print_notes([manifest.explain_ungated(engine_manifest)])
    if args.rootfs is not None:
        check_namespaces()
    with tempfile.TemporaryDirectory(prefix="enginix-", ignore_cleanup_errors=True) as work:
        # Needed even without a target in the manifest: an engine of kind llmapi may lack one.
        sizes = [engine_manifest.options.get(name) for name in ("tensorParallel", "pipelineParallel")]
        is_single_gpu = all(size in (None, 1) for size in sizes)
        sandbox = Sandbox(
            runtime,
            args.rootfs,
            Path(work),
            driver,
            binds=make_read_binds([engine]),
            network=True,
            extra={"TLLM_WORKER_USE_SINGLE_PROCESS": "1" if is_single_gpu else "0"},
        )
        sandbox.prepare()
        fraction = args.kv_cache_fraction
        serving = Serving(args.host, args.port, fraction, work=sandbox.work, inside=sandbox.inside)
        words = make_serve_command(engine, engine_manifest, serving)
        console.print_notes([explain_open_address(args.host, "trtllm-serve")], "warning")
        console.print_message(" ".join(words))
        return run_in_foreground(sandbox, words, lambda: end_if_files_change(watch, args.host, args.port))
