"""The program of Nix builds of engines: ``machine`` checks the machine, ``build`` builds an engine.

It loads no sub-command.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from enginix import console
from enginix.console import format_bytes
from enginix.errors import MachineError
from enginix.kinds.tensorrt.build.engine_build import build_tensorrt_engine
from enginix.kinds.tensorrt.build.request import BuildPaths, make_build_request, read_request
from enginix.machine import driver as drivers
from enginix.machine.target import find_target
from enginix.runtime import preflight, table


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``machine`` or ``build`` and return the exit code."""
    parser = argparse.ArgumentParser(prog="enginix", allow_abbrev=False)
    parser.add_argument("verb", choices=("machine", "build"))
    parser.add_argument("--request", type=Path, required=True)
    # Nix passes an empty text for an absent value.
    for name in ("checkpoint", "model", "rootfs", "driver", "out", "timing"):
        parser.add_argument(f"--{name}", type=lambda text: Path(text) if text else None)
    args = parser.parse_args(argv)
    try:
        if args.rootfs is None:
            raise MachineError(
                "the runtime has no root file system", where="rootfs", fix="pin it: enginix runtime pin"
            )
        if args.verb == "machine":
            check_build_machine(args)
        else:
            paths = BuildPaths(args.out, args.rootfs, args.driver, in_place=True, timing=args.timing)
            request = make_build_request(read_request(args.request), args.checkpoint, args.model)
            build_tensorrt_engine(request, args.checkpoint, args.model, paths)
    except Exception as e:
        return console.report_error(e)
    return 0


def check_build_machine(args: argparse.Namespace) -> None:
    """Check a machine before there is a checkpoint: namespaces, runtime, driver, GPU.

    Raises:
        MachineError: the machine cannot build for the target.
    """
    request_fields = read_request(args.request)
    runtime = table.find_runtime(request_fields["runtime"], "tensorrt")
    build_target = find_target(str(request_fields["target"]))
    host_machine = preflight.require_machine(
        runtime,
        args.rootfs,
        drivers.find_driver(args.driver),
        accept_driver=bool(request_fields.get("acceptDriver")),
    )
    gpu = preflight.check_gpu(build_target, host_machine, workers=1, weights=0).gpu
    with tempfile.TemporaryDirectory(prefix="enginix-") as work:
        preflight.check_disk(Path(work), Path(work), 0, workspace=False)
    console.print_message(
        f"{gpu.name}, SM {gpu.sm}, {format_bytes(gpu.free)} free; driver {host_machine.driver}; "
        f"runtime {runtime.id}"
    )
