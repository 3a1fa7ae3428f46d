"""What can go wrong on the way: recovered unnoticed, or one clear error and nothing left behind."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_support import REPO, content, listing
from huggingface_hub import constants

from enginix.errors import EnginixError, HashMismatch, HubError
from enginix.hub.fetch import fetch_file, fetch_locked_files
from enginix.hub.lock import Lock, LockedFile, Selection
from enginix.hub.locking import make_lock
from enginix.hub.transfer import FileDigest
from hub import Fault, Hub

Start = Callable[..., Hub]
SHARD = "model-00001-of-00002.safetensors"


def lock_of(start: Start, model: Path) -> tuple[Hub, Lock]:
    hub = start(model)
    lock = make_lock(REPO, Selection()).lock
    hub.requests.clear()
    return hub, lock


def inject(hub: Hub, faults: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let faults happen from now on; a stalled body is given up soon."""
    hub.faults[:] = [Fault.parse(f) for f in faults]
    if any(f.startswith("stall") for f in faults):
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)


def wanted(lock: Lock, path: str = SHARD) -> FileDigest:
    f = next(f for f in lock.files if f.path == path)
    return FileDigest(f.path, f.size, "sha256", f.sha256)


def body_bytes(hub: Hub, path: str = "/blobs/") -> int:
    """Return the bytes of files that were sent; a refusal's text is no file."""
    rows = [r for r in hub.requests if r["method"] == "GET" and path in r["path"]]
    return sum(int(r["sent"]) for r in rows if int(r["status"]) < 400)


@pytest.mark.parametrize(
    ("faults", "resumes"),
    [
        (["cut,path=*00001*,at=1000000,times=1,on=blob"], True),
        (["cut,path=*00001*,at=700000,times=3,on=blob"], True),
        (["cut,path=*00001*,at=0,times=2,on=blob"], True),
        (["cut,path=tokenizer.json,at=3,times=1"], True),
        (["truncate,path=*00001*,at=1000000,times=1,on=blob"], True),
        (["truncate,path=*00001*,at=0,times=2,on=blob"], True),
        (["stall,path=*00001*,at=500000,seconds=2,times=1,on=blob"], True),
        (["status,path=*00001*,code=500,times=2,on=blob"], True),
        (["status,path=*00001*,code=503,times=1,on=resolve"], True),
        (["status,path=*00001*,code=429,seconds=3,times=1,on=blob"], True),
        (["status,path=*00001*,code=429,seconds=3,times=1,on=resolve"], True),
        (["expired,path=*00001*,times=1"], True),
        (["other-host"], True),
        (["cut,path=*00001*,at=1000000,times=1,on=blob", "no-range"], False),
        (["flip,path=*00001*,at=1234567,times=1,on=blob"], False),
        (["flip,path=config.json,at=3,times=1"], False),
    ],
    ids=lambda value: value[0].split(",on")[0] if isinstance(value, list) else "",
)
def test_recovered_unnoticed(
    start: Start,
    model: Path,
    tmp_path: Path,
    waits: list[float],
    monkeypatch: pytest.MonkeyPatch,
    faults: list[str],
    resumes: bool,
) -> None:
    hub, lock = lock_of(start, model)
    inject(hub, faults, monkeypatch)
    out = tmp_path / "out"
    fetch_locked_files(lock, out)
    assert all(f.happened for f in hub.faults), "the fault did not happen"
    files = listing(out)
    del files["enginix.json"]
    assert files == {f.path: (model / f.path).read_bytes() for f in lock.files}
    large = sum(f.size for f in lock.files if f.path.endswith(".safetensors"))
    if resumes:
        # What was sent may be more than what arrived, by what lay in the sockets when one was cut.
        assert body_bytes(hub) <= large + (8 << 20) * ("stall" in faults[0])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "upstream"]


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("cut,path=*00001*,at=0", "cannot reach|stopped answering"),
        ("truncate,path=*00001*,at=0", "Consistency check failed"),
        pytest.param(
            "stall,path=*00001*,at=0,seconds=1,on=blob", "stopped answering", marks=pytest.mark.slow
        ),
        ("status,path=*00001*,code=500,on=blob", "answered 500"),
        ("status,path=*00001*,code=503,on=resolve", "answered 503"),
        ("status,path=*00001*,code=404,on=blob", "answered 404"),
        ("status,path=*00001*,code=429,seconds=2,on=resolve", "slow down"),
        ("expired,path=*00001*", "answered 403"),
        ("flip,path=*00001*,at=7", "is pinned"),
        ("no-commit,path=*00001*", "does not answer as a hub"),
    ],
)
def test_one_clear_error_and_nothing_left(
    start: Start,
    model: Path,
    tmp_path: Path,
    waits: list[float],
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    says: str,
) -> None:
    hub, lock = lock_of(start, model)
    inject(hub, [fault], monkeypatch)
    with pytest.raises(EnginixError, match=says) as e:
        fetch_file(REPO, lock.revision, wanted(lock), tmp_path / "out")
    assert hub.faults[0].happened
    first = str(e.value).splitlines()[0]
    assert first.startswith(f"{REPO}: {SHARD}: ") and len(first) < 400 and "Signature=" not in str(e.value)
    assert [p.name for p in tmp_path.iterdir()] == ["upstream"]


def test_a_changed_file_shows_both_hashes_and_the_rest_is_kept(
    start: Start, model: Path, tmp_path: Path, waits: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    hub, lock = lock_of(start, model)
    hub.faults.append(Fault.parse("flip,path=*00001*,at=99"))
    data = bytearray((model / SHARD).read_bytes())
    data[99] ^= 1
    out = tmp_path / "out"
    with pytest.raises(HashMismatch) as e:
        fetch_locked_files(lock, out, jobs=1)
    assert hashlib.sha256(data).hexdigest() in str(e.value) and wanted(lock).digest in str(e.value)
    assert not out.exists() and "run the same command again" in capsys.readouterr().err
    hub.faults.clear()
    hub.requests.clear()
    done = fetch_locked_files(lock, out)
    assert done.kept > 0 and listing(out).keys() >= {f.path for f in lock.files}
    assert not (tmp_path / ".out.partial").exists()


def test_a_lock_with_another_sha256_moves_no_byte(start: Start, model: Path, tmp_path: Path) -> None:
    hub, lock = lock_of(start, model)
    wrong = FileDigest(SHARD, wanted(lock).size, "sha256", "a" * 64)
    with pytest.raises(HashMismatch) as e:
        fetch_file(REPO, lock.revision, wrong, tmp_path / "out")
    assert "a" * 64 in str(e.value) and wanted(lock).digest in str(e.value) and SHARD in str(e.value)
    assert body_bytes(hub) == 0
    with pytest.raises(HashMismatch, match="3000001 bytes, and 5 are pinned"):
        fetch_file(REPO, lock.revision, FileDigest(SHARD, 5, "sha256", wanted(lock).digest), tmp_path / "out")
    assert body_bytes(hub) == 0 and [p.name for p in tmp_path.iterdir()] == ["upstream"]


def test_a_wrong_oid_that_git_agrees_with_is_noticed_at_the_fetch(
    start: Start, model: Path, tmp_path: Path
) -> None:
    hub = start(model, "wrong-pointer,path=*00001*")
    lock = make_lock(REPO, Selection()).lock
    hub.requests.clear()
    with pytest.raises(HashMismatch, match="the hub promises sha256"):
        fetch_file(REPO, lock.revision, wanted(lock), tmp_path / "out")
    assert body_bytes(hub) == 0


def test_a_small_file_that_changed_under_its_commit(start: Start, model: Path, tmp_path: Path) -> None:
    _, lock = lock_of(start, model)
    path = model / "config.json"
    path.write_text(path.read_text().replace("2048", "4096"))
    with pytest.raises(HashMismatch, match=r"config\.json"):
        fetch_file(REPO, lock.revision, wanted(lock, "config.json"), tmp_path / "out")


def test_a_body_longer_than_pinned_never_fills_the_disk(start: Start, model: Path, tmp_path: Path) -> None:
    hub, lock = lock_of(start, model)
    shard = model / SHARD
    entry = hub.repositories[REPO].commit(lock.revision)
    assert entry is not None
    shard.write_bytes(content(1, 9_000_000))  # the commit still promises the old size
    with pytest.raises(HubError, match=r"sends more bytes|bytes, and"):
        fetch_file(REPO, lock.revision, wanted(lock), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["upstream"]


def test_revisions_and_files_that_are_not_there(start: Start, model: Path, tmp_path: Path) -> None:
    _, lock = lock_of(start, model)
    with pytest.raises(HubError, match="no such revision"):
        fetch_file(REPO, "1" * 40, wanted(lock), tmp_path / "out")
    with pytest.raises(HubError, match="no such file"):
        fetch_file(REPO, lock.revision, FileDigest("none.json", 1, "sha256", "a" * 64), tmp_path / "out")
    with pytest.raises(EnginixError, match="a branch or tag can move") as e:
        fetch_file(REPO, "main", wanted(lock), tmp_path / "out")
    assert "enginix lock" in str(e.value)
    assert [p.name for p in tmp_path.iterdir()] == ["upstream"]


def test_nobody_listens(
    start: Start, model: Path, tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, lock = lock_of(start, model)
    with socket.socket() as taken:  # bound and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        _refused(lock, tmp_path)


@pytest.mark.parametrize("attempt", range(4 if os.environ.get("ENGINIX_SLOW") else 1))
def test_many_files_at_once_and_nobody_listens(
    start: Start,
    model: Path,
    tmp_path: Path,
    waits: list[float],
    monkeypatch: pytest.MonkeyPatch,
    attempt: int,
) -> None:
    """huggingface_hub closes the client of all threads when one cannot connect; that is no bug of enginix."""
    for number in range(12):
        (model / f"part-{number}.txt").write_text(f"file {number} of attempt {attempt}")
    _, lock = lock_of(start, model)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(HubError, match="cannot reach http://127"):
            fetch_locked_files(lock, tmp_path / "out")


def _refused(lock: Lock, tmp_path: Path) -> None:
    with pytest.raises(HubError, match="cannot reach http://127"):
        fetch_file(REPO, lock.revision, wanted(lock), tmp_path / "out")
    with pytest.raises(HubError, match="cannot reach http://127"):
        make_lock(REPO, Selection())


def test_odd_but_fine_names(start: Start, model: Path, tmp_path: Path) -> None:
    names = [
        "a b.json",
        "ünïcode.json",
        "100%.json",
        "q?x=1&y#z.json",
        "+plus.json",
        "'quote\".json",
        "[1].json",
    ]
    for n, name in enumerate(names):
        (model / name).write_text(f"[{n}]")
    _, lock = lock_of(start, model)
    fetch_locked_files(lock, tmp_path / "out")
    assert {n: (tmp_path / "out" / n).read_text() for n in names} == {
        n: f"[{i}]" for i, n in enumerate(names)
    }


@pytest.mark.slow
def test_thousands_of_files(start: Start, model: Path, tmp_path: Path) -> None:
    for n in range(2500):
        (model / "sub" / f"{n}.json").write_text(f"[{n}]")
    hub, lock = lock_of(start, model)
    assert len(lock.files) > 2500
    fetch_locked_files(lock, tmp_path / "out", jobs=8)
    assert (tmp_path / "out" / "sub" / "2499.json").read_text() == "[2499]"
    assert len(hub.requests) <= 3 * len(lock.files)


def test_equal_files_are_fetched_once(start: Start, model: Path, tmp_path: Path) -> None:
    (model / "copy.safetensors").write_bytes((model / SHARD).read_bytes())
    hub, lock = lock_of(start, model)
    fetch_locked_files(lock, tmp_path / "out")
    assert body_bytes(hub) == sum({f.sha256: f.size for f in lock.files if ".safetensors" in f.path}.values())
    assert (tmp_path / "out" / "copy.safetensors").read_bytes() == (model / SHARD).read_bytes()


def test_a_lock_made_by_hand_of_one_empty_file(start: Start, model: Path, tmp_path: Path) -> None:
    _, lock = lock_of(start, model)
    empty = LockedFile("empty.txt", 0, hashlib.sha256().hexdigest())
    fetch_locked_files(Lock(REPO, lock.revision, None, False, {}, (empty,)), tmp_path / "out")
    assert (tmp_path / "out" / "empty.txt").read_bytes() == b""
