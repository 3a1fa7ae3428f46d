"""The parser of a command, what every command takes, and help."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

from enginix import console
from enginix.cli.command_table import COMMANDS, list_commands
from enginix.errors import EXIT_CODES, UsageError
from enginix.wording import find_nearest, list_known

DESCRIPTION_COLUMNS = 112  # from which on a terminal shows descriptions as they are written
# Numbers that may be 0; every other one of an option is above 0.
ZERO_ALLOWED = (
    "port", "http_port", "grpc_port", "metrics_port", "seed", "warmup", "tolerance", "keep", "size", "needs",
    "exit_timeout", "max_queue_size", "max_queue_delay_microseconds", "maxQueuedRequests",
)  # fmt: skip
_TOO_LARGE = 1e9  # seconds that no timer of Python takes


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors are ``UsageError``, with the nearest of what is known."""

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
            allows_zero = action.dest in ZERO_ALLOWED
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


def make_parser(name: str, module: ModuleType) -> CommandParser:
    description = _fit_description(module.__doc__ or COMMANDS[name][1])
    parser = CommandParser(prog=f"enginix {name}", description=description, epilog=format_exit_codes())
    module.add_arguments(parser)
    add_common_arguments(parser)
    return parser


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


def format_exit_codes() -> str:
    return "exit codes:\n" + "\n".join(
        console.wrap_line(f"  {code:<3} {meaning}", 6, console.find_help_width())
        for code, meaning in EXIT_CODES.items()
    )


def _fit_description(text: str) -> str:
    """Return a description as it is written; fitted to a narrow terminal, or $COLUMNS."""
    width = console.find_help_width()
    if width >= DESCRIPTION_COLUMNS:
        return text
    from enginix.help_text import fit_description

    return fit_description(text, width)


def search_help(word: str) -> list[str]:
    """Return the commands whose summary or help has a word; those whose summary has it come first."""
    in_summary, in_help = [], []
    for name in list_commands():
        module_name, summary = COMMANDS[name]
        if word.lower() in f"{name} {summary}".lower():
            in_summary.append(name)
            continue
        parser = make_parser(name, importlib.import_module(f"enginix.cli.{module_name}"))
        parser.epilog = None
        if word.lower() in parser.format_help().lower():
            in_help.append(name)
    return in_summary + in_help


def format_command_list(names: Sequence[str]) -> str:
    listed = {name: COMMANDS[name][1] for name in names}
    width = max(map(len, listed))
    lines = (
        console.wrap_line(f"  {name:<{width}}  {summary}", width + 4, console.find_help_width())
        for name, summary in listed.items()
    )
    return "\n".join(lines)
