"""Options of tritonserver that a user adds, checked against its version before it starts.

tritonserver refuses unknown options only after the start, and an earlier version does not know the options of
a later one.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from enginix.errors import UsageError
from enginix.files import refuse_damage
from enginix.tables import load_table
from enginix.wording import suggest_name

# Name of the header (HTTP) that opens restricted APIs; over gRPC it is triton-grpc-protocol-<name>.
ADMIN_HEADER = "enginix-key"
_KEY = re.compile(r"[A-Za-z0-9_.~-]{16,128}")
_SPELLED = {
    "bool": ("true|false", "true or false"),
    "int": (r"[0-9]{1,18}", "a whole number"),
    "float": (r"[0-9]+(\.[0-9]+)?", "a number"),
    "string": (r"[^\0\n]+", "text"),
}


def check_triton_flags(given: Iterable[str], version: str) -> tuple[str, ...]:
    """Return a user's ``NAME=VALUE`` options as words of a command line; a switch has no value.

    Args:
        version: of tritonserver, for instance ``2.68.0``.

    Raises:
        UsageError: an option is unknown (with the nearest name), of a later version, set by enginix, not
            allowed, of another type, or given twice although it is not repeatable.
    """
    rows = load_table("triton_flags")["flags"]
    accepted: dict[str, list[str]] = {}
    for text in given:
        name, equals, value = text.removeprefix("--").partition("=")
        where = f"--triton-flag {name}"
        row = rows.get(name)
        if row is None:
            fix = suggest_name(name, rows, "see data/triton_flags.json")
            raise UsageError("tritonserver has no such option", where=where, fix=fix)
        for reason, says in (("own", "enginix writes it itself"), ("refused", "not to be set")):
            if reason in row:
                raise UsageError(f"{says}: {row[reason]}", where=where, fix="leave it out")
        if not _has_flag(name, version):
            raise UsageError(
                f"tritonserver {version} has no such option; {row['since']} brought it",
                where=where,
                fix="leave it out, or take a later runtime",
            )
        if (why := _find_misspelling(row["type"], equals, value)) is not None:
            raise UsageError(why, where=where)
        if name in accepted and not row.get("repeatable"):
            raise UsageError("given twice", where=where)
        accepted.setdefault(name, []).append(f"--{name}={value}" if equals else f"--{name}")
    return tuple(word for words in accepted.values() for word in words)


def _has_flag(name: str, version: str) -> bool:
    row: dict[str, Any] | None = load_table("triton_flags")["flags"].get(name)
    return row is not None and _version_numbers(version) >= _version_numbers(row.get("since", "0"))


def _find_misspelling(type_name: str, equals: str, value: str) -> str | None:
    if type_name == "switch":
        return "it has no value" if equals else None
    pattern, expected = _SPELLED[type_name]
    return None if re.fullmatch(pattern, value) else f"{value!r} is not {expected}"


def _version_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version)[:3])


def read_admin_key(path: Path | None) -> str:
    """Return the key of restricted APIs: a file's content, or a random key, which keeps them closed.

    Raises:
        UsageError: the file is unreadable, or the option cannot carry the key.
    """
    if path is None:
        return secrets.token_urlsafe(24)
    with refuse_damage(UsageError, f"--admin-key-file {path}"):
        key = path.read_text("utf-8").strip()
    if not _KEY.fullmatch(key):
        raise UsageError(
            "the key is not 16 to 128 letters, digits or ._~-",
            where=f"--admin-key-file {path}",
            fix="openssl rand -hex 24",
        )
    return key


def closing_options(version: str, key: str) -> list[str]:
    """Return options that close shared memory of clients and control over models."""
    apis = ",".join(load_table("triton_flags")["restricted"])
    words = [
        f"--http-restricted-api={apis}:{ADMIN_HEADER}={key}",
        f"--grpc-restricted-protocol={apis}:{ADMIN_HEADER}={key}",
        "--allow-sagemaker=false",
        "--allow-vertex-ai=false",
    ]
    if _has_flag("allow-client-shm", version):
        words.append("--allow-client-shm=false")
    return words
