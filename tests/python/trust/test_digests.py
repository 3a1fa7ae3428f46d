"""Digests of files: computed once, and never believed of a file that changed."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginix import digests
from enginix.digests import ContentDigest, SourceWatch, digest_directory, digest_file, parse_digests
from enginix.errors import ManifestError


def settle(path: Path) -> None:
    """Make a file old enough to be cached; ctime cannot be set, so the test waits."""
    os.utime(path, (1, 1))
    time.sleep(0.01)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_SETTLED_SECONDS", 0.005)


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    reads: list[int] = []
    hash_descriptor = digests._hash_descriptor
    monkeypatch.setattr(digests, "_hash_descriptor", lambda fd: reads.append(fd) or hash_descriptor(fd))
    return reads


def test_weights_are_read_once_and_small_files_always(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    weights, small = tmp_path / "rank0.safetensors", tmp_path / "tokenizer.json"
    for path in (weights, small):
        path.write_bytes(b"content")
        settle(path)
    reads = count_reads(monkeypatch)
    expected = ContentDigest(hashlib.sha256(b"content").hexdigest(), 7)
    assert [digest_file(weights) for _ in range(3)] == [expected] * 3 and len(reads) == 1
    assert [digest_file(small) for _ in range(3)] == [expected] * 3 and len(reads) == 4
    assert digest_file(weights, full=True) == expected and len(reads) == 5
    (entry,) = cache.iterdir()
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700 and json.loads(entry.read_text())["size"] == 7


@pytest.mark.parametrize("change", ["in place", "in place, mtime restored", "replaced", "grown"])
def test_changed_weights_are_read_again(tmp_path: Path, change: str) -> None:
    path = tmp_path / "rank0.safetensors"
    path.write_bytes(b"content")
    settle(path)
    before, status = digest_file(path), path.stat()
    if change == "replaced":
        (tmp_path / "new").write_bytes(b"CONTENT")
        os.utime(tmp_path / "new", ns=(status.st_atime_ns, status.st_mtime_ns))
        (tmp_path / "new").replace(path)
    else:
        with path.open("r+b") as f:
            f.write(b"content, longer" if change == "grown" else b"CONTENT")
    if "restored" in change:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert digest_file(path) != before
    assert digest_file(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_cache_keeps_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(digests, "_MAX_CACHED", 2)
    for size in (1, 2, 3):
        path = tmp_path / f"{size}.safetensors"
        path.write_bytes(b"x" * size)
        settle(path)
        digest_file(path)
    assert sorted(json.loads(entry.read_text())["size"] for entry in cache.iterdir()) == [2, 3]


def test_a_file_that_changed_just_now_is_not_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    """Two writes within a tick of the kernel's clock leave one time."""
    monkeypatch.setattr(digests, "_SETTLED_SECONDS", 60)
    path = tmp_path / "rank0.safetensors"
    path.write_bytes(b"content")
    digest_file(path)
    assert not cache.exists()


@pytest.mark.parametrize("strange", ["others may write", "a link", "damaged", "another file's", "a number"])
def test_a_cache_that_is_not_ours_is_not_believed(tmp_path: Path, cache: Path, strange: str) -> None:
    path = tmp_path / "rank0.safetensors"
    path.write_bytes(b"content")
    settle(path)
    expected = digest_file(path)
    (entry,) = cache.iterdir()
    row = json.loads(entry.read_text())
    row["sha256"] = "0" * 64
    if strange == "another file's":
        row["size"] = 8
    entry.write_text("{" if strange == "damaged" else "7" if strange == "a number" else json.dumps(row))
    if strange == "others may write":
        cache.chmod(0o777)
    elif strange == "a link":
        cache.rename(tmp_path / "elsewhere")
        cache.symlink_to(tmp_path / "elsewhere")
    assert digest_file(path) == expected


def test_without_a_home_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a Nix build, whose home must not come into being."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "homeless-shelter"))
    path = tmp_path / "rank0.safetensors"
    path.write_bytes(b"content")
    settle(path)
    digest_file(path)
    assert not (tmp_path / "homeless-shelter").exists()


def test_a_file_that_is_written_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rank0.safetensors"
    path.write_bytes(b"content")
    hash_descriptor = digests._hash_descriptor

    def write_meanwhile(descriptor: int) -> str:
        with path.open("r+b") as f:
            f.write(b"CON")
        return hash_descriptor(descriptor)

    monkeypatch.setattr(digests, "_hash_descriptor", write_meanwhile)
    with pytest.raises(ManifestError, match="changed while it was read"):
        digest_file(path)


def test_directories_are_walked_through_links(tmp_path: Path) -> None:
    real, directory = tmp_path / "real", tmp_path / "artefact"
    real.mkdir()
    directory.mkdir()
    (real / "a.json").write_text("a")
    (directory / "checkpoint").symlink_to(real)
    (directory / "model.py").symlink_to("/nowhere/model.py")
    found = digest_directory(directory)
    assert set(found) == {"checkpoint/a.json", "model.py"}
    assert found["model.py"] == ContentDigest("", 0, "/nowhere/model.py")
    assert parse_digests({name: d.as_json() for name, d in found.items()}) == found
    (real / "again").symlink_to(directory)
    with pytest.raises(ManifestError, match="circle"):
        digest_directory(directory)


@pytest.mark.parametrize("kind", ["a pipe", "unreadable"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    if kind == "a pipe":
        os.mkfifo(tmp_path / "x.json")
    elif os.geteuid() == 0:
        pytest.skip("root reads everything")
    else:
        (tmp_path / "x.json").touch(0)
    with pytest.raises(ManifestError):
        digest_directory(tmp_path)


@pytest.mark.parametrize("change", ["written", "replaced", "added", "removed", "none", "of another run"])
def test_a_source_that_changes_is_noticed(tmp_path: Path, change: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    path = source / "model.safetensors"
    path.write_bytes(b"content")
    watch = SourceWatch(source, None, tmp_path / "missing")
    if change == "written":
        path.write_bytes(b"CONTENT")
        os.utime(path, (1, 1))
    elif change == "replaced":
        (tmp_path / "new").write_bytes(b"content")
        (tmp_path / "new").replace(path)
    elif change == "added":
        (source / "more.json").touch()
    elif change == "removed":
        path.unlink()
    elif change == "of another run":
        (source / ".out.x1.partial").mkdir()
        (source / ".out.x1.partial" / "config.json").touch()
    if change in ("none", "of another run"):
        watch.require_unchanged()
        return
    with pytest.raises(ManifestError, match="changed while it was read"):
        watch.require_unchanged()


def test_a_store_path_is_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_find_store", lambda: str(tmp_path))
    built = tmp_path / "qq8x6bjr3k2wvilqc1l7chivcyg6wj5h-engine"
    (built / "tokenizer").mkdir(parents=True)
    (tmp_path / "no-store-name").mkdir(mode=0o555)
    assert not digests.is_in_store(built), "a build that still runs can write"
    built.chmod(0o555)
    assert digests.is_in_store(built) and digests.is_in_store(built / "tokenizer")
    assert not any(digests.is_in_store(p) for p in (tmp_path, tmp_path / "no-store-name", Path("/etc")))
    (tmp_path / "link").symlink_to(built)
    assert digests.is_in_store(tmp_path / "link")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=12), JSON, max_size=4) | JSON)
def test_any_json_is_digests_or_refused(raw: object) -> None:
    try:
        found = parse_digests(raw)
    except ValueError:
        return
    assert {name: d.as_json() for name, d in found.items()} == raw
    assert all(not Path(name).is_absolute() and ".." not in Path(name).parts for name in found)
