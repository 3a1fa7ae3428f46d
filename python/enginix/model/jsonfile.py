"""JSON from strangers: bounded, UTF-8, no duplicate keys, no NaN, an object at the top."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from enginix.errors import ModelError

LIMIT = 100_000_000  # bytes; the safetensors format's own limit for a header


class _Refused(ValueError):
    pass


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Refused(f"key {key!r} appears twice")
            seen.add(key)
    return found


def _constant(text: str) -> NoReturn:
    raise _Refused(f"{text} is not JSON")


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """Parses one JSON object.

    Raises:
        ModelError: not UTF-8, not JSON, nested too deep, a duplicate key, or no object at the top.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_pairs, parse_constant=_constant)
    except UnicodeDecodeError as e:
        raise ModelError(f"not UTF-8 at byte {e.start}", where=where, fix="download the file again") from e
    except RecursionError as e:
        raise ModelError("JSON nested too deep", where=where, fix="download the file again") from e
    except ValueError as e:
        raise ModelError(f"not JSON: {e}", where=where, fix="download the file again") from e
    if not isinstance(value, dict):
        raise ModelError("not a JSON object", where=where, fix="download the file again")
    return value


def open_regular(path: Path) -> BinaryIO:
    """Opens a file for reading; what is no regular file is refused, and a pipe is not waited for.

    Raises:
        ModelError: no regular file.
        OSError: as ``open``.
    """
    file = open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb")  # noqa: SIM115
    mode = os.fstat(file.fileno()).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a directory is an error of the first read
        file.close()
        raise ModelError("no regular file", where=str(path), fix="pass a complete model directory")
    return file


def read_object(path: Path) -> dict[str, Any]:
    """Reads one JSON object from a file of at most ``LIMIT`` bytes.

    Raises:
        ModelError: missing, unreadable, too large, or refused by ``parse_object``.
    """
    try:
        with open_regular(path) as f:
            data = f.read(LIMIT + 1)
    except OSError as e:
        raise ModelError(
            f"cannot be read: {e.strerror or e}", where=str(path), fix="pass a complete model directory"
        ) from e
    if len(data) > LIMIT:
        raise ModelError(f"larger than {LIMIT} bytes", where=str(path), fix="download the file again")
    return parse_object(data, str(path))
