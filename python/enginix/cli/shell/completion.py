"""Prints the completion script of a shell: commands, options, and what options take.

  enginix completion bash | install -D /dev/stdin ~/.local/share/bash-completion/completions/enginix
  enginix completion zsh | install -D /dev/stdin ~/.zfunc/_enginix      with fpath+=~/.zfunc before compinit
  enginix completion fish | install -D /dev/stdin ~/.config/fish/completions/enginix.fish

The flake's package enginix brings all three.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from enginix import console
from enginix.cli.command_parser import add_common_arguments
from enginix.cli.command_table import COMMANDS, list_commands
from enginix.errors import EXIT_OK
from enginix.machine.gpu_table import list_gpu_names
from enginix.tables import load_table

SHELLS = ("bash", "zsh", "fish")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=" or ".join(SHELLS))


def run(args: argparse.Namespace) -> int:
    script = render_completion(args.shell)
    console.print_result({"shell": args.shell, "script": script}, script.rstrip("\n"))
    return EXIT_OK


def render_completion(shell: str) -> str:
    """Return the script for one of ``SHELLS``, made from the parsers of all commands that people call."""
    import shtab

    parser = argparse.ArgumentParser(prog="enginix")
    parser.add_argument("--version", action="version", help="print the version")
    subparsers = parser.add_subparsers()
    for name in list_commands():
        module_name, summary = COMMANDS[name]
        command = subparsers.add_parser(name, help=summary, description=summary)
        importlib.import_module(f"enginix.cli.{module_name}").add_arguments(command)
        add_common_arguments(command)
        for action in _list_actions(command):
            if action.choices is None and action.dest in ("target", "format"):
                formats = load_table("quantize")["formats"]
                action.choices = list_gpu_names() if action.dest == "target" else list(formats)
            elif action.type is Path or (action.choices is None and not action.option_strings):
                action.complete = shtab.FILE
    topic = subparsers.add_parser("help", help="help of a command", description="help of a command")
    topic.add_argument("command", choices=list_commands())
    return str(shtab.complete(parser, shell)) + "\n"


def _list_actions(parser: argparse.ArgumentParser) -> Iterator[Any]:
    """Yield the arguments of a command and of its verbs."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                yield from _list_actions(verb)
        else:
            yield action
