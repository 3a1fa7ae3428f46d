"""The lock of a model or dataset: a Hub repository's commit, and each used file's path, size and sha256.

A lock is JSON with one file a line, so that a change of a model is a readable diff. The parser trusts no
value: a lock comes from a pull request as often as from ``enginix lock``.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from enginix.errors import LockError, ModelError
from enginix.files import refuse_damage
from enginix.hub import paths
from enginix.letter_case import camel_case_keys
from enginix.model.jsonfile import parse_object
from enginix.tables import load_table

LOCK_VERSION = 1
LONGEST_LOCK = 32 << 20  # bytes; about 200,000 files
LARGEST_FILE = 1 << 50
DEEPEST_FACT = 4
EMPTY_SHA256 = hashlib.sha256().hexdigest()

COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
# As huggingface_hub's validate_repo_id, and never a path: no ``..`` in it.
REPO = re.compile(r"(?=.{1,193}$)(?!.*(\.\.|--))(\w[\w.-]{0,95}/)?\w[\w.-]{0,95}(?<![.-])", re.ASCII)

# The Hub's prefix of datasets: in addresses it stands before the repository's name.
DATASETS = "datasets/"
_REWRITE_FIX = "write the lock again with `enginix lock`"
_KEYS, _FILE_KEYS = frozenset(load_table("lock")["keys"]), frozenset(load_table("lock")["fileKeys"])


RepoType = Literal["model", "dataset"]


def format_address(repo: str, type_: RepoType) -> str:
    """Return a repository's address; see ``Lock.address``."""
    return DATASETS + repo if type_ == "dataset" else repo


def split_address(address: str) -> tuple[str, RepoType] | None:
    """Return the name and type of the repository at an address; None if it is not an address.

    ``datasets/name`` is a model of the owner ``datasets``: a dataset's address always has its owner.
    """
    name = address.removeprefix(DATASETS)
    if name != address and "/" in name:
        return (name, "dataset") if REPO.fullmatch(name) else None
    return (address, "model") if REPO.fullmatch(address) else None


@dataclass(frozen=True)
class LockedFile:
    """One pinned file.

    Attributes:
        path: relative to the repository, ``/`` between segments.
        size: bytes.
        sha256: 64 lower-case hex digits of the content.
    """

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Selection:
    """The request that a lock was written for; checking and updating repeat it.

    Attributes:
        revision: branch, tag or commit that is followed.
        include, exclude: patterns as huggingface_hub's; empty include means enginix's default.
        remote_code: Python files of the repository are pinned too.
    """

    revision: str = "main"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    remote_code: bool = False


@dataclass(frozen=True)
class Lock:
    """A pinned model or dataset.

    Attributes:
        repo: ``owner/name``.
        revision: commit, 40 hex digits.
        license: the licence on the model card, or None.
        gated: whether the Hub asks for a token and an accepted licence.
        model: metadata that evaluation checks a build with: architecture, layers, heads, …; {} for datasets.
        files: sorted by path.
        type: ``dataset`` stands in the file; a model's lock does not name its type, as it never did.
    """

    repo: str
    revision: str
    license: str | None
    gated: Literal[False, "auto", "manual"]
    model: dict[str, Any]
    files: tuple[LockedFile, ...]
    select: Selection = field(default_factory=Selection)
    type: RepoType = "model"

    @property
    def address(self) -> str:
        """The repository's address on the Hub: ``owner/name`` or ``datasets/owner/name``."""
        return format_address(self.repo, self.type)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(f.size for f in self.files)

    def dump(self) -> str:
        """Return the lock's text: one file a line, the same bytes for the same content."""

        def line(value: Any) -> str:
            return json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True)

        def block(pairs: list[tuple[str, Any]]) -> str:
            if not pairs:
                return "{}"
            return "{\n" + ",\n".join(f"    {line(k)}: {line(v)}" for k, v in pairs) + "\n  }"

        head: list[tuple[str, str]] = [
            ("version", line(LOCK_VERSION)),
            *([("type", line(self.type))] if self.type != "model" else []),
            ("repo", line(self.repo)),
            ("revision", line(self.revision)),
            ("license", line(self.license)),
            ("gated", line(self.gated)),
        ]
        if self.select != Selection():
            head.append(("select", line(camel_case_keys(asdict(self.select)))))
        files = sorted(self.files, key=lambda f: f.path)
        if self.type == "model":
            head.append(("model", block(sorted(self.model.items()))))
        head.append(("files", block([(f.path, {"sha256": f.sha256, "size": f.size}) for f in files])))
        return "{\n" + ",\n".join(f'  "{key}": {value}' for key, value in head) + "\n}\n"


def read_lock(path: Path) -> Lock:
    """Read a lock file.

    Raises:
        LockError: unreadable, or not a lock.
    """
    with refuse_damage(LockError, path, "pass a lock file", what="cannot be read"), path.open("rb") as f:
        data = f.read(LONGEST_LOCK + 1)
    return parse_lock(data, str(path))


def parse_lock(text: str | bytes, where: str) -> Lock:
    """Parse a lock; errors name ``where``.

    Raises:
        LockError: the text is not a valid lock.
    """

    def refuse(what: str, fix: str = _REWRITE_FIX) -> LockError:
        return LockError(what, where=where, fix=fix)

    try:
        data = text.encode() if isinstance(text, str) else text
    except UnicodeEncodeError as e:
        raise refuse("not UTF-8") from e
    if len(data) > LONGEST_LOCK:
        raise refuse(f"longer than {LONGEST_LOCK} bytes")
    try:
        raw = parse_object(data, where, strict=True)
    except ModelError as e:
        raise refuse(e.what) from e
    if raw and not {"repo", "revision", "files"} & set(raw):
        raise refuse("not a lock", "pass a lock that `enginix lock` wrote, or a model's directory")
    if type(raw.get("version")) is not int or raw["version"] != LOCK_VERSION:
        raise refuse(
            f"lock version {_show_value(raw.get('version'))}, and this enginix reads {LOCK_VERSION}",
            f"use the enginix that wrote it, or {_REWRITE_FIX}",
        )
    if unknown := sorted(set(raw) - _KEYS):
        raise refuse(f"unknown key {_show_value(unknown[0])}")
    repo, revision, type_ = raw.get("repo"), raw.get("revision"), raw.get("type", "model")
    if type_ not in ("model", "dataset"):
        raise refuse(f'type {_show_value(type_)} is neither "model" nor "dataset"')
    if not isinstance(repo, str) or not REPO.fullmatch(repo):
        raise refuse(f"repo {_show_value(repo)} is not owner/name")
    if type_ == "dataset" and "/" not in repo:
        raise refuse(f"dataset {_show_value(repo)} has no owner")
    if not isinstance(revision, str) or not COMMIT.fullmatch(revision):
        raise refuse(
            f"revision {_show_value(revision)} is not a commit of 40 hex digits; a branch or tag can move"
        )
    license_, gated, model = raw.get("license"), raw.get("gated", False), raw.get("model", {})
    if license_ is not None and not (
        isinstance(license_, str) and license_.isprintable() and len(license_) <= 200
    ):
        raise refuse(f"license {_show_value(license_)} is not a short text or null")
    if gated is not False and gated not in ("auto", "manual"):
        raise refuse(f'gated {_show_value(gated)} is not false, "auto" or "manual"')
    if not isinstance(model, dict) or not _is_plain(model, DEEPEST_FACT):
        raise refuse("model is not an object of plain facts")
    if type_ == "dataset" and model:
        raise refuse("a dataset has no facts of a model")
    return Lock(
        repo=repo,
        revision=revision,
        license=license_,
        gated=gated,
        model=model,
        files=_parse_files(raw.get("files"), refuse),
        select=_parse_selection(raw.get("select"), refuse),
        type=type_,
    )


def check_files(files: tuple[LockedFile, ...], refuse: Any) -> None:
    """Check the rules for lists of files, whether they are read, written or fetched.

    Args:
        refuse: makes the error from its first line and the fix.

    Raises:
        LockError: a path or format that is refused, or two paths that cannot both exist.
    """
    for f in files:
        if why := paths.find_path_problem(f.path):
            raise refuse(
                f"path {_show_value(f.path)} {why}", "do not use this repository, or exclude the file"
            )
        if paths.is_pickle(f.path):
            raise refuse(
                f"{f.path} is in a pickle format, which can run code when it is read",
                "lock a repository with safetensors, or exclude the file",
            )
        if (f.size == 0) != (f.sha256 == EMPTY_SHA256):
            raise refuse(f"{f.path}: size {f.size} and sha256 contradict each other")
    check_names([f.path for f in files], refuse)


def check_names(names: list[str], refuse: Any) -> None:
    """Refuse two paths that cannot both exist; see ``check_files``."""
    if both := paths.find_path_clash(names):
        raise refuse(
            f"{_show_value(both[0])} and {_show_value(both[1])} cannot both exist where case does not count",
            "exclude one of them",
        )


def _parse_files(raw: Any, refuse: Any) -> tuple[LockedFile, ...]:
    if not isinstance(raw, dict) or not raw:
        raise refuse("the lock lists no files")
    locked_files = []
    for path, entry in raw.items():
        if not isinstance(entry, dict) or set(entry) != _FILE_KEYS:
            raise refuse(f"{_show_value(path)} does not have exactly sha256 and size")
        sha256, size = entry["sha256"], entry["size"]
        if not isinstance(sha256, str) or not SHA256.fullmatch(sha256):
            raise refuse(f"{_show_value(path)}: sha256 {_show_value(sha256)} is not 64 lower-case hex digits")
        if type(size) is not int or not 0 <= size <= LARGEST_FILE:
            raise refuse(f"{_show_value(path)}: size {_show_value(size)} is not a number of bytes")
        locked_files.append(LockedFile(path, size, sha256))
    files = tuple(sorted(locked_files, key=lambda f: f.path))
    check_files(files, refuse)
    return files


def _parse_selection(raw: Any, refuse: Any) -> Selection:
    if raw is None:
        return Selection()
    shape = {"revision": str, "include": list, "exclude": list, "remoteCode": bool}
    if (
        not isinstance(raw, dict)
        or set(raw) - set(shape)
        or any(not isinstance(v, shape[k]) for k, v in raw.items())
    ):
        raise refuse("select is not {revision, include, exclude, remoteCode}")
    words = [raw.get("revision", "main"), *raw.get("include", ()), *raw.get("exclude", ())]
    if not all(isinstance(w, str) and w and w.isprintable() and len(w) <= paths.LONGEST_PATH for w in words):
        raise refuse("select holds something that is not a pattern")
    return Selection(
        raw.get("revision", "main"),
        tuple(raw.get("include", ())),
        tuple(raw.get("exclude", ())),
        raw.get("remoteCode", False),
    )


def _is_plain(value: Any, depth: int) -> bool:
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, int):
        return -(1 << 63) <= value < 1 << 63  # Nix has no larger integers
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return value.isprintable() and len(value) <= 1000
    if depth == 0:
        return False
    if isinstance(value, dict):
        return all(_is_plain(k, 0) and _is_plain(v, depth - 1) for k, v in value.items())
    return isinstance(value, list) and all(_is_plain(v, depth - 1) for v in value)


def _show_value(value: Any) -> str:
    """Return an untrusted value as a short printable text."""
    text = ascii(value)
    return text if len(text) <= 100 else f"{text[:97]}…"
