"""Write a lock: pin the current files of a repository without downloading its large files.

A large file's sha256 is in the listing (it is its LFS oid). Small files have only git's SHA-1 there, so they
are fetched, checked against it and hashed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from enginix.console import format_bytes
from enginix.errors import HubError, LockError, ModelError
from enginix.hub import api, model_metadata, paths, repository_layout
from enginix.hub.lock import Lock, LockedFile, RepoType, Selection, check_files, check_names, format_address
from enginix.hub.selection import choose_files
from enginix.model.config_rules import explain_contradictions
from enginix.model.jsonfile import parse_object

JOBS = 8
# Bound on the files that are fetched and hashed, because the listing has no sha256 of them.
MOST_SMALL_BYTES = 256 << 20


@dataclass(frozen=True)
class NewLock:
    """A lock, and notes about it for the user."""

    lock: Lock
    notes: tuple[str, ...]


def make_lock(name: str, select: Selection, type_: RepoType = "model") -> NewLock:
    """Pin the model or dataset ``name``.

    Raises:
        LockError: a path or format that a lock may not hold; no weights, or no text in a dataset.
        HubError: the hub does not deliver.
    """
    if type_ == "dataset" and "/" not in name:
        raise LockError("a dataset is named with its owner", where=name, fix="pass owner/name")
    repo = format_address(name, type_)
    info = api.fetch_repo_info(repo, select.revision)
    listing = api.list_files(repo, info.revision)
    # Before files are selected: a listing with one hostile path is not trusted at all.
    for f in listing:
        if (why := paths.find_path_problem(f.path)) and why != paths.MANIFEST_NAME_PROBLEM:
            raise _make_refusal(repo)(f"path {ascii(f.path)[:100]} {why}", "do not use this repository")
    is_whole_model = type_ == "model" and not select.include
    if is_whole_model:
        adapter = [f for f in listing if f.path == repository_layout.ADAPTER]
        content = {f.path: api.read_small(repo, info.revision, f) for f in adapter}
        repository_layout.require_model_layout(listing, content, repo)
    chosen = choose_files(listing, select, repo, type_)
    check_names([f.path for f in chosen.files], _make_refusal(repo))
    wanted = (*model_metadata.FILES, *repository_layout.READ_FILES)
    small = [f for f in chosen.files if f.sha256 is None or f.path in wanted]
    total = sum(f.size for f in small)
    if total > MOST_SMALL_BYTES:
        raise HubError(
            f"{format_bytes(total)} in files that are not large ones",
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
    unread, model = dict[str, str](), dict[str, Any]()
    metadata_files = {p: content[p] for p in model_metadata.FILES if p in content}
    try:
        if is_whole_model:
            names = [f.path for f in chosen.files]
            unread = repository_layout.find_unread_weights(listing, names, content, repo)
        if type_ == "model":
            model = model_metadata.extract_model_metadata(metadata_files, repo)
    except ModelError as e:
        # These bytes are the Hub's: fetching them again changes nothing.
        raise ModelError(
            e.what,
            where=e.where,
            fix="the repository itself has it so: lock another revision (--revision), or report it to the "
            "model's author",
        ) from e
    taken = [f for f in chosen.files if f.path not in unread]
    files = tuple(
        LockedFile(f.path, f.size, f.sha256 or hashlib.sha256(content[f.path]).hexdigest()) for f in taken
    )
    check_files(files, _make_refusal(repo))
    notes = [*chosen.notes, *(f"{path} left out: {why}" for path, why in unread.items())]
    if info.current_name != name:
        notes.append(f"the hub names it {info.current_name} now; {name} works as long as it redirects")
    if is_whole_model:
        notes += repository_layout.list_layout_notes(taken)
    if contradiction := model_metadata.find_quantization_contradiction(metadata_files, repo):
        notes.append(contradiction)
    if type_ == "model" and model_metadata.CONFIG in metadata_files:
        config = parse_object(metadata_files[model_metadata.CONFIG], repo)
        contradictions = explain_contradictions(config, [f.path for f in taken])
        notes += [f"{what}; {fix}" for what, fix in contradictions]
    if model.pop("remoteCode", False) and not select.remote_code:
        notes.append("config.json names code of the repository, which is not pinned; see --remote-code")
    notes += [
        f"{f.path} left out: the name of the manifest that fetching adds"
        for f in listing
        if paths.is_reserved(f.path)
    ]
    new_lock = Lock(name, info.revision, info.license, info.gated, model, files, select, type_)
    api.refuse_echo(new_lock.dump(), "the lock to be written", repo)
    return NewLock(new_lock, tuple(notes))


def list_lock_differences(old: Lock, new: Lock) -> list[str]:
    """Return the differences between two locks, one line each."""
    lines = []
    if old.revision != new.revision:
        lines.append(f"revision: {old.revision} → {new.revision}")
    for name in ("license", "gated"):
        if getattr(old, name) != getattr(new, name):
            lines.append(f"{name}: {_format_value(getattr(old, name))} → {_format_value(getattr(new, name))}")
    for key in sorted({*old.model, *new.model} - model_metadata.OBSOLETE_KEYS):
        if key not in old.model and old.revision == new.revision:
            continue  # an older enginix did not write it
        if old.model.get(key) != new.model.get(key):
            lines.append(
                f"model.{key}: {_format_value(old.model.get(key))} → {_format_value(new.model.get(key))}"
            )
    return lines + list(_iterate_file_differences(old, new))


def _iterate_file_differences(old: Lock, new: Lock) -> Iterator[str]:
    before, after = ({f.path: f for f in lock.files} for lock in (old, new))
    for path in sorted({*before, *after}):
        a, b = before.get(path), after.get(path)
        if a is None and b is not None:
            yield f"+ {path}  {format_bytes(b.size)}  sha256 {b.sha256[:12]}…"
        elif b is None and a is not None:
            yield f"- {path}  {format_bytes(a.size)}"
        elif a is not None and b is not None and a != b:
            sizes = "" if a.size == b.size else f"  {format_bytes(a.size)} → {format_bytes(b.size)}"
            yield f"~ {path}{sizes}  sha256 {a.sha256[:12]}… → {b.sha256[:12]}…"


def count_new_bytes(old: Lock, new: Lock) -> int:
    """Return the number of bytes that ``new`` needs and ``old`` does not have under any name."""
    old_digests = {f.sha256 for f in old.files}
    return sum({f.sha256: f.size for f in new.files if f.sha256 not in old_digests}.values())


def _format_value(value: Any) -> str:
    return "none" if value is None else str(value)


def _make_refusal(repo: str) -> Any:
    return lambda what, fix="report it to the repository's owner": LockError(what, where=repo, fix=fix)
