"""Files that are either whole or absent."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from enginix.errors import MachineError, UsageError


def dump_json(value: Any) -> str:
    """Canonical JSON: sorted keys, two spaces, a final newline; the same bytes on every machine."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """Writes beside ``path`` and renames, so that no reader sees half a file."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        beside.write_text(text, "utf-8")
        os.replace(beside, path)
    except BaseException as e:
        beside.unlink(missing_ok=True)
        if isinstance(e, OSError):
            raise MachineError(f"cannot write: {e.strerror}", where=str(path)) from e
        raise


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in 1 MiB blocks."""
    import hashlib

    digest = hashlib.sha256()
    with path.open("rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_free(out: Path) -> None:
    """Refuses an output that exists, before anything is computed.

    Raises:
        UsageError: it is there, and is not an empty directory.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError("output exists already", where=str(out), fix="choose another -o, or remove it")


@contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """A directory to fill beside ``out``; renamed to ``out`` on success, removed on any failure.

    A process killed midway leaves only a hidden ``.<name>.*.partial`` beside it, never ``out``.

    Raises:
        UsageError: ``out`` exists already and is not an empty directory.
        MachineError: the file system refuses, for instance because it is full.
    """
    # Imported late: whoever only reads a manifest is to start in milliseconds.
    import shutil
    import tempfile

    out = Path(os.path.abspath(out))
    check_free(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    except OSError as e:
        raise MachineError(
            f"cannot write: {e.strerror or e}", where=str(out), fix="choose another -o, or make it writable"
        ) from e
    try:
        yield partial
        partial.chmod(0o755)
        if out.exists():
            out.rmdir()
        os.rename(partial, out)
    except OSError as e:
        shutil.rmtree(partial, ignore_errors=True)
        raise MachineError(
            f"cannot write: {e.strerror or e}", where=str(out), fix="free disk space, or choose another -o"
        ) from e
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
