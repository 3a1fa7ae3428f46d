"""Waits until a server has answered: one generated token, over OpenAI's interface or Triton's.

  enginix ready http://127.0.0.1:8000 --timeout 600
  enginix ready http://127.0.0.1:8000 --api-key-credential api-key --run tensorrt-edgellm-serve --port 8000

  enginix ready http://127.0.0.1:8000 --triton reference --timeout 20

With --run this process becomes the server, and another one waits: it tells systemd (Type=notify,
NotifyAccess=all) once the server has answered, and ends the server if it does not answer in time. It is for
servers that do not notify systemd themselves. The key comes from a file or a systemd credential, never from a
command line.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from enginix import console
from enginix.cli.option_shapes import add_number, add_path
from enginix.credentials import locate_key_file
from enginix.errors import MachineError, UsageError
from enginix.files import refuse_damage
from enginix.kinds.registry import list_triton_kinds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="http://host:port")
    add_number(parser, "--timeout", "seconds to wait (default: 600)", default=600, type=float, metavar="S")
    parser.add_argument("--model", metavar="NAME", help="model to ask (default: the first that is listed)")
    parser.add_argument(
        "--triton",
        metavar="KIND",
        choices=list_triton_kinds(),
        help="the server is Triton, with a repository of this kind of engine",
    )
    add_path(parser, "--api-key-file", "FILE", "file with the key")
    parser.add_argument(
        "--api-key-credential", metavar="NAME", help="the key's file below $CREDENTIALS_DIRECTORY"
    )
    parser.add_argument(
        "--run",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="COMMAND",
        help="the server, all that follows: become it, and tell systemd when it has answered",
    )


def run(args: argparse.Namespace) -> int:
    """Wait until the server has answered, or become the server and wait in another process."""
    from enginix.rollout.ready import await_answer, await_triton

    key = _read_key(args)
    if args.triton is not None and (args.run or key is not None):
        raise UsageError("goes with neither --run nor a key", where="--triton")
    if args.run:
        return _become_server(args.run, lambda: await_answer(args.url, args.timeout, args.model, key))
    if args.triton is not None:
        seconds = await_triton(args.url, args.timeout, args.triton)
    else:
        seconds = await_answer(args.url, args.timeout, args.model, key)
    console.print_result({"ready": True, "seconds": round(seconds, 3)}, f"answers after {seconds:.1f} s")
    return 0


def _become_server(command: list[str], wait: Callable[[], float]) -> int:
    from enginix.beside import run_beside
    from enginix.notify import notify_systemd

    if shutil.which(command[0]) is None:
        raise MachineError("cannot start: no such program", where=command[0])

    def report_ready() -> None:
        seconds = wait()
        notify_systemd("READY=1")
        console.print_message(f"answers after {seconds:.1f} s")

    run_beside(report_ready)
    with refuse_damage(MachineError, command[0], what="cannot start"):
        os.execvp(command[0], command)


def _read_key(args: argparse.Namespace) -> str | None:
    named = args.api_key_credential
    file: Path | None = args.api_key_file if named is None else locate_key_file(named)
    if file is None:
        return None
    with refuse_damage(UsageError, file):
        return file.read_text("utf-8").strip()
