"""Digests of an artefact's files: computed once, then known again by size, inode and times.

A digest that was computed is kept in the user's cache directory, by the file's device, inode, size, mtime and
ctime. A file in a store of Nix is not read: the store's own hash covers it.
"""

from __future__ import annotations

import json
import os
import re
import stat
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from enginix.errors import ManifestError
from enginix.files import is_unfinished_name, refuse_damage
from enginix.progress import track_step

# Files that are read again only if their size, inode or times changed; all others are small.
WEIGHT_SUFFIXES = (".safetensors", ".engine", ".bin", ".onnx", ".data", ".gguf", ".plan")
_BLOCK = 1 << 20
_THREADS = 4
# The kernel's clock of files ticks every few milliseconds: a file that changed just now may change again
# without another time.
_SETTLED_SECONDS = 2.0
_CACHE_FORMAT = 1
# Files of weights that a user has at once; a row has 200 bytes.
_MAX_CACHED = 4096
# An artefact has far fewer; a link to /proc or / has no end.
_MOST_FILES = 100_000
_DEEPEST = 64
# Nix's base 32 has no e, o, t and u.
STORE_NAME = re.compile(r"^[0-9abcdfghijklmnpqrsvwxyz]{32}-")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ContentDigest:
    """The content of one file of an artefact.

    Attributes:
        sha256: hex digest; empty for a link that leads nowhere here.
        size: bytes.
        link: target of a link that leads nowhere here, for instance into an image; else None.
    """

    sha256: str
    size: int
    link: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the entry of a manifest's ``files``."""
        return {"link": self.link} if self.link is not None else {"sha256": self.sha256, "size": self.size}


def parse_digests(raw: Any) -> dict[str, ContentDigest]:
    """Return the digests of a manifest's ``files``.

    Raises:
        ValueError: a path that leaves the directory, or an entry that is no digest.
    """
    if not isinstance(raw, dict):
        raise ValueError("files is not an object")
    return {path: _parse_digest(path, entry) for path, entry in raw.items()}


def _parse_digest(path: str, entry: Any) -> ContentDigest:
    if not path or path.startswith("/") or any(s in ("", ".", "..") for s in path.split("/")) or "\0" in path:
        raise ValueError(f"files has the path {ascii(path)[:100]}")
    if isinstance(entry, dict) and set(entry) == {"link"} and isinstance(entry["link"], str):
        return ContentDigest("", 0, entry["link"])
    if isinstance(entry, dict) and set(entry) == {"sha256", "size"}:
        sha256, size = entry["sha256"], entry["size"]
        if isinstance(sha256, str) and _SHA256.fullmatch(sha256) and type(size) is int and size >= 0:
            return ContentDigest(sha256, size)
    raise ValueError(f"files has no digest of {ascii(path)[:100]}")


@cache
def _find_store() -> str:
    return os.path.realpath(os.environ.get("NIX_STORE") or "/nix/store")


def is_in_store(path: Path) -> bool:
    """Return whether a path lies in a finished store path of Nix, whose hash is Nix's to check."""
    store, real = _find_store(), os.path.realpath(path)
    entry = real[len(store) + 1 :].split("/", 1)[0] if real.startswith(store + "/") else ""
    if not STORE_NAME.match(entry):
        return False
    with suppress(OSError):
        # Nix takes the write permission away when it registers a path; a running build still has it.
        return not stat.S_IMODE(os.lstat(f"{store}/{entry}").st_mode) & 0o222
    return False


@dataclass(frozen=True)
class _FileState:
    """What changes when a file is written or replaced."""

    device: int
    inode: int
    size: int
    mtime: int
    ctime: int

    @staticmethod
    def of(status: os.stat_result) -> _FileState:
        return _FileState(
            status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        )

    def is_settled(self) -> bool:
        age = time.time_ns() - max(self.mtime, self.ctime)
        return age > _SETTLED_SECONDS * 1e9


def digest_file(path: Path, *, full: bool = False) -> ContentDigest:
    """Return the digest of a file's content; that of weights from the cache, where it has them.

    Args:
        full: read it, whatever the cache has.

    Raises:
        ManifestError: not a readable file, or one that changes while it is read.
    """
    is_weight = path.name.endswith(WEIGHT_SUFFIXES)
    try:
        # A pipe would block, and is refused below.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ManifestError("not a file", where=path, fix="remove it, or build this again")
            state = _FileState.of(status)
            if is_weight and not full and (sha256 := _read_cached_digest(state)) is not None:
                return ContentDigest(sha256, state.size)
            is_settled = state.is_settled()
            sha256 = _hash_descriptor(descriptor)
            if _FileState.of(os.fstat(descriptor)) != state:
                raise _explain_change(path)
        finally:
            os.close(descriptor)
    except OSError as e:
        raise ManifestError(
            f"cannot be read: {e.strerror}", where=path, fix="restore it, or build this again"
        ) from e
    if is_weight and is_settled:
        _keep_cached_digest(state, sha256)
    return ContentDigest(sha256, state.size)


def _hash_descriptor(descriptor: int) -> str:
    import hashlib

    digest, block = hashlib.sha256(), bytearray(_BLOCK)
    view = memoryview(block)
    with open(descriptor, "rb", buffering=0, closefd=False) as f:
        while count := f.readinto(block):
            digest.update(view[:count])
    return digest.hexdigest()


def _explain_change(path: Path) -> ManifestError:
    return ManifestError(
        "changed while it was read", where=path, fix="end what writes to it, and run this again"
    )


def list_files(directory: Path, *, unfinished: bool = True) -> Iterator[tuple[str, Path]]:
    """Yield the relative name and path of each file below a directory, sorted; links are followed.

    Args:
        unfinished: also what other runs are writing under hidden names, which comes and goes.

    Raises:
        ManifestError: links that lead in a circle or to no end, or something that cannot be read.
    """
    walk = _walk_files(directory, "", (os.path.realpath(directory),), unfinished)
    files = sorted(islice(walk, _MOST_FILES + 1))
    if len(files) > _MOST_FILES:
        raise ManifestError(
            f"more than {_MOST_FILES} files", where=directory, fix="remove the link that leads elsewhere"
        )
    yield from files


def _walk_files(
    directory: Path, prefix: str, above: tuple[str, ...], unfinished: bool
) -> Iterator[tuple[str, Path]]:
    with refuse_damage(ManifestError, directory, "make it readable", what="cannot be read"):
        entries = sorted(os.scandir(directory), key=lambda e: e.name)
        for entry in entries:
            if not unfinished and is_unfinished_name(entry.name):
                continue
            path = Path(entry.path)
            if not entry.is_dir():
                yield prefix + entry.name, path
                continue
            real = os.path.realpath(path)
            if real in above:
                raise ManifestError("a link that leads in a circle", where=path, fix="remove it")
            if len(above) > _DEEPEST:
                raise ManifestError(
                    f"directories nested deeper than {_DEEPEST}", where=str(path)[:200], fix="remove them"
                )
            yield from _walk_files(path, f"{prefix}{entry.name}/", (*above, real), unfinished)


def digest_directory(
    directory: Path,
    *,
    leave_out: Collection[str] = (),
    known: Mapping[str, ContentDigest] | None = None,
    full: bool = False,
) -> dict[str, ContentDigest]:
    """Return the digests of all files below a directory, by relative name.

    Args:
        leave_out: names that are no part of the artefact.
        known: digests that were computed while the files were written, or that a lock pins.
        full: read weights, whatever the cache has.

    Raises:
        ManifestError: something is no file, cannot be read, or changes while it is read.
    """
    digests: dict[str, ContentDigest] = {}
    unread: list[tuple[str, Path]] = []
    for name, path in list_files(directory):
        if name in leave_out:
            continue
        if path.is_symlink() and not path.exists():
            digests[name] = ContentDigest("", 0, os.readlink(path))
        elif known is not None and name in known:
            digests[name] = known[name]
        else:
            unread.append((name, path))
    digests.update(_digest_files(unread, full=full))
    return dict(sorted(digests.items()))


def _digest_files(files: list[tuple[str, Path]], *, full: bool) -> dict[str, ContentDigest]:
    large = [(name, path) for name, path in files if path.name.endswith(WEIGHT_SUFFIXES)]
    digests = {name: digest_file(path, full=full) for name, path in files if (name, path) not in large}
    if len(large) < 2:
        return digests | {name: digest_file(path, full=full) for name, path in large}
    from concurrent.futures import ThreadPoolExecutor

    with (
        track_step("hashing", len(large), "files") as progress,
        ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool,
    ):

        def digest_counted(entry: tuple[str, Path]) -> ContentDigest:
            digest = digest_file(entry[1], full=full)
            progress.advance()
            return digest

        results = pool.map(digest_counted, large)
        return digests | {name: digest for (name, _), digest in zip(large, results, strict=True)}


class SourceWatch:
    """Notices a file of a source that is written, replaced, added or removed while it is used.

    Args:
        sources: files or directories; None is no source. Those in a store of Nix do not change.
    """

    def __init__(self, *sources: Path | None) -> None:
        self._before = [
            (source, _record_states(source))
            for source in sources
            if source is not None and source.exists() and not is_in_store(source)
        ]

    @property
    def is_watching(self) -> bool:
        """Whether a source can change."""
        return bool(self._before)

    def require_unchanged(self) -> None:
        """Refuse what was made of the sources, if one changed.

        Raises:
            ManifestError: a file changed.
        """
        for source, states in self._before:
            if changed := sorted({path for path, _ in states.items() ^ _record_states(source).items()}):
                raise _explain_change(Path(changed[0]))


def _record_states(source: Path) -> dict[str, _FileState]:
    paths = [path for _, path in list_files(source, unfinished=False)] if source.is_dir() else [source]
    states = {}
    for path in paths:
        with suppress(OSError):
            if not is_in_store(path):
                states[str(path)] = _FileState.of(os.stat(path))
    return states


def find_digest_cache() -> Path | None:
    """Return the directory of cached digests; None without a home, as in a Nix build."""
    base, home = os.environ.get("XDG_CACHE_HOME", ""), os.environ.get("HOME", "")
    if base.startswith("/"):
        return Path(base) / "enginix" / "digests"
    if home.startswith("/") and os.path.isdir(home):
        return Path(home) / ".cache" / "enginix" / "digests"
    return None


def _open_cache(*, make: bool) -> Path | None:
    """Return the cache's directory, if no other user can write to it."""
    directory = find_digest_cache()
    if directory is None:
        return None
    with suppress(OSError):
        if make:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = os.lstat(directory)
        if (
            stat.S_ISDIR(status.st_mode)
            and status.st_uid == os.geteuid()
            and not stat.S_IMODE(status.st_mode) & 0o022
        ):
            return directory
    return None


def _cache_name(state: _FileState) -> str:
    return f"{state.device:x}-{state.inode:x}.json"


def _describe_state(state: _FileState, sha256: str) -> dict[str, Any]:
    return {
        "format": _CACHE_FORMAT,
        "size": state.size,
        "mtime": state.mtime,
        "ctime": state.ctime,
        "sha256": sha256,
    }


def _read_cached_digest(state: _FileState) -> str | None:
    if (directory := _open_cache(make=False)) is None:
        return None
    with suppress(OSError, ValueError, RecursionError):
        row = json.loads((directory / _cache_name(state)).read_text("ascii"))
        sha256 = row.get("sha256") if isinstance(row, dict) else None
        if isinstance(sha256, str) and _SHA256.fullmatch(sha256) and row == _describe_state(state, sha256):
            return sha256
    return None


def _keep_cached_digest(state: _FileState, sha256: str) -> None:
    """Keep a digest; a cache that cannot be written is no error."""
    from enginix.errors import MachineError
    from enginix.files import write_text

    if (directory := _open_cache(make=True)) is not None:
        with suppress(OSError, MachineError):
            write_text(directory / _cache_name(state), json.dumps(_describe_state(state, sha256)))
            _forget_oldest(directory)


def _forget_oldest(directory: Path) -> None:
    """Keep the newest digests: a file that is gone leaves its digest behind."""
    entries = [entry for entry in os.scandir(directory) if entry.name.endswith(".json")]
    if len(entries) > _MAX_CACHED:
        entries.sort(key=lambda entry: entry.stat(follow_symlinks=False).st_mtime_ns)
        for entry in entries[: len(entries) - _MAX_CACHED]:
            os.unlink(entry.path)
