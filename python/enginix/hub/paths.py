"""Rules for the file names in a lock: they stay below one directory on every file system."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from enginix.tables import load_table

LONGEST_PATH = 1024  # characters; PATH_MAX is 4096 bytes and the directory before it needs room too
LONGEST_NAME = 255  # bytes; NAME_MAX of Linux file systems

# Formats whose readers run code that the file brings along.
PICKLE_SUFFIXES = tuple(load_table("lock")["pickles"])
RESERVED = "enginix.json"  # the manifest that fetching adds
# The one reason that does not make a path hostile: the file is only left out of the lock.
MANIFEST_NAME_PROBLEM = "is the name of the manifest that fetching adds"


def find_path_problem(path: str) -> str | None:
    """Return why ``path`` is refused; None for a valid path."""
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
    """Return whether a path is the manifest's, where case does not count."""
    return path.split("/", 1)[0].casefold() == RESERVED


def is_pickle(path: str) -> bool:
    """Return whether a file's name is that of a pickle, or of a format that may be one."""
    return path.lower().endswith(PICKLE_SUFFIXES)


def find_path_clash(paths: Iterable[str]) -> tuple[str, str] | None:
    """Return two paths that cannot both exist on a file system that ignores case and Unicode form, or None.

    They are equal but for case or normalization, or one is a file where the other needs a directory.
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
