"""Writing a lock: what a repository holds now, pinned, without a byte of its large files.

A large file's sha256 is in the listing (it is its LFS oid). Small files have only git's SHA-1 there, so they
are fetched, checked against it and hashed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from enginix.console import human_bytes
from enginix.errors import HubError, LockError
from enginix.hub import api, facts, paths
from enginix.hub.lock import Lock, LockedFile, RepoType, Selection, address, check_files, check_names
from enginix.hub.selection import choose

JOBS = 8
# What is hashed here rather than taken from the listing stays small, whatever a repository holds.
MOST_SMALL_BYTES = 256 << 20


@dataclass(frozen=True)
class Made:
    """A lock, and what is to be said about it."""

    lock: Lock
    notes: tuple[str, ...]


def make(name: str, select: Selection, type_: RepoType = "model") -> Made:
    """Pins the model or dataset ``name``.

    Raises:
        LockError: a path or format that no lock may hold; no weights, or no text in a dataset.
        HubError: the hub does not deliver.
    """
    if type_ == "dataset" and "/" not in name:
        raise LockError("a dataset is named with its owner", where=name, fix="pass owner/name")
    repo = address(name, type_)
    info = api.repo_info(repo, select.revision)
    listing = api.list_files(repo, info.revision)
    # Before the choice: a listing with one hostile path is not to be trusted with the others.
    for f in listing:
        if (why := paths.problem(f.path)) and why != paths.MANIFESTS:
            raise _refuse(repo)(f"path {ascii(f.path)[:100]} {why}", "do not use this repository")
    chosen = choose(listing, select, repo, type_)
    check_names([f.path for f in chosen.files], _refuse(repo))
    small = [f for f in chosen.files if f.sha256 is None or f.path in facts.FILES]
    total = sum(f.size for f in small)
    if total > MOST_SMALL_BYTES:
        raise HubError(
            f"{human_bytes(total)} in files that are not large ones",
            where=repo,
            fix="narrow it with --include",
        )
    with ThreadPoolExecutor(JOBS) as pool:
        content = dict(
            zip(
                (f.path for f in small),
                pool.map(lambda f: api.read_small(repo, info.revision, f), small),
                strict=True,
            )
        )
    files = tuple(
        LockedFile(f.path, f.size, f.sha256 or hashlib.sha256(content[f.path]).hexdigest())
        for f in chosen.files
    )
    check_files(files, _refuse(repo))
    model = (
        {}
        if type_ == "dataset"
        else facts.model_facts({p: content[p] for p in facts.FILES if p in content}, repo)
    )
    notes = list(chosen.notes)
    if model.pop("remoteCode", False) and not select.remote_code:
        notes.append("config.json names code of the repository, which is not pinned; see --remote-code")
    notes += [
        f"{f.path} left out: the name of the manifest that fetching adds"
        for f in listing
        if paths.is_reserved(f.path)
    ]
    made = Lock(name, info.revision, info.license, info.gated, model, files, select, type_)
    api.refuse_echo(made.dump(), "what would be in the lock", repo)
    return Made(made, tuple(notes))


def differences(old: Lock, new: Lock) -> list[str]:
    """What moved from one lock to another, a line each; empty when nothing did."""
    lines = []
    if old.revision != new.revision:
        lines.append(f"revision: {old.revision} → {new.revision}")
    for name in ("license", "gated"):
        if getattr(old, name) != getattr(new, name):
            lines.append(f"{name}: {_word(getattr(old, name))} → {_word(getattr(new, name))}")
    for key in sorted({*old.model, *new.model} - facts.FORMER):
        if old.model.get(key) != new.model.get(key):
            lines.append(f"model.{key}: {_word(old.model.get(key))} → {_word(new.model.get(key))}")
    return lines + list(_file_differences(old, new))


def _file_differences(old: Lock, new: Lock) -> Iterator[str]:
    before, after = ({f.path: f for f in lock.files} for lock in (old, new))
    for path in sorted({*before, *after}):
        a, b = before.get(path), after.get(path)
        if a is None and b is not None:
            yield f"+ {path}  {human_bytes(b.size)}  sha256 {b.sha256[:12]}…"
        elif b is None and a is not None:
            yield f"- {path}  {human_bytes(a.size)}"
        elif a is not None and b is not None and a != b:
            sizes = "" if a.size == b.size else f"  {human_bytes(a.size)} → {human_bytes(b.size)}"
            yield f"~ {path}{sizes}  sha256 {a.sha256[:12]}… → {b.sha256[:12]}…"


def to_move(old: Lock, new: Lock) -> int:
    """Bytes that ``new`` needs and ``old`` does not have, whatever their names."""
    have = {f.sha256 for f in old.files}
    return sum({f.sha256: f.size for f in new.files if f.sha256 not in have}.values())


def _word(value: Any) -> str:
    return "none" if value is None else str(value)


def _refuse(repo: str) -> Any:
    return lambda what, fix="report it to the repository's owner": LockError(what, where=repo, fix=fix)
