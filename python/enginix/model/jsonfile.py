"""Read untrusted JSON: bounded, UTF-8, no key with two values, an object at the top."""

from __future__ import annotations

import codecs
import json
import os
import re
import stat
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from enginix.errors import ModelError
from enginix.model.model_errors import make_damage_error
from enginix.model.other_layouts import explain_other_artefact, explain_other_layout, require_model_config

LIMIT = 100_000_000  # bytes; the safetensors format's own limit for a header


class _ConflictingKeys(ValueError):
    pass


_POINTER = re.compile(rb"version https://(git-lfs|hawser)\.github\.com/spec/")
_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|\?xml|!--)", re.IGNORECASE)
_ANSWER = re.compile(rb'\s*\{\s*"error"\s*:\s*"')
_BYTE_ORDER_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def detect_other_content(start: bytes) -> tuple[str, str] | None:
    """Identify a file that is not a model's data by its first bytes; None where it looks like data.

    Returns:
        What the file is, and how to fix it.
    """
    if _POINTER.match(start):
        return "a Git LFS pointer, not the file", "run `git lfs pull` in the clone, or use enginix fetch"
    if page := _PAGE.match(start):
        what = "an XML message" if page[2].lower() == b"?xml" else "an HTML page"
        return f"{what}, not the file: a page of the site was saved in its place", _PAGE_FIX
    if _ANSWER.match(start):
        return "an error message of the site, not the file", _PAGE_FIX
    return None


_PAGE_FIX = "fetch it with enginix fetch; a gated model needs a token"


def quote_text(start: bytes) -> str | None:
    """Return the beginning of a text, quoted; None for data that is not text."""
    text = start[:60].decode("ascii", "replace").strip()
    return repr(text) if text and text.isprintable() and text.isascii() else None


def _join_pairs(pairs: list[tuple[str, Any]], strict: bool) -> dict[str, Any]:
    """Return an object; refuse a key with two values, and where ``strict`` a key that appears twice."""
    values, seen = dict(pairs), set[str]()
    for key, value in pairs if len(values) != len(pairs) else ():
        if strict and key in seen:
            raise ValueError(f"key {key!r} appears twice")
        # Readers take the last one; equal ones say the same. NaN is not equal to itself.
        if not strict and values[key] != value and json.dumps(values[key]) != json.dumps(value):
            raise _ConflictingKeys(f"key {key!r} appears twice, with different values")
        seen.add(key)
    return values


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


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
    hooks: dict[str, Any] = {"object_pairs_hook": partial(_join_pairs, strict=strict)}
    if strict:
        hooks["parse_constant"] = _refuse_constant
    if data.startswith(_BYTE_ORDER_MARKS):
        raise ModelError(
            "begins with a byte order mark, which no reader of the format takes",
            where=where,
            fix="save the file as UTF-8 without a byte order mark",
        )
    if not data.strip():
        raise make_damage_error("not JSON: the file is empty", where)
    try:
        value = json.loads(data.decode("utf-8"), **hooks)
    except UnicodeDecodeError as e:
        raise make_damage_error(f"not UTF-8 at byte {e.start}", where) from e
    except RecursionError as e:
        raise make_damage_error("JSON nested too deep", where) from e
    except _ConflictingKeys as e:
        raise ModelError(
            str(e), where=where, fix="remove the wrong one of the two (transformers takes the last)"
        ) from e
    except ValueError as e:
        text = None if data.lstrip().startswith(b"{") else quote_text(data)
        begins = f"; the file begins with {text}" if text else ""
        raise make_damage_error(f"not JSON: {e}{begins}", where) from e
    if not isinstance(value, dict):
        raise make_damage_error("not a JSON object", where)
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
        raise ModelError("not a regular file", where=path, fix="pass a complete model directory")
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
            other = explain_other_layout(names - {path.name})
            if other := other or explain_other_artefact(names, _read_artefact(path.parent)):
                raise ModelError(other[0], where=path.parent, fix=other[1]) from e
            if inner := sorted(path.parent.glob("*/config.json")):
                raise ModelError(
                    f"no config.json; there is one in {inner[0].parent.name}/",
                    where=path.parent,
                    fix=f"pass {inner[0].parent}",
                ) from e
        raise ModelError(
            f"cannot be read: {e.strerror or e}", where=path, fix="pass a complete model directory"
        ) from e
    if len(data) > LIMIT:
        raise make_damage_error(f"larger than {LIMIT} bytes", str(path))
    return parse_object(data, str(path))


def _read_artefact(directory: Path) -> Any:
    try:
        return read_object(directory / "enginix.json").get("artefact")
    except ModelError:
        return None


def refuse_other_artefact(directory: Path) -> None:
    """Refuse a checkpoint or an engine where a model belongs; whatever else it lacks is not looked at.

    Raises:
        ModelError: a checkpoint or an engine, no directory, or a ``config.json`` that :func:`read_object`
            refuses.
    """
    if not directory.is_dir():
        raise ModelError("no such directory", where=directory, fix="pass a model directory")
    if (directory / "config.json").exists():
        require_model_config(read_object(directory / "config.json"), str(directory))
        return
    names = {entry.name for entry in directory.iterdir()}
    if other := explain_other_artefact(names, _read_artefact(directory)):
        raise ModelError(other[0], where=directory, fix=other[1])


def read_architecture(config: Mapping[str, Any]) -> str | None:
    """Return the architecture that a parsed ``config.json`` names first; None without one."""
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None


def positive_or_none(value: Any) -> int | None:
    """Return a whole number of at least 1; None for any other value."""
    return value if type(value) is int and value > 0 else None


def select_language_model(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a model's language model, which some models keep one level down."""
    text = raw.get("text_config")
    return {**raw, **text} if isinstance(text, dict) else dict(raw)
