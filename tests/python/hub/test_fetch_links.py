"""enginix fetch touches nothing outside its output, whatever lies where its unfinished files go."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_support import REPO, listing

from enginix.cli import main
from enginix.errors import UsageError
from enginix.hub.fetch import fetch_file, fetch_locked_files
from enginix.hub.lock import Lock, Selection
from enginix.hub.locking import make_lock
from enginix.hub.transfer import FileDigest
from hub import Hub

Start = Callable[..., Hub]


@pytest.fixture
def lock(start: Start, model: Path) -> Lock:
    start(model)
    return make_lock(REPO, Selection()).lock


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    directory = tmp_path / "precious"
    (directory / "sub").mkdir(parents=True)
    (directory / "thesis.txt").write_text("years of work")
    (directory / "sub" / "notes.txt").write_text("a small file in a folder\n")  # as the model's own
    directory.chmod(0o700)
    return directory


def snapshot(directory: Path) -> tuple[int, dict[str, bytes]]:
    return directory.stat().st_mode, listing(directory)


def test_a_work_directory_that_is_a_link_is_refused(
    lock: Lock, precious: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(precious)
    path = tmp_path / "tiny.lock.json"
    path.write_text(lock.dump())
    (tmp_path / ".out.partial").symlink_to("precious")
    assert main(["fetch", str(path), "-o", str(tmp_path / "out")]) == 2
    assert "no earlier run left: a link" in capsys.readouterr().err
    assert snapshot(precious) == before and not (tmp_path / "out").exists()


PLACES = {
    "the finished files": "tree",
    "a folder of finished files": "tree/sub",
    "a finished file": "tree/config.json",
    "the unfinished files": "part",
    "an unfinished file": "part/{digest}",
    "the caches": "hf",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("how", ["symbolic", "hard"])
def test_links_in_the_work_directory_are_not_followed(
    lock: Lock, model: Path, precious: Path, tmp_path: Path, place: str, how: str
) -> None:
    big = max(lock.files, key=lambda f: f.size)
    link = tmp_path / ".out.partial" / PLACES[place].format(digest=big.sha256)
    link.parent.mkdir(parents=True, mode=0o700)
    is_file = "/" in PLACES[place] and place != "a folder of finished files"
    if is_file:  # the right bytes' beginning, so that it would be gone on with
        (precious / "thesis.txt").write_bytes((model / big.path).read_bytes()[:1000])
    before = snapshot(precious)
    if how == "symbolic":
        link.symlink_to(precious / "thesis.txt" if is_file else precious)
    elif is_file:
        os.link(precious / "thesis.txt", link)
    else:
        link.mkdir()
        os.link(precious / "thesis.txt", link / "thesis.txt")
    fetch_locked_files(lock, tmp_path / "out")
    assert snapshot(precious) == before
    out = tmp_path / "out"
    assert not any(p.is_symlink() for p in [out, *out.rglob("*")])
    assert {n: d for n, d in listing(out).items() if n != "enginix.json"} == {
        f.path: (model / f.path).read_bytes() for f in lock.files
    }
    assert not (tmp_path / ".out.partial").exists()


@pytest.mark.parametrize("place", [".x.partial", ".x.partial/part", ".x.partial/part/DIGEST"])
def test_one_file_follows_none_either(lock: Lock, precious: Path, tmp_path: Path, place: str) -> None:
    small = next(f for f in lock.files if f.path == "config.json")
    wanted = FileDigest(small.path, small.size, "sha256", small.sha256)
    before = snapshot(precious)
    link = tmp_path / place.replace("DIGEST", small.sha256)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(precious / "thesis.txt" if place.endswith("DIGEST") else precious)
    if place == ".x.partial":
        with pytest.raises(UsageError, match="no earlier run left"):
            fetch_file(REPO, lock.revision, wanted, tmp_path / "x")
    else:
        fetch_file(REPO, lock.revision, wanted, tmp_path / "x")
        assert wanted.matches(tmp_path / "x")
    assert snapshot(precious) == before


@pytest.mark.parametrize("leads", ["an empty directory", "what is pinned", "nowhere"])
def test_an_output_that_is_a_link_is_refused_before_a_request(
    start: Start, model: Path, lock: Lock, tmp_path: Path, leads: str
) -> None:
    hub = start(model)
    if leads == "what is pinned":
        fetch_locked_files(lock, tmp_path / "real")
    elif leads == "an empty directory":
        (tmp_path / "real").mkdir()
    hub.requests.clear()
    (tmp_path / "out").symlink_to("real")
    with pytest.raises(UsageError, match="a symbolic link to real"):
        fetch_locked_files(lock, tmp_path / "out")
    assert not hub.requests and (tmp_path / "out").is_symlink()


def test_a_link_inside_a_finished_output_is_not_what_was_pinned(
    lock: Lock, precious: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    fetch_locked_files(lock, out)
    (out / "more").symlink_to(precious)
    with pytest.raises(UsageError, match="more in it is not pinned"):
        fetch_locked_files(lock, out)
    (out / "more").unlink()
    (out / "sub" / "notes.txt").unlink()
    (out / "sub").rmdir()
    (out / "sub").symlink_to(precious / "sub")
    with pytest.raises(UsageError, match="sub in it is not pinned"):
        fetch_locked_files(lock, out)


def test_a_file_of_another_lock_where_a_folder_is_needed(lock: Lock, tmp_path: Path) -> None:
    tree = tmp_path / ".out.partial" / "tree"
    tree.mkdir(parents=True)
    (tree / "sub").write_text("a file of another lock")
    fetch_locked_files(lock, tmp_path / "out")
    assert (tmp_path / "out" / "sub" / "notes.txt").is_file()
