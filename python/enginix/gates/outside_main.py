"""What Nix builds run: ``ask`` writes what is asked, ``answers`` asks an engine in its runtime.

No sub-command is loaded: neither help texts nor thresholds are among a build's inputs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from enginix import console


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one of the two and returns the exit code."""
    parser = argparse.ArgumentParser(prog="enginix", allow_abbrev=False)
    parser.add_argument("verb", choices=("ask", "answers"))
    # Nix hands over an empty text where there is nothing.
    for name in ("model", "questions", "engine", "asked", "rootfs", "driver", "pin", "python", "out"):
        parser.add_argument(f"--{name}", type=lambda text: Path(text) if text else None)
    parser.add_argument("--stall-minutes", type=float, default=30.0)
    parser.add_argument("--accept-driver", action="store_true")
    args = parser.parse_args(argv)
    try:
        if args.verb == "ask":
            _ask(args)
        elif args.python is not None:
            from enginix.gates import outside_edgellm

            here = outside_edgellm.Where(args.python, args.driver, args.stall_minutes * 60)
            outside_edgellm.ask(args.engine, args.model, args.asked, args.out, here)
        else:
            from enginix.gates import outside_run

            where = outside_run.Where(
                args.rootfs, args.driver, args.pin, args.stall_minutes * 60, args.accept_driver
            )
            outside_run.ask(args.engine, args.asked, args.out, where)
    except Exception as e:
        return console.failed(e)
    return 0


def _ask(args: argparse.Namespace) -> None:
    from enginix.files import new_directory
    from enginix.gates import outside_ask, outside_asked

    with new_directory(args.out) as partial:
        outside_asked.write(outside_ask.ask(args.model, args.questions), partial)
