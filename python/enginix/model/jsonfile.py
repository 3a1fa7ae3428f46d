"""Read untrusted JSON: bounded, UTF-8, no key with two values, an object at the top."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from enginix.errors import ModelError
from enginix.model.other_layouts import explain_other_layout

LIMIT = 100_000_000  # bytes; the safetensors format's own limit for a header


class _InvalidJson(ValueError):
    pass


DAMAGED_FIX = (
    "compare the file with the Hub's: if they differ, fetch it again; if not, report it to the model's author"
)
_POINTER = b"version https://git-lfs.github.com/spec/v1"
_PAGES = (b"<!doctype html", b"<html")


def detect_other_content(start: bytes) -> tuple[str, str] | None:
    """Identify a file that is not a model's data by its first bytes; None where it looks like data.

    Returns:
        What the file is, and how to fix it.
    """
    if start.startswith(_POINTER):
        return "a Git LFS pointer, not the file", "run `git lfs pull` in the clone, or use enginix fetch"
    if start[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_PAGES):
        return (
            "an HTML page, not the file: a page of the site was saved in its place",
            "fetch it with enginix fetch; a gated model needs a token",
        )
    return None


def _refuse_conflicting_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        for key, value in pairs:
            # Readers take the last one; equal ones say the same.
            if values[key] != value:
                raise _InvalidJson(f"key {key!r} appears twice, with different values")
    return values


def _refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _InvalidJson(f"key {key!r} appears twice")
            seen.add(key)
    return values


def _refuse_constant(text: str) -> NoReturn:
    raise _InvalidJson(f"{text} is not JSON")


def parse_object(data: bytes, where: str, *, strict: bool = False) -> dict[str, Any]:
    """Parse one JSON object.

    Infinity and NaN are parsed, as Python's json writes them and transformers reads them; the readers of
    single keys refuse them.

    Args:
        strict: follow the JSON standard exactly and refuse repeated keys: for files that software writes.

    Raises:
        ModelError: not UTF-8, not JSON, nested too deep, a key with two values, or not an object at the top.
    """
    if other := detect_other_content(data[:1024]):
        raise ModelError(other[0], where=where, fix=other[1])
    hooks: dict[str, Any] = {
        "object_pairs_hook": _refuse_repeated_keys if strict else _refuse_conflicting_keys
    }
    if strict:
        hooks["parse_constant"] = _refuse_constant
    try:
        value = json.loads(data.decode("utf-8"), **hooks)
    except UnicodeDecodeError as e:
        raise ModelError(f"not UTF-8 at byte {e.start}", where=where, fix=DAMAGED_FIX) from e
    except RecursionError as e:
        raise ModelError("JSON nested too deep", where=where, fix=DAMAGED_FIX) from e
    except ValueError as e:
        raise ModelError(f"not JSON: {e}", where=where, fix=DAMAGED_FIX) from e
    if not isinstance(value, dict):
        raise ModelError("not a JSON object", where=where, fix=DAMAGED_FIX)
    return value


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; refuse any other kind of file without waiting for a pipe.

    Raises:
        ModelError: not a regular file.
        OSError: as ``open``.
    """
    file = open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb")  # noqa: SIM115
    mode = os.fstat(file.fileno()).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a directory is an error of the first read
        file.close()
        raise ModelError("not a regular file", where=str(path), fix="pass a complete model directory")
    return file


def read_object(path: Path) -> dict[str, Any]:
    """Read one JSON object from a file of at most ``LIMIT`` bytes.

    Raises:
        ModelError: missing, unreadable, too large, or refused by ``parse_object``.
    """
    try:
        with open_regular(path) as f:
            data = f.read(LIMIT + 1)
    except OSError as e:
        if path.name == "config.json" and path.parent.is_dir():
            names = {entry.name for entry in path.parent.iterdir()}
            if other := explain_other_layout(names - {path.name}):
                raise ModelError(other[0], where=str(path.parent), fix=other[1]) from e
        raise ModelError(
            f"cannot be read: {e.strerror or e}", where=str(path), fix="pass a complete model directory"
        ) from e
    if len(data) > LIMIT:
        raise ModelError(f"larger than {LIMIT} bytes", where=str(path), fix=DAMAGED_FIX)
    return parse_object(data, str(path))
