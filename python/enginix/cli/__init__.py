"""The command line: one sub-command a stage, imported only when it is asked for."""

from __future__ import annotations

import argparse
import atexit
import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, TypeGuard

from enginix import __version__, console
from enginix.cli.command_parser import (
    CommandParser,
    format_command_list,
    format_exit_codes,
    make_parser,
    search_help,
)
from enginix.cli.command_table import COMMANDS, OWN_TERMINAL, list_commands, refuse_command
from enginix.cli.standard_output import is_output_closed, leave_closed_pipe, refuse_full_output
from enginix.credentials import redact_secrets
from enginix.ending import SignalReceived, end_as_interrupted, end_process
from enginix.errors import EXIT_OK, InterruptedWork, MachineError, OutputTaken
from enginix.process_group import kill_children

# The interpreter collects garbage at its end, which takes most of a second with the modules of transformers.
atexit.register(gc.freeze)

# Arguments that are directories of content, which a command reads.
_INPUTS = (
    "model", "checkpoint", "engine", "export", "artefact", "artefacts", "reference", "original", "said",
    "gated", "gated_checkpoint", "calibration", "text",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command and return its exit code.

    ``argv`` is the command line without the program's name; ``sys.argv`` by default. ``--help`` and
    ``--version`` end as argparse does, with ``SystemExit``.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if sys.stdout is None:
        closed = MachineError("is closed", where="standard output", fix="write it to a file: > FILE")
        return console.report_error(closed)
    if sys.stdin is None:
        # Closed by the shell (<&-), which is the end of the input.
        sys.stdin = Path(os.devnull).open()  # noqa: SIM115 - for the whole process
    try:
        code = _run_command(words)
        # Flush here: a closed pipe is an expected end here, and would look like a bug later.
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        return leave_closed_pipe()
    except OSError as e:
        return refuse_full_output(e)
    except SystemExit as e:
        # argparse ends so after --help and --version.
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            return leave_closed_pipe()
        except OSError as full:
            return refuse_full_output(full)
        raise e


def run_program() -> NoReturn:
    """Run the command line of this process, and end it."""
    end_process(main())


def _wants_json(words: list[str]) -> bool:
    """Tell whether ``--json`` is enginix's own: behind ``--`` and ``--run`` stands another program's line."""
    own = words[1:]
    for border in ("--", "--run"):
        if border in own:
            own = own[: own.index(border)]
    return "--json" in own


def _run_command(words: list[str]) -> int:
    failure: Exception
    try:
        with end_as_interrupted():
            return _parse_and_run(words)
    except ImportError as e:
        from enginix.optional_libraries import missing_library

        failure = missing_library(e, words[0]) or e
    except BrokenPipeError as e:
        # A closed pipe or socket that is not the output is an error like any other.
        if is_output_closed():
            raise
        failure = e
    except SignalReceived as e:
        kill_children()
        failure = e.explain()
    except KeyboardInterrupt:
        failure = InterruptedWork("interrupted")
    except OutputTaken as e:
        # As enginix up sees it: another run makes the output, or has made it.
        if os.environ.get("ENGINIX_STAGE"):
            return e.exit_code
        failure = e
    except Exception as e:
        failure = e
    # One object is printed with --json even where the arguments could not be read.
    if _wants_json(words):
        print(redact_secrets(json.dumps(console.explain_error(failure).as_json())))
    return console.report_error(failure)


def _parse_and_run(words: list[str]) -> int:
    parser = CommandParser(
        prog="enginix",
        description="Hugging Face model in, served TensorRT-LLM deployment out.",
        usage="enginix COMMAND [options]   (enginix COMMAND --help explains each)",
        epilog=f"commands:\n{format_command_list(list_commands())}\n\n{format_exit_codes()}",
    )
    parser.add_argument("--version", action="version", version=f"enginix {__version__}")
    if words[:1] == ["help"]:
        topics = [word for word in words[1:] if not word.startswith("-")]
        if topics and topics[0] not in COMMANDS and (found := search_help(topics[0])):
            console.set_style(quiet=False, as_json="--json" in words)
            console.print_result({"commands": found}, format_command_list(found))
            return EXIT_OK
        words = [*topics[:1], "--help"]
    if not words or words[0] not in COMMANDS:
        if words and not words[0].startswith("-"):
            raise refuse_command(words[0])
        parser.parse_args(words or ["--help"])
        return EXIT_OK
    name = words[0]
    module_name, _ = COMMANDS[name]
    module = importlib.import_module(f"enginix.cli.{module_name}")
    sub = make_parser(name, module)
    args = sub.parse_args(words[1:])
    if isinstance(output := getattr(args, "output", None), Path):
        # Of every command, before any work.
        from enginix.output_path import refuse_link, refuse_output_in_input

        refuse_link(output)
        refuse_output_in_input(output, _list_inputs(args))
    return _run_with_progress(name, module, args)


def _list_inputs(args: argparse.Namespace) -> list[Path]:
    """List the directories of content that a command reads, by the names of its arguments."""
    given = [getattr(args, name, None) for name in _INPUTS]
    values = [v for g in given for v in (g if isinstance(g, (list, tuple)) else [g])]
    return [value for value in values if isinstance(value, Path)]


def _run_with_progress(name: str, module: ModuleType, args: argparse.Namespace) -> int:
    """Run a command, show its progress, and record what an artefact took."""
    from enginix.progress import report_command

    output = getattr(args, "output", None)
    begun = time.time()
    console.set_style(quiet=args.quiet, as_json=args.json)
    if isinstance(target := getattr(args, "target", None), str):
        from enginix.machine.gpu_table import explain_size

        console.print_notes([explain_size(target)])
    # Of enginix runtime, pin alone runs no other program at the terminal.
    is_live = name not in OWN_TERMINAL or getattr(args, "verb", None) == "pin"
    with report_command(name, is_live=is_live) as progress:

        def describe_run() -> dict[str, Any]:
            return {"statistics": progress.as_json()} if _is_made(output, begun) else {}

        console.add_to_results(describe_run)
        try:
            code = int(module.run(args))
            if _is_made(output, begun):
                from enginix.run_log import write_run_log

                write_run_log(output, name, progress.as_json())
            # A stage of enginix up is followed by enginix up.
            is_alone = not os.environ.get("ENGINIX_STAGE")
            if code == EXIT_OK and not args.json and is_alone and console.is_watched():
                from enginix.next_command import suggest_next

                modules = {command: f"enginix.cli.{module}" for command, (module, _) in COMMANDS.items()}
                if (following := suggest_next(name, args, modules)) is not None:
                    console.print_message(f"next: {following}")
            return code
        finally:
            console.add_to_results(None)


def _is_made(output: object, begun: float) -> TypeGuard[Path]:
    """Tell whether an output is an artefact that this run has made."""
    if not isinstance(output, Path):
        return False
    try:
        # A file system may keep whole seconds.
        return (output / "enginix.json").stat().st_mtime >= begun - 1
    except OSError:
        return False
