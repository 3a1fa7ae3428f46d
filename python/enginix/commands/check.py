"""Whether this machine runs an engine: its manifest against the GPU, the driver and the runtime, in
milliseconds.

  enginix check ./engine
  enginix check ./engine --runtime trtllm-1.2.1

Each field that differs is named, with what to rebuild. The exit code is 1 when the engine would not run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from enginix import console, manifest
from enginix.engine.check import EVERYWHERE, require
from enginix.engine.target import Machine, probe
from enginix.errors import MachineError
from enginix.runtime import driver


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", type=Path, metavar="ENGINE", help="output of enginix build")
    parser.add_argument("--runtime", metavar="ID", help="the runtime that is to serve it (default: its own)")
    parser.add_argument("--driver", type=Path, metavar="DIR", help="the GPU driver's root (default: found)")


def run(args: argparse.Namespace) -> int:
    machine: Machine | None = None
    if manifest.read(args.engine, "engine").kind not in EVERYWHERE:
        try:
            machine = probe(driver.find(args.driver))
        except MachineError as e:
            console.say(f"note: {e.what}")
    verdict = require(args.engine, machine, args.runtime)
    console.result(verdict.as_json(), verdict.text(), as_json=args.json)
    return 0
