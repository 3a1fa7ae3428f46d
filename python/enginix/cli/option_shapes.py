"""The shapes that options of many commands have, their refusal, and dataclasses made of their values."""

from __future__ import annotations

from argparse import SUPPRESS, Namespace
from argparse import _ActionsContainer as OptionGroup
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from enginix.errors import UsageError

_Options = TypeVar("_Options")


def add_path(group: OptionGroup, name: str, metavar: str, text: str, **more: Any) -> None:
    """Add an argument that names a file or directory."""
    group.add_argument(name, type=Path, metavar=metavar, help=text, **more)


def add_number(
    group: OptionGroup, name: str, text: str, *, type: type = int, metavar: str = "N", **more: Any
) -> None:
    """Add an option that takes a number."""
    group.add_argument(name, type=type, metavar=metavar, help=text, **more)


def add_repeated(group: OptionGroup, name: str, metavar: str, text: str, *, type: type = str) -> None:
    """Add an option that may be given several times: its value is a list."""
    group.add_argument(name, action="append", default=[], type=type, metavar=metavar, help=text)


def add_flag(group: OptionGroup, name: str, text: str, **more: Any) -> None:
    """Add an option without a value."""
    group.add_argument(name, action="store_true", help=text, **more)


def add_output(group: OptionGroup, metavar: str, text: str, *, required: bool = False) -> None:
    """Add ``-o``, ``--output``: the path to write."""
    group.add_argument("-o", "--output", type=Path, required=required, metavar=metavar, help=text)


def add_image_options(group: OptionGroup, rootfs: str = "root file system of the runtime's image") -> None:
    """Add ``--rootfs``, ``--pin`` and ``--driver``: where a runtime's command runs."""
    add_path(group, "--rootfs", "DIR", rootfs)
    add_path(group, "--pin", "FILE", "the runtime's pin file, with the image's environment")
    add_path(group, "--driver", "DIR", "the GPU driver's root (default: found)")


def add_timeouts(group: OptionGroup, start: str, exit: str) -> None:
    """Add ``--start-timeout`` and ``--exit-timeout``: the seconds that a server has for either."""
    add_number(group, "--start-timeout", f"{start} (default: 600)", default=600, type=float, metavar="S")
    add_number(group, "--exit-timeout", f"{exit} (default: 30)", default=30, metavar="S")


def add_inner_json(verb: OptionGroup) -> None:
    """Add ``--json`` behind a verb as well as before it."""
    verb.add_argument("--json", action="store_true", default=SUPPRESS, help=SUPPRESS)


def fill_options(options: type[_Options], args: Namespace, /, **different: Any) -> _Options:
    """Return a dataclass of options whose fields have the values of the arguments of the same names.

    Args:
        different: fields whose value is not that of an argument.
    """
    names = [field.name for field in fields(options)]  # type: ignore[arg-type]
    same = {name: getattr(args, name) for name in names if name not in different and hasattr(args, name)}
    return options(**same, **different)


def refuse_options(args: Namespace, names: Sequence[str], why: str) -> None:
    """Raise ``UsageError`` for the first of these options that is given."""
    for name in names:
        if getattr(args, name) not in (None, False):
            raise UsageError(why, where=f"--{name.replace('_', '-')}", fix="leave it out")
