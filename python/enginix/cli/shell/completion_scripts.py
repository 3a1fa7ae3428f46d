"""Completion scripts of the command line, made from its own parsers."""

from __future__ import annotations

import argparse
import importlib
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from enginix.cli.command_parser import add_common_arguments
from enginix.cli.command_table import COMMANDS
from enginix.cli.command_table import list_commands as list_names

SHELLS = ("bash", "zsh", "fish")


@dataclass(frozen=True)
class CompletedOption:
    """One option of a command.

    Attributes:
        values: what it takes; empty for free text, None where it takes nothing.
        is_path: its value is a file or directory.
    """

    names: tuple[str, ...]
    help: str
    values: tuple[str, ...] | None
    is_path: bool


@dataclass(frozen=True)
class CompletedCommand:
    """One command, with its verbs' options among its own."""

    name: str
    summary: str
    verbs: tuple[str, ...]
    options: tuple[CompletedOption, ...]


def list_commands() -> list[CompletedCommand]:
    """Return every command that people call."""
    return [_describe_command(name) for name in list_names()]


def _describe_command(name: str) -> CompletedCommand:
    module_name, summary = COMMANDS[name]
    parser = argparse.ArgumentParser()
    importlib.import_module(f"enginix.cli.{module_name}").add_arguments(parser)
    add_common_arguments(parser)
    options: dict[tuple[str, ...], CompletedOption] = {}
    verbs: list[str] = []
    for action in _list_actions(parser, verbs):
        if action.option_strings and action.help is not argparse.SUPPRESS:
            names = tuple(action.option_strings)
            options.setdefault(names, _describe_option(names, action))
        elif not action.option_strings:
            verbs += map(str, action.choices or ())
    return CompletedCommand(name, summary, tuple(verbs), tuple(options.values()))


def _list_actions(parser: argparse.ArgumentParser, verbs: list[str]) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb, inner in action.choices.items():
                verbs.append(verb)
                yield from _list_actions(inner, [])
        else:
            yield action


def _describe_option(names: tuple[str, ...], action: argparse.Action) -> CompletedOption:
    values: tuple[str, ...] | None = tuple(str(c) for c in action.choices or ())
    if action.nargs == 0:
        values = None
    elif action.dest == "target" and not values:
        from enginix.machine.gpu_table import list_gpu_names

        values = tuple(list_gpu_names())
    elif action.dest == "format" and not values:
        from enginix.tables import load_table

        values = tuple(load_table("quantize")["formats"])
    first = (action.help or "").split(" (")[0].split(";")[0] % {"default": "", "prog": ""}
    return CompletedOption(names, first, values, action.type is Path)


def render_completion(shell: str) -> str:
    """Return the script for one of ``SHELLS``."""
    return {"bash": _render_bash, "zsh": _render_zsh, "fish": _render_fish}[shell](list_commands())


def _join(words: Sequence[str]) -> str:
    return shlex.quote(" ".join(words))


def _render_bash(commands: Sequence[CompletedCommand]) -> str:
    lines = [
        "# bash completion of enginix, made by: enginix completion bash",
        "_enginix() {",
        "  local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} words= values=",
        "  COMPREPLY=()",
        '  if [ "$COMP_CWORD" -eq 1 ]; then',
        f"    words={_join([*(c.name for c in commands), 'help', '--help', '--version'])}",
        '    COMPREPLY=($(compgen -W "$words" -- "$current"))',
        "    return",
        "  fi",
        "  case ${COMP_WORDS[1]} in",
        f"  help) words={_join([c.name for c in commands])} ;;",
    ]
    for command in commands:
        flags = [name for option in command.options for name in option.names]
        lines.append(f"  {command.name})")
        lines.append(f"    words={_join([*command.verbs, *flags])}")
        cases = [o for o in command.options if o.values or (o.values is not None and o.is_path)]
        if cases:
            lines.append("    case $before in")
            for option in cases:
                does = f"values={_join(option.values)}" if option.values else "values=/"
                lines.append(f"    {'|'.join(option.names)}) {does} ;;")
            lines.append("    esac")
        lines.append("    ;;")
    lines += [
        "  esac",
        '  if [ "$values" = / ]; then',
        '    COMPREPLY=($(compgen -f -- "$current"))',
        '  elif [ -n "$values" ]; then',
        '    COMPREPLY=($(compgen -W "$values" -- "$current"))',
        "  elif [[ $current == -* || -z $current ]]; then",
        '    COMPREPLY=($(compgen -W "$words" -- "$current"))',
        '    [[ $current == -* ]] || COMPREPLY+=($(compgen -f -- "$current"))',
        "  else",
        '    COMPREPLY=($(compgen -W "$words" -- "$current") $(compgen -f -- "$current"))',
        "  fi",
        "}",
        "complete -o filenames -F _enginix enginix",
    ]
    return "\n".join(lines) + "\n"


def _escape_zsh(text: str) -> str:
    for character in "\\:[]'":
        text = text.replace(character, "'\\''" if character == "'" else f"\\{character}")
    return text


def _render_zsh(commands: Sequence[CompletedCommand]) -> str:
    lines = [
        "#compdef enginix",
        "# zsh completion of enginix, made by: enginix completion zsh",
        "_enginix() {",
        "  local -a commands",
        "  commands=(",
        *(f"    '{c.name}:{_escape_zsh(c.summary)}'" for c in commands),
        "    'help:help of a command'",
        "  )",
        "  if (( CURRENT == 2 )); then",
        "    _describe command commands",
        "    return",
        "  fi",
        "  local name=$words[2]",
        "  shift words",
        "  (( CURRENT-- ))",
        "  case $name in",
        "  help) _describe command commands ;;",
    ]
    for command in commands:
        lines.append(f"  {command.name})")
        lines.append("    _arguments -S \\")
        for option in command.options:
            value = ""
            if option.values is not None:
                kind = "_files" if option.is_path else f"({' '.join(option.values)})" if option.values else ""
                value = f":value:{kind}"
            lines += [f"      '{name}[{_escape_zsh(option.help)}]{value}' \\" for name in option.names]
        verbs = f"'1:verb:({' '.join(command.verbs)})' " if command.verbs else ""
        lines.append(f"      {verbs}'*:argument:_files'")
        lines.append("    ;;")
    lines += ["  esac", "}", '[ "$funcstack[1]" = _enginix ] && _enginix "$@" || compdef _enginix enginix']
    return "\n".join(lines) + "\n"


def _render_fish(commands: Sequence[CompletedCommand]) -> str:
    def quote(text: str) -> str:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    names = _join([c.name for c in commands])
    lines = [
        "# fish completion of enginix, made by: enginix completion fish",
        "complete -c enginix -n __fish_use_subcommand -f",
        "complete -c enginix -n __fish_use_subcommand -l version -l help",
        f"complete -c enginix -n '__fish_seen_subcommand_from help' -f -a {names}",
        "complete -c enginix -n __fish_use_subcommand -a help -d 'help of a command'",
    ]
    for command in commands:
        lines.append(
            f"complete -c enginix -n __fish_use_subcommand -a {command.name} -d {quote(command.summary)}"
        )
        seen = f"complete -c enginix -n '__fish_seen_subcommand_from {command.name}'"
        if command.verbs:
            lines.append(f"{seen} -a {_join(command.verbs)}")
        for option in command.options:
            flags = " ".join(
                f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names
            )
            value = ""
            if option.values is not None:
                value = (
                    f" -x -a {_join(option.values)}" if option.values else " -r" if option.is_path else " -x"
                )
            lines.append(f"{seen} {flags}{value} -d {quote(option.help)}")
    return "\n".join(lines) + "\n"
