"""Options of the exporter, the builder and the server, typed by ``data/edgellm/edgellm.json``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from enginix.errors import UsageError
from enginix.tables import load_table
from enginix.wording import list_known

EdgellmOptionValue = bool | int | str


def check_stage_options(stage: str, options: Mapping[str, Any]) -> dict[str, EdgellmOptionValue]:
    """Check the options of one stage (``export``, ``build``, ``serve``).

    Raises:
        UsageError: an option is unknown, of another type, or beyond its bounds.
    """
    rows: Mapping[str, Mapping[str, Any]] = load_table("edgellm")[stage]
    types: dict[str, type[EdgellmOptionValue]] = {"bool": bool, "int": int, "str": str}
    values: dict[str, EdgellmOptionValue] = {}
    for name, value in sorted(options.items()):
        row = rows.get(name)
        if row is None:
            raise UsageError(f"unknown option {name}", where=f"edgellm {stage}", fix=list_known(name, rows))
        expected_type = types[row["type"]]
        if not isinstance(value, expected_type) or (expected_type is int and isinstance(value, bool)):
            raise UsageError(f"{name} is {value!r}, not {row['type']}", where=f"edgellm {stage}")
        if "choices" in row and value not in row["choices"]:
            known = list_known(str(value), map(str, row["choices"]))
            raise UsageError(f"{name} is {value!r}", where=f"edgellm {stage}", fix=known)
        if "least" in row and value < row["least"]:
            raise UsageError(f"{name} is {value}, least is {row['least']}", where=f"edgellm {stage}")
        values[name] = value
    return values


def format_stage_flags(stage: str, options: Mapping[str, Any]) -> list[str]:
    """Return the options as words of NVIDIA's command line, without those that are false."""
    rows = load_table("edgellm")[stage]
    flag_words: list[str] = []
    for name, value in check_stage_options(stage, options).items():
        flag = rows[name]["flag"]
        if value is True:
            flag_words.append(flag)
        elif value is not False:
            flag_words += [flag, str(value)]
    return flag_words


def add_flags(parser: argparse.ArgumentParser, stage: str) -> None:
    """Add a flag for each option of the stage; flags that are not given stay absent from the result."""
    kinds = {"int": int, "str": str}
    for name, row in load_table("edgellm")[stage].items():
        keywords: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": row["does"]}
        if row["type"] == "bool":
            parser.add_argument(row["flag"], action="store_true", **keywords)
        else:
            parser.add_argument(
                row["flag"],
                type=kinds[row["type"]],
                choices=row.get("choices"),
                metavar="N" if row["type"] == "int" else "X",
                **keywords,
            )


def collect_given_options(args: argparse.Namespace, stage: str) -> dict[str, EdgellmOptionValue]:
    """Return the options that the flags of ``add_flags`` parsed."""
    return check_stage_options(
        stage, {name: getattr(args, name) for name in load_table("edgellm")[stage] if hasattr(args, name)}
    )
