"""A whole commit equals the clone, and the hub of the tests is a hub to the real clients."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_support import REPO, listing

from enginix.cli import main
from enginix.errors import HashMismatch, LockError
from enginix.hub import api
from enginix.hub.tree import fetch_tree
from hub import Fault, Hub, Repository

Start = Callable[..., Hub]


def nar_hash(path: Path) -> str:
    """SHA-256 of the path's Nix archive ("NAR format" in Nix's manual), which names a recursive output."""
    digest = hashlib.sha256()

    def put(data: bytes) -> None:
        digest.update(len(data).to_bytes(8, "little") + data + bytes(-len(data) % 8))

    def node(p: Path) -> None:
        put(b"(")
        put(b"type")
        if p.is_dir():
            put(b"directory")
            for name in sorted(os.listdir(os.fsencode(p))):
                for word in (b"entry", b"(", b"name", name, b"node"):
                    put(word)
                node(p / os.fsdecode(name))
                put(b")")
        else:
            put(b"regular")
            if os.access(p, os.X_OK) and p.stat().st_mode & 0o100:
                put(b"executable")
                put(b"")
            put(b"contents")
            put(p.read_bytes())
        put(b")")

    put(b"nix-archive-1")
    node(path)
    return digest.hexdigest()


def clone(hub: Hub, where: Path) -> Path:
    if shutil.which("git-lfs") is None:
        pytest.skip("git-lfs is not installed")
    env = {"PATH": os.environ["PATH"], "HOME": str(where.parent), "GIT_TERMINAL_PROMPT": "0"}
    subprocess.run(["git", "lfs", "install"], env=env, check=True, capture_output=True)
    subprocess.run(
        ["git", "clone", "-q", f"{hub.endpoint}/{REPO}", where], env=env, check=True, capture_output=True
    )
    subprocess.run(["git", "fsck", "--full"], cwd=where, env=env, check=True, capture_output=True)
    return where


def head(model: Path) -> str:
    commit = Repository({"main": model}).head("main")
    assert commit is not None
    return commit.sha


def test_it_has_the_hash_of_a_git_lfs_clone_without_git(start: Start, model: Path, tmp_path: Path) -> None:
    hub = start(model)
    commit = api.fetch_repo_info(REPO).revision
    assert main(["fetch-tree", REPO, commit, "-o", str(tmp_path / "tree")]) == 0
    cloned = clone(hub, tmp_path / "clone")
    at = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=cloned, capture_output=True, text=True
    ).stdout.strip()
    assert at == commit == head(model)
    shutil.rmtree(cloned / ".git")
    assert listing(tmp_path / "tree") == listing(cloned)
    assert nar_hash(tmp_path / "tree") == nar_hash(cloned)
    assert ".gitattributes" in listing(cloned) and "training_args.bin" in listing(cloned)
    if shutil.which("nix-hash"):
        words = ["nix-hash", "--type", "sha256", tmp_path / "tree"]
        assert subprocess.run(words, capture_output=True, text=True).stdout.strip() == nar_hash(cloned)


@pytest.mark.parametrize("path", ["config.json", "*00002*"])
def test_one_bit_in_a_small_or_a_large_file_is_found_and_nothing_is_left(
    start: Start, model: Path, tmp_path: Path, path: str, waits: list[float]
) -> None:
    hub = start(model)
    commit = api.fetch_repo_info(REPO).revision
    hub.faults.append(Fault("flip", path=path, at=5))
    with pytest.raises(HashMismatch):
        fetch_tree(REPO, commit, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["upstream"]


def test_hostile_listings(start: Start, model: Path, tmp_path: Path) -> None:
    for fault in ("extra-path,text=../x", "twin,path=config.json"):
        start(model, fault)
        with pytest.raises(LockError):
            fetch_tree(REPO, head(model), tmp_path / "out")
    assert main(["fetch-tree", REPO, "main", "-o", str(tmp_path / "out")]) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["upstream"]


def test_a_range_is_read_without_the_rest(start: Start, model: Path) -> None:
    hub = start(model)
    name = "model-00001-of-00002.safetensors"
    data = (model / name).read_bytes()
    commit = api.fetch_repo_info(REPO).revision
    hub.requests.clear()
    assert api.read_range(REPO, commit, name, 0, 8) == data[:8]
    assert api.read_range(REPO, commit, name, 1000, 5000) == data[1000:5000]
    assert api.read_range(REPO, commit, name, len(data) - 3, len(data) + 10) == data[-3:]
    assert api.read_range(REPO, commit, name, len(data), len(data) + 10) == b""
    assert api.read_range(REPO, commit, name, 5, 5) == b""
    assert (
        sum(r["sent"] for r in hub.requests if "/blobs/" in r["path"] and r["status"] == 206) == 8 + 4000 + 3
    )


def test_the_commit_follows_from_the_content(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "copy")
    assert head(model) == head(tmp_path / "copy")
    (tmp_path / "copy" / "empty.txt").write_text("x")
    assert head(model) != head(tmp_path / "copy")


def test_the_hubs_own_command_line_downloads_it(start: Start, model: Path, tmp_path: Path) -> None:
    from huggingface_hub import snapshot_download

    hub = start(model)
    out = tmp_path / "hf"
    snapshot_download(REPO, local_dir=out, endpoint=hub.endpoint)
    files = {n: d for n, d in listing(out).items() if not n.startswith((".cache", ".gitattributes"))}
    assert files == listing(model)
