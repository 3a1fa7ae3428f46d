"""A model to inspect: a directory, or the headers of a Hub repository laid out as one.

A repository's small files are fetched whole and each safetensors file's header by range request; the header
is put at the front of a sparse file as long as the real one. Everything that reads headers from a directory
then reads those of a repository, by the same rules, and a 60 GB model takes kilobytes of network and disk.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from enginix import manifest
from enginix.errors import HashMismatch, HubError, MachineError, ManifestError, ModelError, UsageError
from enginix.files import refuse_damage
from enginix.hub import api
from enginix.hub import lock as locks
from enginix.hub import paths as path_rules
from enginix.hub.hub_urls import choose_revision, parse_hub_source
from enginix.model.safetensors import INDEX, SINGLE

# The files that describe a model. Without tokenizer.json: it is megabytes, and its size and name suffice.
SMALL_FILES = (
    "config.json",
    "hf_quant_config.json",
    "generation_config.json",
    "tokenizer_config.json",
    INDEX,
)
FIRST_REQUEST = 64 << 10  # bytes of the first request of a header; holds that of most files
LONGEST_HEADER = 100_000_000  # the format's own limit
CONNECTIONS = 8


@dataclass(frozen=True)
class InspectedModel:
    """A model laid out for reading headers.

    Attributes:
        directory: where configuration and safetensors headers can be read; weights only of a local model.
        source: the argument of the caller, for messages.
        files: path → bytes, of every file of the model.
        license: from the lock, the Hub or the model's manifest.
        fetched: bytes that were downloaded.
    """

    directory: Path
    source: str
    files: Mapping[str, int]
    repo: str | None = None
    revision: str | None = None
    license: str | None = None
    gated: str | bool = False
    fetched: int = 0


@contextmanager
def open_model(source: str, revision: str | None = None) -> Iterator[InspectedModel]:
    """Open a model directory, a lock file, or ``owner/name`` (or its address) on the Hub.

    Args:
        revision: branch, tag or commit, for ``owner/name`` only.

    Raises:
        UsageError: ``source`` is not one of the three, or ``revision`` does not go with it.
        ModelError, LockError, HubError: it cannot be read.
    """
    path = Path(source)
    if revision is not None and path.exists():
        raise UsageError("--revision goes with owner/name only", where=source, fix="leave --revision out")
    if path.is_dir():
        yield _open_local(path)
    elif path.is_file():
        lock = locks.read_lock(path)
        files = {f.path: f.size for f in lock.files}
        expected = {f.path: f.sha256 for f in lock.files}
        with tempfile.TemporaryDirectory(prefix="enginix-") as scratch:
            origin = (lock.repo, lock.revision, lock.license, lock.gated)
            yield _lay_out_remote(InspectedModel(Path(scratch), source, files, *origin), expected)
    elif (name := (address := parse_hub_source(source)).name) and locks.REPO.fullmatch(name):
        if address.type != "model":
            raise UsageError("is a dataset", where=source, fix="pass a model")
        info = api.fetch_repo_info(name, choose_revision(address, revision) or "main")
        listed = {f.path: f for f in api.list_files(name, info.revision)}
        files = {path: f.size for path, f in listed.items()}
        _refuse_hostile(name, files)
        with tempfile.TemporaryDirectory(prefix="enginix-") as scratch:
            origin = (name, info.revision, info.license, info.gated)
            yield _lay_out_remote(InspectedModel(Path(scratch), name, files, *origin), listed)
    else:
        raise UsageError(
            "no such directory or lock file, and not owner/name", where=source, fix="check the spelling"
        )


def _refuse_hostile(repo: str, files: Mapping[str, int]) -> None:
    for path in files:
        if (why := path_rules.find_path_problem(path)) and why != path_rules.MANIFEST_NAME_PROBLEM:
            raise HubError(f"path {ascii(path)[:100]} {why}", where=repo, fix="do not use this repository")


def _open_local(directory: Path) -> InspectedModel:
    files = {}
    for folder, names, file_names in os.walk(directory):
        names[:] = sorted(n for n in names if n not in (".git", ".cache"))
        for name in sorted(file_names):
            path = Path(folder, name)
            fix = "repair a broken link, or fetch again"
            with refuse_damage(ModelError, path, fix, what="cannot be read"):
                files[path.relative_to(directory).as_posix()] = path.stat().st_size
    repo = revision = license_ = None
    if manifest.MANIFEST_FILE in files:
        try:
            manifest_inputs = manifest.read_manifest(directory).inputs
        except ManifestError:  # another program's file of that name is ignored
            manifest_inputs = {}
        repo, revision, license_ = (
            v if isinstance(v := manifest_inputs.get(k), str) else None
            for k in ("repo", "revision", "license")
        )
    return InspectedModel(
        directory, str(directory), files, repo, revision, license_ or _read_card_license(directory)
    )


def _read_card_license(directory: Path) -> str | None:
    """Read ``license`` from the model card's front matter; None without one."""
    card = directory / "README.md"
    if not card.is_file():
        return None
    try:
        lines = card.read_text("utf-8", errors="replace").splitlines()[:200]
    except OSError:
        return None
    if not lines or lines[0].strip() != "---":
        return None
    for line in lines[1:]:
        if line.strip() == "---":
            return None
        key, colon, value = line.partition(":")
        if key == "license" and colon:
            return value.strip().strip("\"'") or None
    return None


def _lay_out_remote(
    model: InspectedModel, expected: Mapping[str, str] | Mapping[str, api.RemoteFile]
) -> InspectedModel:
    """Fetch small files and headers into the model's directory; ``repo`` and ``revision`` are known."""
    scratch, files, repo, revision = model.directory, model.files, str(model.repo), str(model.revision)
    fetched = 0
    for name in SMALL_FILES:
        if name not in files:
            continue
        data = _fetch_small(repo, revision, name, files[name], expected[name])
        fetched += len(data)
        (scratch / name).write_bytes(data)
    shards = _select_shards(scratch, files)
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        sizes = list(pool.map(lambda name: _fetch_header(scratch, repo, revision, name, files[name]), shards))
    return replace(model, fetched=fetched + sum(sizes))


def _fetch_small(repo: str, revision: str, name: str, size: int, expected: str | api.RemoteFile) -> bytes:
    if isinstance(expected, api.RemoteFile):
        return api.read_small(repo, revision, expected)
    data = api.read_range(repo, revision, name, 0, size)
    if hashlib.sha256(data).hexdigest() != expected:
        raise HashMismatch(
            "the bytes differ from the lock's sha256",
            where=f"{repo}: {name}",
            fix="run again; check HF_ENDPOINT",
        )
    return data


def _select_shards(scratch: Path, files: Mapping[str, int]) -> list[str]:
    """Return the safetensors files of the model, as ``enginix.model`` chooses them."""
    if SINGLE in files:
        return [SINGLE]
    index = scratch / INDEX
    if not index.exists():
        return []
    from enginix.model.jsonfile import read_object

    weight_map = read_object(index).get("weight_map")
    names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    # A missing file, or one that is not a plain name, is refused when the index is read.
    return sorted(
        n
        for n in names
        if isinstance(n, str) and n in files and "/" not in n and not path_rules.find_path_problem(n)
    )


def _fetch_header(scratch: Path, repo: str, revision: str, name: str, size: int) -> int:
    """Write a sparse file with the real header; return the number of bytes fetched."""
    data = api.read_range(repo, revision, name, 0, min(FIRST_REQUEST, size))
    length = int.from_bytes(data[:8], "little") + 8 if len(data) >= 8 else len(data)
    if len(data) < length <= min(size, LONGEST_HEADER):
        data += api.read_range(repo, revision, name, len(data), length)
        if len(data) != length:
            raise HubError(
                f"{len(data)} of {length} bytes of the header arrived",
                where=f"{repo}: {name}",
                fix="run again",
            )
    what = f"cannot hold a sparse file of {size} bytes"
    with refuse_damage(MachineError, scratch, "set TMPDIR", what=what), (scratch / name).open("wb") as f:
        f.write(data)
        f.truncate(size)
    return len(data)
