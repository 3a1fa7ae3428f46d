"""The command line: one sub-command a stage, imported only when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from enginix import __version__, console
from enginix.credentials import redact_secrets
from enginix.errors import EXIT_CLOSED_PIPE, EXIT_CODES, EXIT_USAGE, EnginixError
from enginix.wording import find_nearest

# Command → its module in this package and what it does. A folder holds the commands that one package of the
# flake has.
COMMANDS = {
    "lock": (
        "conversion.lock",
        "pin a Hub repository: commit, files, sizes, sha256; no weight is downloaded",
    ),
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
}

# Commands that only builds call; the overview omits them.
BUILD_COMMANDS = ("fetch-file", "fetch-tree", "check-facts")

# Commands of earlier versions → what replaces them.
REMOVED = {
    "openai-frontend": "enginix gateway puts OpenAI's interface in front of Triton; trtllm-serve has its own",
}

EPILOG = "exit codes:\n" + "\n".join(f"  {code:<3} {meaning}" for code, meaning in EXIT_CODES.items())


class _Parser(argparse.ArgumentParser):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Exit with status 2, and suggest the nearest known option for an unknown one."""
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            options = [o for action in self._actions for o in action.option_strings]
            words = [w.split("=")[0] for w in unknown.split() if w.startswith("-")]
            nearest_options = {w: near for w in words if (near := find_nearest(w, options))}
            message += "".join(
                f"\n  fix: {near} in place of {word}" for word, near in nearest_options.items()
            )
        super().error(message)


def _format_command_list() -> str:
    listed = {name: summary for name, (_, summary) in COMMANDS.items() if name not in BUILD_COMMANDS}
    width = max(map(len, listed))
    return "\n".join(f"  {name:<{width}}  {summary}" for name, summary in listed.items())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one sub-command and returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run_command(words)
        # Flush here: a closed pipe is an expected end here, and would look like a bug later.
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        return _leave_closed_pipe()
    except SystemExit as e:
        # argparse ends so after --help and --version.
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            return _leave_closed_pipe()
        raise e


def _leave_closed_pipe() -> int:
    """Flush the output and return the status of SIGPIPE: the reader closed the pipe on purpose."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            # The interpreter flushes once more at its end, and would complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return EXIT_CLOSED_PIPE


def _is_output_closed() -> bool:
    import select

    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        poll.register(stream, select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _run_command(words: list[str]) -> int:
    parser = _Parser(
        prog="enginix",
        description="Hugging Face model in, served TensorRT-LLM deployment out.",
        usage="enginix COMMAND [options]   (enginix COMMAND --help explains each)",
        epilog=f"commands:\n{_format_command_list()}\n\n{EPILOG}",
    )
    parser.add_argument("--version", action="version", version=f"enginix {__version__}")
    if words[:1] == ["help"]:
        words = [*words[1:2], "--help"]
    if not words or words[0] not in COMMANDS:
        if words and not words[0].startswith("-"):
            if words[0] in REMOVED:
                parser.error(f"{words[0]} was removed\n  fix: {REMOVED[words[0]]}")
            near = find_nearest(words[0], COMMANDS)
            parser.error(
                f"unknown command {words[0]!r}\n  fix: "
                + (f"enginix {near}; enginix --help lists all" if near else "enginix --help lists them")
            )
        parser.parse_args(words or ["--help"])
        return EXIT_USAGE
    name = words[0]
    # One object is printed with --json even where the arguments were not read yet.
    as_json = "--json" in words[1:]
    try:
        module_name, summary = COMMANDS[name]
        module = importlib.import_module(f"enginix.cli.{module_name}")
        sub = _Parser(prog=f"enginix {name}", description=module.__doc__ or summary, epilog=EPILOG)
        module.add_arguments(sub)
        sub.add_argument(
            "--json", action="store_true", help="print the result, or the error, as one JSON object"
        )
        args = sub.parse_args(words[1:])
        if isinstance(output := getattr(args, "output", None), Path):
            # Of every command, before any work.
            from enginix.files import refuse_link

            refuse_link(output)
        return int(module.run(args))
    except EnginixError as e:
        return _print_failure(e, as_json=as_json)
    except ImportError as e:
        from enginix.optional_libraries import missing_library

        missing = missing_library(e, name)
        return console.report_error(e) if missing is None else _print_failure(missing, as_json=as_json)
    except BrokenPipeError as e:
        # A closed pipe or socket that is not the output is an error like any other.
        if _is_output_closed():
            raise
        return console.report_error(e)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as e:
        return console.report_error(e)


def _print_failure(e: EnginixError, *, as_json: bool) -> int:
    if as_json:
        print(redact_secrets(json.dumps(e.as_json())))
    return console.report_error(e)
