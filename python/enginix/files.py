"""Files of this user's: written whole, in canonical JSON, and their hashes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from enginix.errors import EnginixError, MachineError


def find_user_cache() -> Path:
    """Return the directory of everything that enginix keeps for this user, and can make again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "enginix"


def find_existing_parent(path: Path) -> Path:
    """Return the path itself, or the nearest directory above it that exists."""
    path = Path(os.path.abspath(path))
    return next(place for place in (path, *path.parents) if place.exists())


def dump_json(value: Any) -> str:
    """Return canonical JSON: sorted keys, two spaces, a final newline; the same bytes on every machine."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


# What reading a file raises that is missing, damaged, or of another form.
DAMAGE: tuple[type[Exception], ...] = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError),
)


@contextmanager
def refuse_damage(
    error: type[EnginixError],
    where: str | Path | None,
    fix: str | None = None,
    *,
    what: str = "unreadable",
    also: tuple[type[Exception], ...] = (),
) -> Iterator[None]:
    """Raise ``error`` where the block cannot use a file, with ``what`` and the reason.

    Args:
        also: further exceptions that mean so, as a library raises them.
    """
    try:
        yield
    except DAMAGE + also as e:
        reason = (e.strerror if isinstance(e, OSError) else None) or str(e)
        if isinstance(e, LookupError | TypeError | AttributeError) or not reason:
            reason = f"{type(e).__name__}: {e}"
        raise error(f"{what}: {reason}", where=where, fix=fix) from e


def read_json_object(
    path: Path, error: type[EnginixError], fix: str | None = None, missing: EnginixError | None = None
) -> dict[str, Any]:
    """Read a JSON object that another stage or a user wrote.

    Args:
        error: class of what is raised where the file is unreadable, or no object.
        fix: of that error.
        missing: raised where there is no such file; None raises ``error``.
    """
    with refuse_damage(error, path, fix):
        if missing is not None and not path.exists():
            raise missing
        content = json.loads(path.read_text("utf-8"))
    if not isinstance(content, dict):
        raise error("not a JSON object", where=str(path), fix=fix)
    return content


def write_text(path: Path, text: str) -> None:
    """Write a file beside ``path`` under a fresh name and rename it, so that no reader sees half a file."""
    import tempfile

    beside: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        beside = Path(name)
        with open(handle, "w", encoding="utf-8") as f:
            os.fchmod(handle, 0o666 & ~_read_umask())
            f.write(text)
        os.replace(beside, path)
    except BaseException as e:
        if beside is not None:
            beside.unlink(missing_ok=True)
        if isinstance(e, OSError):
            raise MachineError(f"cannot write: {e.strerror}", where=path) from e
        raise


def write_new_text(path: Path, text: str) -> Path:
    """Write a file that replaces none: NAME-2 where another run has made it meanwhile; return its path."""
    candidate, number = path, 1
    while True:
        try:
            # Reserves the name.
            os.close(os.open(candidate, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666))
        except FileExistsError:
            number += 1
            candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
            continue
        except OSError as e:
            raise MachineError(f"cannot write: {e.strerror}", where=path) from e
        write_text(candidate, text)
        return candidate


def _read_umask() -> int:
    """Read the process's umask without changing it, which other threads would see."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text("ascii").splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o022


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of a file's bytes, read in 1 MiB blocks."""
    import hashlib

    digest = hashlib.sha256()
    with path.open("rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Return the hex SHA-256 of a value's canonical JSON."""
    import hashlib

    return hashlib.sha256(dump_json(value).encode()).hexdigest()


def is_unfinished_name(name: str) -> bool:
    """Return whether a file or directory has a name of output that is not whole yet."""
    return name.startswith(".") and name.endswith(".partial")


def measure_disk_size(path: Path) -> int:
    """Return the bytes of all files below a directory, links followed, each file once; circles are cut."""
    total, seen = 0, set[tuple[int, int]]()

    def count_once(one: Path) -> os.stat_result | None:
        try:
            status = one.stat()
        except OSError:  # a dangling link has no size
            return None
        key = (status.st_dev, status.st_ino)
        if key in seen:
            return None
        seen.add(key)
        return status

    count_once(path)
    for directory, subdirectories, files in os.walk(path, followlinks=True):
        subdirectories[:] = [name for name in subdirectories if count_once(Path(directory, name)) is not None]
        total += sum(s.st_size for name in files if (s := count_once(Path(directory, name))) is not None)
    return total
