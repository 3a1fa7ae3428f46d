"""A directory as a Hub repository: real git objects, LFS pointers for large files, a commit made of content.

Formats: git's blob, tree and commit objects (git-scm.com/book/en/v2/Git-Internals-Git-Objects), the LFS
pointer (github.com/git-lfs/git-lfs/blob/main/docs/spec.md).
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path

# What the Hub's own .gitattributes of a new model repository names.
LFS_SUFFIXES = """
    7z arrow bin bz2 ckpt ftz gz h5 joblib mlmodel model msgpack npy npz onnx ot parquet pb pickle pkl
    pt pth rar safetensors tar tgz tflite wasm xz zip zst
""".split()  # noqa: SIM905
# The Hub stores every file above this as LFS, whatever its name (huggingface.co/docs/hub/storage-limits).
LFS_FROM = 10 * 1024 * 1024
SKIPPED = {".git", ".cache"}


def git_object(kind: str, body: bytes) -> tuple[str, bytes]:
    """Name and content (header included) of a git object."""
    raw = b"%s %d\0" % (kind.encode(), len(body)) + body
    return hashlib.sha1(raw, usedforsecurity=False).hexdigest(), raw


def typed(repo: str) -> str:
    """A repository's name behind its type, which the API has and addresses of models have not."""
    return repo if repo.startswith("datasets/") else f"models/{repo}"


def pointer(sha256: str, size: int) -> bytes:
    """What git stores in place of a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


@dataclass(frozen=True)
class Entry:
    """One file of a commit; ``sha256`` is set for LFS files, ``source`` is a path or the bytes themselves."""

    path: str
    size: int
    oid: str
    sha256: str | None
    source: Path | bytes

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid


@dataclass(frozen=True)
class Commit:
    sha: str
    entries: dict[str, Entry]
    trees: dict[str, str]
    objects: dict[str, bytes] = field(repr=False)
    directory: Path = Path()


# Path, size, time of change and inode of a file → its SHA-256, and its object's name in Git.
_HASHES: dict[tuple[str, int, int, int], tuple[str, str]] = {}


class Repository:
    """The directories that one repository name stands for, one a branch.

    Args:
        branches: branch name → directory. Files are read when they are asked for; a directory that changed is
            a new commit of its branch, and older commits stay known for as long as the server runs.
        gated: ``"auto"`` or ``"manual"``: files need a token.
        private: everything needs a token.
    """

    def __init__(
        self, branches: dict[str, str | Path], *, gated: str | bool = False, private: bool = False
    ) -> None:
        self.branches = {name: Path(directory).resolve() for name, directory in branches.items()}
        self.gated = gated
        self.private = private
        self._commits: dict[str, Commit] = {}
        self._heads: dict[str, tuple[object, Commit]] = {}
        self._lock = threading.Lock()

    def head(self, branch: str) -> Commit | None:
        """The newest commit of a branch."""
        directory = self.branches.get(branch.removeprefix("refs/heads/"))
        if directory is None:
            return None
        with self._lock:
            files = _walk(directory)
            state = tuple((path, s.st_size, s.st_mtime_ns, s.st_ino) for path, _, s in files)
            known = self._heads.get(branch)
            if known is None or known[0] != state:
                known = (state, self._commit(directory, files))
                self._heads[branch] = known
                self._commits[known[1].sha] = known[1]
            return known[1]

    def commit(self, revision: str) -> Commit | None:
        """A commit by its sha, or the head of a branch."""
        if revision in self._commits:
            return self._commits[revision]
        if found := self.head(revision):
            return found
        for branch in self.branches:
            self.head(branch)
        return self._commits.get(revision)

    def object(self, sha: str) -> tuple[bytes, Path | bytes] | None:
        """A git object by name: its header, and its body as bytes or as a file."""
        for branch in self.branches:
            self.head(branch)
        for commit in self._commits.values():
            if sha in commit.objects:
                return b"", commit.objects[sha]
            for entry in commit.entries.values():
                if entry.oid == sha and entry.sha256 is None:
                    return b"blob %d\0" % entry.size, entry.source
        return None

    def blob(self, sha256: str) -> Entry | None:
        """A large file by its content."""
        for commit in list(self._commits.values()):
            for entry in commit.entries.values():
                if entry.sha256 == sha256:
                    return entry
        return None

    def _digest(self, path: Path, s: os.stat_result) -> tuple[str, str]:
        key = (str(path), s.st_size, s.st_mtime_ns, s.st_ino)
        if key not in _HASHES:
            large = hashlib.sha256()
            small = hashlib.sha1(b"blob %d\0" % s.st_size, usedforsecurity=False)
            with path.open("rb") as f:
                while block := f.read(1 << 20):
                    large.update(block)
                    if s.st_size < LFS_FROM:
                        small.update(block)
            _HASHES[key] = (large.hexdigest(), small.hexdigest())
        return _HASHES[key]

    def _commit(self, directory: Path, files: list[tuple[str, Path, os.stat_result]]) -> Commit:
        attributes = directory / ".gitattributes"
        text = attributes.read_text() if attributes.exists() else _attributes(files)
        patterns = [line.split()[0] for line in text.splitlines() if "filter=lfs" in line]
        entries: dict[str, Entry] = {}
        objects: dict[str, bytes] = {}
        if not attributes.exists():
            oid, _ = git_object("blob", text.encode())
            entries[".gitattributes"] = Entry(".gitattributes", len(text.encode()), oid, None, text.encode())
        for path, source, s in files:
            sha256, oid = self._digest(source, s)
            if s.st_size and any(_matches(path, p) for p in patterns):
                oid, raw = git_object("blob", pointer(sha256, s.st_size))
                objects[oid] = raw
                entries[path] = Entry(path, s.st_size, oid, sha256, source)
            else:
                entries[path] = Entry(path, s.st_size, oid, None, source)
        trees: dict[str, str] = {}
        root = _tree("", entries, trees, objects)
        who = "hub <hub@localhost> 1700000000 +0000"
        sha, raw = git_object(
            "commit", f"tree {root}\nauthor {who}\ncommitter {who}\n\nContent of the directory\n".encode()
        )
        objects[sha] = raw
        return Commit(sha, dict(sorted(entries.items())), trees, objects, directory)


def _walk(directory: Path) -> list[tuple[str, Path, os.stat_result]]:
    found = []
    for folder, names, files in os.walk(directory, followlinks=True):
        names[:] = sorted(n for n in names if n not in SKIPPED)
        for name in files:
            source = Path(folder, name)
            found.append((source.relative_to(directory).as_posix(), source, source.stat()))
    return sorted(found)


def _attributes(files: list[tuple[str, Path, os.stat_result]]) -> str:
    """The ``.gitattributes`` that the Hub gives a new repository, and a line for each other large file."""
    patterns = [f"*.{suffix}" for suffix in LFS_SUFFIXES]
    extra = [p for p, _, s in files if s.st_size >= LFS_FROM and not any(_matches(p, x) for x in patterns)]
    return "".join(f"{p} filter=lfs diff=lfs merge=lfs -text\n" for p in [*patterns, *extra])


def _matches(path: str, pattern: str) -> bool:
    name = path if "/" in pattern else path.rsplit("/", 1)[-1]
    return fnmatch.fnmatchcase(name, pattern.lstrip("/"))


def _tree(prefix: str, entries: dict[str, Entry], trees: dict[str, str], objects: dict[str, bytes]) -> str:
    """Adds the tree object of the folder ``prefix`` and those below; its name."""
    rows: list[tuple[bytes, bytes]] = []
    folders = set()
    for path, entry in entries.items():
        if path.startswith(prefix):
            head, _, rest = path[len(prefix) :].partition("/")
            if rest:
                folders.add(head)
            else:
                rows.append((head.encode(), b"100644 " + head.encode() + b"\0" + bytes.fromhex(entry.oid)))
    for name in folders:
        below = {p: e for p, e in entries.items() if p.startswith(f"{prefix}{name}/")}
        sha = _tree(f"{prefix}{name}/", below, trees, objects)
        trees[f"{prefix}{name}"] = sha
        # git sorts a folder as if its name ended in a slash
        rows.append((name.encode() + b"/", b"40000 " + name.encode() + b"\0" + bytes.fromhex(sha)))
    sha, raw = git_object("tree", b"".join(row for _, row in sorted(rows)))
    objects[sha] = raw
    return sha
