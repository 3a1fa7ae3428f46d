"""Options of the exporter, the builder and the server, typed by ``data/edgellm.json``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from enginix.errors import UsageError
from enginix.tables import table

Value = bool | int | str


def checked(stage: str, options: Mapping[str, Any]) -> dict[str, Value]:
    """The options of one stage (``export``, ``build``, ``serve``), each known and of its type.

    Raises:
        UsageError: unknown, of another type, or beyond its bounds.
    """
    rows: Mapping[str, Mapping[str, Any]] = table("edgellm")[stage]
    types: dict[str, type[Value]] = {"bool": bool, "int": int, "str": str}
    found: dict[str, Value] = {}
    for name, value in sorted(options.items()):
        row = rows.get(name)
        if row is None:
            raise UsageError(
                f"unknown option {name}", where=f"edgellm {stage}", fix=f"known: {', '.join(rows)}"
            )
        wanted = types[row["type"]]
        if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            raise UsageError(f"{name} is {value!r}, not {row['type']}", where=f"edgellm {stage}")
        if "choices" in row and value not in row["choices"]:
            choices = ", ".join(map(str, row["choices"]))
            raise UsageError(f"{name} is {value!r}", where=f"edgellm {stage}", fix=f"one of: {choices}")
        if "least" in row and value < row["least"]:
            raise UsageError(f"{name} is {value}, least is {row['least']}", where=f"edgellm {stage}")
        given: Value = value
        found[name] = given
    return found


def words(stage: str, options: Mapping[str, Any]) -> list[str]:
    """The options as words of NVIDIA's command line; what is false or at its default of false is left out."""
    rows = table("edgellm")[stage]
    found: list[str] = []
    for name, value in checked(stage, options).items():
        flag = rows[name]["flag"]
        if value is True:
            found.append(flag)
        elif value is not False:
            found += [flag, str(value)]
    return found


def add_flags(parser: argparse.ArgumentParser, stage: str) -> None:
    """One flag for each row of the stage; what is not given stays absent from the result."""
    kinds = {"int": int, "str": str}
    for name, row in table("edgellm")[stage].items():
        more: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": row["does"]}
        if row["type"] == "bool":
            parser.add_argument(row["flag"], action="store_true", **more)
        else:
            parser.add_argument(
                row["flag"],
                type=kinds[row["type"]],
                choices=row.get("choices"),
                metavar="N" if row["type"] == "int" else "X",
                **more,
            )


def given(args: argparse.Namespace, stage: str) -> dict[str, Value]:
    """What ``add_flags`` parsed."""
    return checked(
        stage, {name: getattr(args, name) for name in table("edgellm")[stage] if hasattr(args, name)}
    )
