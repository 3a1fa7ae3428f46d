"""The shapes that options of many commands have, and the options that several commands share."""

from __future__ import annotations

from argparse import _ActionsContainer as OptionGroup
from pathlib import Path
from typing import Any


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
