"""Which file names a lock may hold: those that stay below one directory on every file system."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from enginix.tables import load_table

LONGEST_PATH = 1024  # characters; PATH_MAX is 4096 bytes and the directory before it needs room too
LONGEST_NAME = 255  # bytes; NAME_MAX of Linux file systems

# Formats whose readers run code that the file brings along.
PICKLE_SUFFIXES = tuple(load_table("lock")["pickles"])
RESERVED = "enginix.json"  # the manifest that fetching adds
# The one reason that does not make a path hostile, only no part of a lock.
MANIFEST_NAME_PROBLEM = "is the name of the manifest that fetching adds"


def find_path_problem(path: str) -> str | None:
    """Why ``path`` is refused, or None when it is fine."""
    if not path:
        return "is empty"
    if not path.isprintable():
        return "has a control or invisible character"
    if "\\" in path:
        return "has a backslash"
    if path.startswith("/") or path[1:2] == ":":
        return "is absolute"
    if len(path) > LONGEST_PATH:
        return f"is longer than {LONGEST_PATH} characters"
    for name in path.split("/"):
        if not name:
            return "has an empty segment"
        if name in (".", ".."):
            return f"has a {name!r} segment"
        if name.casefold() == ".git":
            return "has a .git segment"
        if len(name.encode()) > LONGEST_NAME:
            return f"has a segment longer than {LONGEST_NAME} bytes"
    if is_reserved(path):
        return MANIFEST_NAME_PROBLEM
    return None


def is_reserved(path: str) -> bool:
    """Whether the manifest could not be written beside it, where case does not count."""
    return path.split("/", 1)[0].casefold() == RESERVED


def is_pickle(path: str) -> bool:
    """Whether the name says that the file is a pickle, or may be one."""
    return path.lower().endswith(PICKLE_SUFFIXES)


def find_path_clash(paths: Iterable[str]) -> tuple[str, str] | None:
    """Two paths that cannot both exist on a file system that ignores case and Unicode form, or None.

    Equal but for case or normalization, or one a file where the other needs a directory.
    """
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    for path in paths:
        key = unicodedata.normalize("NFC", path).casefold()
        other = files.get(key) or folders.get(key)
        if other is not None:
            return other, path
        files[key] = path
        slash = key.rfind("/")
        while slash > 0:
            parent = key[:slash]
            if parent in files:
                return files[parent], path
            folders.setdefault(parent, path)
            slash = key.rfind("/", 0, slash)
    return None
