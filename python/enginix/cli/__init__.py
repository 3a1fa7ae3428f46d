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
from enginix.credentials import redact_secrets
from enginix.ending import SignalReceived, end_as_interrupted
from enginix.errors import (
    EXIT_CLOSED_PIPE,
    EXIT_CODES,
    EXIT_OK,
    InterruptedWork,
    MachineError,
    OutputTaken,
    UsageError,
)
from enginix.process_group import kill_children
from enginix.wording import find_nearest, list_known

# The interpreter collects garbage at its end, which takes most of a second with the modules of transformers.
atexit.register(gc.freeze)

# Command → its module in this package and what it does. A folder holds the commands that one package of the
# flake has.
COMMANDS = {
    "up": (
        "serving.up",
        "a model's name → an OpenAI endpoint on loopback: every stage, cached, in one command",
    ),
    "doctor": (
        "serving.doctor",
        "look at this machine: what stages need, and how to mend what is missing",
    ),
    "chat": ("serving.chat", "talk to an endpoint in the terminal"),
    "bench": (
        "serving.bench",
        "measure the speed of an engine or endpoint; compare two measurements (gate speed)",
    ),
    "lock": (
        "conversion.lock",
        "pin a Hub repository: commit, files, sizes, sha256; no weight is downloaded",
    ),
    "pin": ("engines.pin", "pin a model and its runtime in a flake's directory, for nix build .#NAME-engine"),
    "fetch": ("conversion.fetch", "download what a lock pins, verified, resumable"),
    "fetch-file": ("conversion.fetch_file", "download one file of a commit, verified: what a Nix build runs"),
    "fetch-tree": ("conversion.fetch_tree", "download a whole commit as a git-lfs clone without .git has it"),
    "check-facts": (
        "conversion.check_facts",
        "compare a lock's facts with the configuration it pins: what a Nix build runs",
    ),
    "inspect": (
        "models.inspect",
        "describe a model from its configuration and headers; kilobytes of a Hub repository",
    ),
    "compare": (
        "comparison.compare",
        "compare artefacts in one table and plot: size, bits, quality, speed; or all kinds of one model",
    ),
    "target": ("models.target", "list GPUs by name: SM, memory, number formats, and which this machine has"),
    "plan": (
        "models.plan",
        "tell whether a model fits a GPU: weights, KV cache, spare memory; build needs; smallest change",
    ),
    "calibrate": (
        "quantization.calibrate",
        "text → one hashed file of token ids, for quantize to calibrate with",
    ),
    "quantize": ("quantization.quantize", "Hugging Face model → quantized one, by ModelOpt, checked"),
    "convert": ("conversion.convert", "Hugging Face model → TensorRT-LLM checkpoint"),
    "verify-checkpoint": (
        "conversion.verify_checkpoint",
        "check a TensorRT-LLM checkpoint: names, shapes, dtypes, coverage",
    ),
    "build": ("engines.build", "checkpoint → engine, with its manifest and gates"),
    "reference": (
        "answers.reference",
        "compute a model's answers to the gates' questions, once for all its engines",
    ),
    "gate": ("gating.gate", "compare an engine's answers with its model's: evidence, report, exit status"),
    "check": (
        "engines.check",
        "tell whether this machine runs an engine: GPU, driver, runtime, against its manifest",
    ),
    "verify": (
        "trust.verify",
        "check that an artefact and its inputs are what their manifests list; demand a signature",
    ),
    "sign": ("trust.sign", "sign an artefact's manifest with an SSH key; write an in-toto statement"),
    "runtime": ("engines.runtime", "pinned NVIDIA images: list, pin, run a command inside one"),
    "runner": ("engines.runner", "build an engine at first run into the user's cache, then serve it"),
    "cache": ("engines.cache", "engines that enginix runner has built: list, prune"),
    "edgellm-export": (
        "edgellm.export",
        "Hugging Face model → checked ONNX export for TensorRT Edge-LLM, on a CPU",
    ),
    "edgellm-build": ("edgellm.build", "export → TensorRT Edge-LLM engine, on the target's GPU"),
    "edgellm-serve": (
        "edgellm.serve",
        "serve a TensorRT Edge-LLM engine over OpenAI's interface, on loopback",
    ),
    "rtx-build": (
        "rtx.build",
        "checkpoint → engine of TensorRT for RTX, on a CPU, its network verified",
    ),
    "triton-repo": ("serving.triton_repo", "engine → Triton model repository, validated"),
    "tritonserver": (
        "serving.tritonserver",
        "put a tritonserver for this Python into a directory, out of a pinned wheel",
    ),
    "serve": ("serving.serve", "start Triton on a repository, loopback by default; ask it; stop it"),
    "ready": ("serving.ready", "wait until an OpenAI server has answered: readiness for systemd"),
    "rollout": (
        "serving.rollout",
        "try a changed server beside the running one, before NixOS switches to it",
    ),
    "gateway": (
        "gateway.gateway",
        "OpenAI interface, keys and limits in front of Triton and other servers (LiteLLM)",
    ),
    "completion": ("shell.completion", "print the completion script of bash, zsh or fish"),
}

# Commands that only builds call; the overview omits them.
INTERNAL_COMMANDS = ("fetch-file", "fetch-tree", "check-facts")

# Commands that answer for their own terminal: servers, and what runs other programs.
OWN_TERMINAL = (
    "up",
    "chat",
    "serve",
    "ready",
    "rollout",
    "gateway",
    "edgellm-serve",
    "runner",
    "runtime",
)

# Arguments that are directories of content, which a command reads.
_INPUTS = (
    "model", "checkpoint", "engine", "export", "artefact", "artefacts", "reference", "original", "said",
    "gated", "gated_checkpoint", "calibration", "text",
)  # fmt: skip

DESCRIPTION_COLUMNS = 112  # from which on a terminal shows descriptions as they are written
# Numbers that may be 0; every other one of an option is above 0.
_ZERO_ALLOWED = (
    "port", "http_port", "grpc_port", "metrics_port", "seed", "warmup", "tolerance", "keep", "size", "needs",
    "exit_timeout", "max_queue_size", "max_queue_delay_microseconds", "maxQueuedRequests",
)  # fmt: skip

# Commands of earlier versions → what replaces them.
REMOVED = {
    "openai-frontend": "enginix gateway puts OpenAI's interface in front of Triton; trtllm-serve has its own",
}

_TOO_LARGE = 1e9  # seconds that no timer of Python takes


def _format_exit_codes() -> str:
    return "exit codes:\n" + "\n".join(
        console.wrap_line(f"  {code:<3} {meaning}", 6, console.find_help_width())
        for code, meaning in EXIT_CODES.items()
    )


class _Parser(argparse.ArgumentParser):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)
        self._words: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Keep the words for the message of an error, then parse them."""
        self._words = list(args or ())
        return super().parse_known_args(args, namespace)

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """Raise ``UsageError`` for a number that is negative or not finite, or 0 where that says nothing."""
        value = super()._get_value(action, arg_string)
        if action.type in (int, float):
            allows_zero = action.dest in _ZERO_ALLOWED
            is_above = value > 0 or (value == 0 and allows_zero)
            if not is_above or (isinstance(value, float) and value >= _TOO_LARGE):
                least = "of at least 0" if allows_zero else "above 0"
                raise UsageError(
                    f"{arg_string} is not a number {least}", where=action.option_strings[0], fix="pass one"
                )
        return value

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Raise ``UsageError``, with the nearest choice for an unknown one."""
        if action.choices is None or value in action.choices:
            return
        name = "/".join(action.option_strings) or str(action.metavar or action.dest)
        known = list_known(str(value), map(str, action.choices))
        raise UsageError(f"unknown {name} {str(value)!r}", where=self.prog, fix=known)

    def error(self, message: str) -> NoReturn:
        """Raise ``UsageError``, with the nearest known option for an unknown one."""
        unknown = message.removeprefix("unrecognized arguments: ")
        fixes = [f"{self.prog} --help"]
        # argparse misses a required option before it tells the unknown one that was meant for it.
        given = unknown.split() if unknown != message else self._words
        if unknown != message or "required" in message:
            options = _list_options(self)
            words = [w.split("=")[0] for w in given if w.startswith("--") and w.split("=")[0] not in options]
            nearest_options = {w: near for w in words if (near := find_nearest(w, options))}
            fixes = [f"{near} in place of {word}" for word, near in nearest_options.items()] or fixes
        raise UsageError(message, where=self.prog, fix="\n       ".join(fixes))


def _list_options(parser: argparse.ArgumentParser) -> list[str]:
    """Return the options of a command and of its verbs: argparse tells an unknown one to the command."""
    options = [option for action in parser._actions for option in action.option_strings]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            options += [option for verb in action.choices.values() for option in _list_options(verb)]
    return options


def _make_parser(name: str, module: ModuleType) -> _Parser:
    description = _fit_description(module.__doc__ or COMMANDS[name][1])
    parser = _Parser(prog=f"enginix {name}", description=description, epilog=_format_exit_codes())
    module.add_arguments(parser)
    add_common_arguments(parser)
    return parser


def _fit_description(text: str) -> str:
    """Return a description as it is written; fitted to a narrow terminal, or $COLUMNS."""
    width = console.find_help_width()
    if width >= DESCRIPTION_COLUMNS:
        return text
    from enginix.help_text import fit_description

    return fit_description(text, width)


def _list_commands() -> list[str]:
    return [name for name in COMMANDS if name not in INTERNAL_COMMANDS]


def _search_help(word: str) -> list[str]:
    """Return the commands whose summary or help has a word; those whose summary has it come first."""
    in_summary, in_help = [], []
    for name in _list_commands():
        module_name, summary = COMMANDS[name]
        if word.lower() in f"{name} {summary}".lower():
            in_summary.append(name)
            continue
        parser = _make_parser(name, importlib.import_module(f"enginix.cli.{module_name}"))
        parser.epilog = None
        if word.lower() in parser.format_help().lower():
            in_help.append(name)
    return in_summary + in_help


def _format_command_list(names: Sequence[str]) -> str:
    listed = {name: COMMANDS[name][1] for name in names}
    width = max(map(len, listed))
    lines = (
        console.wrap_line(f"  {name:<{width}}  {summary}", width + 4, console.find_help_width())
        for name, summary in listed.items()
    )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command and return its exit code.

    ``argv`` is the command line without the program's name; ``sys.argv`` by default. ``--help`` and
    ``--version`` end as argparse does, with ``SystemExit``.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if sys.stdout is None:
        closed = MachineError("is closed", where="standard output", fix="write it to a file: > FILE")
        return console.report_error(closed)
    try:
        code = _run_command(words)
        # Flush here: a closed pipe is an expected end here, and would look like a bug later.
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        return _leave_closed_pipe()
    except OSError as e:
        return _refuse_full_output(e)
    except SystemExit as e:
        # argparse ends so after --help and --version.
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            return _leave_closed_pipe()
        except OSError as full:
            return _refuse_full_output(full)
        raise e


def _refuse_full_output(error: OSError) -> int:
    """Report that the standard output takes no more."""
    _discard_output()
    return console.report_error(error)


def _leave_closed_pipe() -> int:
    """Flush the output and return the status of SIGPIPE: the reader closed the pipe on purpose."""
    _discard_output()
    return EXIT_CLOSED_PIPE


def _discard_output() -> None:
    """Flush the output; what is left of it where that fails goes nowhere."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            # The interpreter flushes once more at its end, and would complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _is_output_closed() -> bool:
    import select

    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        poll.register(stream, select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


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
        if _is_output_closed():
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
    parser = _Parser(
        prog="enginix",
        description="Hugging Face model in, served TensorRT-LLM deployment out.",
        usage="enginix COMMAND [options]   (enginix COMMAND --help explains each)",
        epilog=f"commands:\n{_format_command_list(_list_commands())}\n\n{_format_exit_codes()}",
    )
    parser.add_argument("--version", action="version", version=f"enginix {__version__}")
    if words[:1] == ["help"]:
        topics = [word for word in words[1:] if not word.startswith("-")]
        if topics and topics[0] not in COMMANDS and (found := _search_help(topics[0])):
            console.print_result({"commands": found}, _format_command_list(found), as_json="--json" in words)
            return EXIT_OK
        words = [*topics[:1], "--help"]
    if not words or words[0] not in COMMANDS:
        if words and not words[0].startswith("-"):
            raise _refuse_command(words[0])
        parser.parse_args(words or ["--help"])
        return EXIT_OK
    name = words[0]
    module_name, _ = COMMANDS[name]
    module = importlib.import_module(f"enginix.cli.{module_name}")
    sub = _make_parser(name, module)
    args = sub.parse_args(words[1:])
    if isinstance(output := getattr(args, "output", None), Path):
        # Of every command, before any work.
        from enginix.files import refuse_link, refuse_output_in_input

        refuse_link(output)
        refuse_output_in_input(output, _list_inputs(args))
    return _run_with_progress(name, module, args)


def _list_inputs(args: argparse.Namespace) -> list[Path]:
    """List the directories of content that a command reads, by the names of its arguments."""
    given = [getattr(args, name, None) for name in _INPUTS]
    values = [v for g in given for v in (g if isinstance(g, (list, tuple)) else [g])]
    return [value for value in values if isinstance(value, Path)]


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every command takes; ``--quiet`` behind a verb as well as before it."""
    parser.add_argument(
        "--json", action="store_true", help="print the result, or the error, as one JSON object"
    )
    parser.add_argument("--quiet", action="store_true", help="print results and errors alone")
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                verb.add_argument(
                    "--quiet", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
                )


def _run_with_progress(name: str, module: ModuleType, args: argparse.Namespace) -> int:
    """Run a command, show its progress, and record what an artefact took."""
    from enginix.progress import report_command

    output = getattr(args, "output", None)
    begun = time.time()
    console.set_quiet(args.quiet)
    if isinstance(target := getattr(args, "target", None), str):
        from enginix.machine.gpu_table import explain_size

        if (note := explain_size(target)) is not None:
            console.print_message(f"note: {note}")
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


def _refuse_command(name: str) -> UsageError:
    if name in REMOVED:
        return UsageError(f"{name} was removed", fix=REMOVED[name])
    near = find_nearest(name, COMMANDS)
    fix = f"enginix {near}; enginix --help lists all" if near else "enginix --help lists them"
    return UsageError(f"unknown command {name!r}", fix=fix)
