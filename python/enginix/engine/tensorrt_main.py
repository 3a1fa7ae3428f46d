"""What a Nix build runs: ``machine`` looks at the machine, ``build`` builds an engine; no sub-command is
loaded.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from enginix import console
from enginix.console import human_bytes
from enginix.engine import preflight
from enginix.engine.target import probe, target
from enginix.engine.tensorrt import build
from enginix.engine.tensorrt_request import Place, read, request_of
from enginix.errors import MachineError
from enginix.runtime import driver as drivers
from enginix.runtime import table
from enginix.runtime.sandbox import check_namespaces


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one of the two and returns the exit code."""
    parser = argparse.ArgumentParser(prog="enginix", allow_abbrev=False)
    parser.add_argument("verb", choices=("machine", "build"))
    parser.add_argument("--request", type=Path, required=True)
    # Nix hands over an empty text where there is nothing.
    for name in ("checkpoint", "model", "rootfs", "driver", "out", "timing"):
        parser.add_argument(f"--{name}", type=lambda text: Path(text) if text else None)
    args = parser.parse_args(argv)
    try:
        if args.rootfs is None:
            raise MachineError(
                "the runtime has no root file system", where="rootfs", fix="pin it: enginix runtime pin"
            )
        if args.verb == "machine":
            machine(args)
        else:
            place = Place(args.out, args.rootfs, args.driver, in_place=True, timing=args.timing)
            build(
                request_of(read(args.request), args.checkpoint, args.model),
                args.checkpoint,
                args.model,
                place,
            )
    except Exception as e:
        return console.failed(e)
    return 0


def machine(args: argparse.Namespace) -> None:
    """What can be said of a machine before there is a checkpoint: namespaces, runtime, driver, GPU.

    Raises:
        MachineError: it cannot build for the target.
    """
    asked = read(args.request)
    runtime, wanted = table.find(str(asked["runtime"]), "tensorrt"), target(str(asked["target"]))
    check_namespaces()
    preflight.check_version(runtime, args.rootfs)
    found = probe(drivers.find(args.driver))
    if not asked.get("acceptDriver"):
        preflight.check_driver(runtime, found)
    gpu = preflight.check_gpu(wanted, found, workers=1, weights=0).gpu
    with tempfile.TemporaryDirectory(prefix="enginix-") as work:
        preflight.check_disk(Path(work), Path(work), 0, workspace=False)
    console.say(
        f"{gpu.name}, SM {gpu.sm}, {human_bytes(gpu.free)} free; driver {found.driver}; runtime {runtime.id}"
    )
