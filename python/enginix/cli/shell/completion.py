"""Prints the completion script of a shell: commands, options, and what options take.

  enginix completion bash | install -D /dev/stdin ~/.local/share/bash-completion/completions/enginix
  enginix completion zsh | install -D /dev/stdin ~/.zfunc/_enginix      with fpath+=~/.zfunc before compinit
  enginix completion fish | install -D /dev/stdin ~/.config/fish/completions/enginix.fish

The flake's package enginix brings all three.
"""

from __future__ import annotations

import argparse

from enginix import console
from enginix.cli.shell.completion_scripts import SHELLS, render_completion
from enginix.errors import EXIT_OK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=" or ".join(SHELLS))


def run(args: argparse.Namespace) -> int:
    script = render_completion(args.shell)
    console.print_result({"shell": args.shell, "script": script}, script.rstrip("\n"))
    return EXIT_OK
