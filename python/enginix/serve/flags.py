"""Options of tritonserver that a user adds, checked against its version before it starts.

tritonserver refuses what it does not know only after the start, and an option of a later version is unknown
to an earlier one.
"""

from __future__ import annotations

import difflib
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

from enginix.errors import UsageError
from enginix.tables import table

# Name of the header (HTTP) that opens restricted APIs; over gRPC it is triton-grpc-protocol-<name>.
ADMIN_HEADER = "enginix-key"
_KEY = re.compile(r"[A-Za-z0-9_.~-]{16,128}")
_SPELLED = {
    "bool": (re.compile(r"true|false"), "true or false"),
    "int": (re.compile(r"\d{1,18}"), "a whole number"),
    "float": (re.compile(r"\d+(\.\d+)?"), "a number"),
    "string": (re.compile(r"[^\0\n]+"), "text"),
}


def has(name: str, version: str) -> bool:
    """Whether tritonserver of that version knows the option."""
    row = table("triton_flags")["flags"].get(name)
    return row is not None and _numbers(version) >= _numbers(row.get("since", "0"))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version)[:3])


def checked(given: Iterable[str], version: str) -> tuple[str, ...]:
    """``NAME=VALUE`` of a user, as tritonserver takes them.

    Args:
        version: of tritonserver, for instance ``2.68.0``.

    Raises:
        UsageError: unknown (with the nearest name), of a later version, enginix's own, not to be set, of
            another type, or given twice where it may be given once.
    """
    rows = table("triton_flags")["flags"]
    found: dict[str, list[str]] = {}
    for text in given:
        name, equals, value = text.removeprefix("--").partition("=")
        where = f"--triton-flag {name}"
        row = rows.get(name)
        if row is None:
            near = difflib.get_close_matches(name, rows, 1, 0.6)
            raise UsageError(
                "tritonserver has no such option",
                where=where,
                fix=f"did you mean {near[0]}?" if near else "see data/triton_flags.json",
            )
        if not has(name, version):
            raise UsageError(
                f"tritonserver {version} has no such option; {row['since']} brought it",
                where=where,
                fix="leave it out, or take a later runtime",
            )
        for reason, says in (("own", "enginix writes it itself"), ("refused", "not to be set")):
            if reason in row:
                raise UsageError(f"{says}: {row[reason]}", where=where, fix="leave it out")
        if row["type"] == "switch":
            if equals:
                raise UsageError("it has no value", where=where)
        else:
            pattern, expected = _SPELLED[row["type"]]
            if not pattern.fullmatch(value):
                raise UsageError(f"{value!r} is not {expected}", where=where)
        if name in found and not row.get("repeatable"):
            raise UsageError("given twice", where=where)
        found.setdefault(name, []).append(f"--{name}{equals}{value}")
    return tuple(word for words in found.values() for word in words)


def admin_key(path: Path | None, option: str = "--admin-key-file") -> str:
    """The key of restricted APIs: a file's content, else a random one that nobody is told.

    Args:
        option: that named the file.

    Raises:
        UsageError: unreadable, or not a key that the option can carry.
    """
    if path is None:
        return secrets.token_urlsafe(24)
    try:
        key = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"unreadable: {e}", where=f"{option} {path}") from e
    if not _KEY.fullmatch(key):
        raise UsageError(
            "the key is not 16 to 128 letters, digits or ._~-",
            where=f"{option} {path}",
            fix="openssl rand -hex 24",
        )
    return key


def closing(version: str, key: str) -> list[str]:
    """Options that close what serving does not need: shared memory of clients, and control over models."""
    apis = ",".join(table("triton_flags")["restricted"])
    words = [
        f"--http-restricted-api={apis}:{ADMIN_HEADER}={key}",
        f"--grpc-restricted-protocol={apis}:{ADMIN_HEADER}={key}",
        "--allow-sagemaker=false",
        "--allow-vertex-ai=false",
    ]
    if has("allow-client-shm", version):
        words.append("--allow-client-shm=false")
    return words
