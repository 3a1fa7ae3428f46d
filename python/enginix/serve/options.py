"""Options that a user adds to a program's command line, checked by a table before the program starts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from enginix.errors import UsageError
from enginix.tables import load_table
from enginix.wording import suggest_name

_SPELLED = {
    "bool": ("true|false", "true or false"),
    "int": (r"[0-9]{1,18}", "a whole number"),
    "float": (r"[0-9]+(\.[0-9]+)?", "a number"),
    "string": (r"[^\0\n]+", "text"),
}


@dataclass(frozen=True)
class ProgramOptions:
    """A program's options, and its names in errors.

    Attributes:
        option: option of ``enginix serve`` that takes ``NAME=VALUE``.
        name: the program's name.
        of_version: the program's name with a version, which replaces ``{}``.
        table: table of ``data`` with the program's options by name: ``type``; ``since``, the first version
            that has it; ``own`` or ``refused``, the reason why it must not be set; ``repeatable``.
        rows: key of the options in the table.
    """

    option: str
    name: str
    of_version: str
    table: str
    rows: str

    def has(self, name: str, version: str) -> bool:
        """Tell whether that version of the program knows the option."""
        row = load_table(self.table)[self.rows].get(name)
        return row is not None and _version_numbers(version) >= _version_numbers(row.get("since", "0"))

    def checked(self, given: Iterable[str], version: str) -> list[tuple[str, str | None]]:
        """Return a user's ``NAME=VALUE`` options as names and values, sorted by name; a switch has no value.

        Args:
            version: version of tritonserver, for instance ``2.68.0``.

        Raises:
            UsageError: an option is unknown (with the nearest name), of a later version, set by enginix, not
                allowed, of another type, or given twice although it is not repeatable.
        """
        rows = load_table(self.table)[self.rows]
        accepted: dict[str, list[tuple[str, str | None]]] = {}
        for text in given:
            name, equals, value = text.removeprefix("--").partition("=")
            where = f"{self.option} {name}"
            row = rows.get(name)
            if row is None:
                raise UsageError(
                    f"{self.name} has no such option",
                    where=where,
                    fix=suggest_name(name, rows, f"see data/{self.table}.json"),
                )
            for reason, says in (("own", "enginix writes it itself"), ("refused", "not to be set")):
                if reason in row:
                    raise UsageError(f"{says}: {row[reason]}", where=where, fix="leave it out")
            if not self.has(name, version):
                raise UsageError(
                    f"{self.of_version.format(version)} has no such option; {row['since']} brought it",
                    where=where,
                    fix="leave it out, or take a later runtime",
                )
            if (why := self._find_misspelling(row, equals, value)) is not None:
                raise UsageError(why, where=where)
            if name in accepted and not row.get("repeatable"):
                raise UsageError("given twice", where=where)
            accepted.setdefault(name, []).append((name, value if equals else None))
        return [pair for pairs in accepted.values() for pair in pairs]

    def _find_misspelling(self, row: Mapping[str, Any], equals: str, value: str) -> str | None:
        if row["type"] == "switch":
            return "it has no value" if equals else None
        pattern, expected = _SPELLED[row["type"]]
        return None if re.fullmatch(pattern, value) else f"{value!r} is not {expected}"


def _version_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version)[:3])
