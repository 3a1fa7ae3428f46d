"""Engines built at first run into the user's cache: ``$XDG_CACHE_HOME/enginix/engines/<key>``.

The key is a hash of everything that shapes the engine: model, request, runtime, this machine's GPU. Two runs
at once build once: the second waits for the lock of the first. A build that was killed leaves no engine, and
the next run starts it again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginix import console, manifest
from enginix.errors import EnginixError, MachineError
from enginix.files import find_user_cache, sha256_json


def find_cache_directory() -> Path:
    return find_user_cache() / "engines"


def hash_identity(identity: dict[str, Any]) -> str:
    """Hash an identity to 32 hex digits."""
    return sha256_json(identity)[:32]


@dataclass(frozen=True)
class CachedEngine:
    """An engine of the cache; ``used`` in seconds since the epoch."""

    key: str
    path: Path
    name: str
    kind: str
    target: str
    size: int
    used: float


def get_or_build_engine(name: str, make: Callable[[Path], None]) -> Path:
    """Return the engine of that key; ``make`` builds it if it does not exist.

    Raises:
        MachineError: the cache cannot be written.
    """
    root = find_cache_directory()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise MachineError(f"cannot make: {e.strerror}", where=str(root), fix="set XDG_CACHE_HOME") from e
    path = root / name
    with _reserve_entry(root, name, wait=True):
        if (path / manifest.MANIFEST_FILE).is_file():
            with contextlib.suppress(OSError):
                # Not of the manifest: a server that loads the engine watches the files.
                os.utime(path)
            return path
        for leftover in root.glob(f".{name}.*.partial"):
            shutil.rmtree(leftover, ignore_errors=True)
        if path.exists():
            shutil.rmtree(path)
        make(path)
    return path


def list_cached_engines() -> list[CachedEngine]:
    """List the engines of the cache, the most recently used first."""
    engines = []
    root = find_cache_directory()
    for path in root.iterdir() if root.is_dir() else ():
        if path.name.startswith("."):
            continue
        with contextlib.suppress(EnginixError, OSError):
            engine_manifest = manifest.read_manifest(path, "engine")
            engines.append(
                CachedEngine(
                    key=path.name,
                    path=path,
                    name=engine_manifest.name,
                    kind=engine_manifest.kind or "",
                    target=str(engine_manifest.target.get("gpu") or engine_manifest.target.get("name") or ""),
                    size=sum(p.stat().st_size for p in path.rglob("*") if p.is_file() and not p.is_symlink()),
                    used=path.stat().st_mtime,
                )
            )
    return sorted(engines, key=lambda e: -e.used)


def prune_engines(keep: int, names: list[str]) -> list[CachedEngine]:
    """Remove the named engines, or all but the ``keep`` most recently used; never one that is being built.

    Returns:
        The removed engines.
    """
    engines = list_cached_engines()
    chosen = [e for e in engines if e.key in names or e.name in names] if names else engines[keep:]
    removed = []
    for entry in chosen:
        try:
            # Another process may have pruned it since it was listed.
            with (
                _reserve_entry(find_cache_directory(), entry.key, wait=False),
                contextlib.suppress(FileNotFoundError),
            ):
                # Rename it first, so that no reader sees half an engine.
                moved_path = entry.path.with_name(f".{entry.key}.{os.getpid()}.partial")
                os.rename(entry.path, moved_path)
                shutil.rmtree(moved_path)
                removed.append(entry)
        except BlockingIOError:
            console.print_message(f"note: {entry.key} is in use, it stays")
    return removed


@contextlib.contextmanager
def _reserve_entry(root: Path, name: str, *, wait: bool) -> Iterator[None]:
    # Locks are files of their own: an engine's directory comes and goes under its name.
    with open(root / f".{name}.lock", "w", encoding="utf-8") as f:
        if wait:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                console.print_message(f"another process builds {name}; waiting for it")
                fcntl.flock(f, fcntl.LOCK_EX)
        else:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
