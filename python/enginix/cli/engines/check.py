"""Compares an engine's manifest with this machine's GPU, driver and runtime, in milliseconds.

  enginix check ./engine
  enginix check ./engine --runtime trtllm-1.2.1
  enginix check ./engine --rootfs ./rootfs        versions of the image that is to serve it, too

Each field that differs is named, with what to rebuild. The exit code is 1 when the engine would not run.
"""

from __future__ import annotations

import argparse

from enginix import console, manifest
from enginix.cli.option_shapes import add_path
from enginix.compatibility.check import PORTABLE_KINDS, require_runnable
from enginix.errors import MachineError
from enginix.integrity import require_unchanged
from enginix.kinds.registry import find_start_module
from enginix.machine import driver
from enginix.machine.target import Machine, probe_machine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_path(parser, "engine", "ENGINE", "output of enginix build")
    parser.add_argument(
        "--runtime", metavar="ID", help="runtime that will serve it (default: the engine's own)"
    )
    add_path(parser, "--rootfs", "DIR", "root file system of that runtime's image")
    add_path(parser, "--driver", "DIR", "the GPU driver's root (default: found)")


def run(args: argparse.Namespace) -> int:
    machine: Machine | None = None
    engine_manifest = manifest.read_manifest(args.engine, "engine")
    require_unchanged(args.engine)
    live: dict[str, str] | None = None
    if (start := find_start_module(engine_manifest.kind)) is not None:
        live = start.read_installed_versions()
    if args.rootfs is not None:
        from enginix.runtime import table
        from enginix.runtime.image import read_image_versions

        live = read_image_versions(args.rootfs, table.find_runtime(args.runtime or engine_manifest.runtime))
    if engine_manifest.kind not in PORTABLE_KINDS:
        try:
            machine = probe_machine(driver.find_driver(args.driver))
        except MachineError as e:
            console.print_message(f"note: {e.what}")
    verdict = require_runnable(args.engine, machine, args.runtime, live)
    console.print_result(verdict.as_json(), verdict.text())
    return 0
