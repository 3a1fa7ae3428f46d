"""Tries a changed server before the machine switches to it; NixOS' pre-switch check runs this.

  enginix rollout tiny --incoming /nix/store/…-nixos-system/etc/systemd/system --drop-in trial.conf \\
    --engine ./engine

The server is started under systemd as the incoming unit has it, on free ports of loopback, beside the
running one, and ended when it has answered. If it does not start, the exit code is 1: the switch is refused,
and nothing was stopped. There is no trial where there is nothing to lose (the unit is unchanged, or no old
one runs), nor where memory does not allow a second server; a line says so.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from enginix import console
from enginix.cli.option_shapes import add_number, add_path
from enginix.errors import UsageError

if TYPE_CHECKING:
    from enginix.rollout.memory_headroom import MemoryHeadroom

SWITCHING = ("switch", "test")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("server", metavar="NAME", help="name of the server; its unit is enginix-NAME.service")
    add_path(parser, "--incoming", "DIR", "directory of the new generation's units", required=True)
    add_path(
        parser,
        "--current",
        "DIR",
        "directory of the running generation's units (default: /etc/systemd/system)",
        default=Path("/etc/systemd/system"),
    )
    add_path(parser, "--drop-in", "FILE", "unit settings for the trial; @port@ is a free port", required=True)
    parser.add_argument(
        "--action", default="switch", help="action of the machine; switch and test make a trial"
    )
    parser.add_argument("--gpus", metavar="LIST", help="GPUs of the server, joined by commas")
    add_number(parser, "--needs", "free memory that a second server needs", metavar="MIB")
    add_path(parser, "--engine", "DIR", "engine that the server loads, instead of --gpus and --needs")


def run(args: argparse.Namespace) -> int:
    from enginix.rollout import trial

    unit = f"enginix-{args.server}.service"
    incoming = args.incoming / unit
    if not incoming.exists():
        raise UsageError("there is no such unit", where=incoming)

    def end(outcome: str, text: str) -> int:
        console.print_message(f"enginix-{args.server}: {text}")
        console.print_result({"server": args.server, "trial": outcome}, outcome)
        return 0

    if args.action not in SWITCHING:
        return end("none", f"no trial before {args.action}")
    current = args.current / unit
    if current.exists() and incoming.read_bytes() == current.read_bytes():
        return end("unchanged", "unchanged")
    if not trial.is_active(unit):
        return end("none", "not running: nothing to lose, so no trial")
    headroom, why = _measure_headroom(args)
    if headroom is None or not headroom.is_enough:
        because = why if headroom is None else f"{headroom} beside the running server"
        return end(
            "no-room",
            f"NO TRIAL: {because}. If the new server does not start, the old one has already stopped; "
            "nixos-rebuild switch --rollback brings it back",
        )
    console.print_message(
        f"enginix-{args.server}: trying the new generation beside the running one ({headroom})"
    )
    trial.start_trial(args.server, incoming, args.drop_in)
    return end("passed", "the new generation has answered")


def _measure_headroom(args: argparse.Namespace) -> tuple[MemoryHeadroom | None, str]:
    from enginix.errors import MachineError
    from enginix.rollout import memory_headroom

    try:
        if args.gpus:
            if args.needs is None:
                return None, "its GPU memory need is unknown (servers.<name>.rollout.memory)"
            return memory_headroom.measure_gpu_headroom(args.gpus.split(","), args.needs), ""
        if args.needs is None and args.engine is None:
            raise UsageError("is needed without --gpus", where="--needs or --engine")
        needs = args.needs if args.needs is not None else memory_headroom.estimate_cpu_server(args.engine)
        return memory_headroom.measure_host_headroom(needs), ""
    except MachineError as e:
        return None, str(e).splitlines()[0]
