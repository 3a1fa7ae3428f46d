"""The Xet path, with the real hf_xet against the hub's stand-in for Xet storage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hub_support import REPO

from enginix.hub.fetch import FetchResult, fetch_locked_files
from enginix.hub.lock import Lock, Selection
from enginix.hub.locking import make_lock
from hub import Fault, Hub, Repository

pytest.importorskip("hf_xet")
Start = Callable[..., Hub]
TOKEN = "hf_secretsecretsecret"


def fetched(hub: Hub, model: Path, out: Path) -> tuple[Lock, FetchResult]:
    lock = make_lock(REPO, Selection()).lock
    hub.requests.clear()
    done = fetch_locked_files(lock, out)
    for f in lock.files:
        assert (out / f.path).read_bytes() == (model / f.path).read_bytes()
    return lock, done


def asked(hub: Hub, method: str, path: str) -> int:
    return sum(r["method"] == method and path in r["path"] for r in hub.requests)


def test_large_files_come_by_xet_and_are_verified(start: Start, model: Path, tmp_path: Path) -> None:
    hub = start(model, xet=True)
    lock, done = fetched(hub, model, tmp_path / "out")
    assert asked(hub, "GET", "/xorbs/") >= 2 and asked(hub, "GET", "/blobs/") == 0
    assert done.moved == lock.size


def test_the_hubs_token_does_not_go_to_xet_storage(
    start: Start, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = start(Repository({"main": model}, gated="auto"), xet=True, tokens=[TOKEN])
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    fetched(hub, model, tmp_path / "out")
    storage = [r for r in hub.requests if r["path"].startswith(("/xet/", "/xorbs/"))]
    assert storage and not any(TOKEN in str(r["authorization"]) for r in storage)


@pytest.mark.parametrize(
    "fault",
    ["status,on=xet_token,code=404", "status,on=xet_file,code=404", "flip,on=xorb,at=5000"],
)
def test_where_xet_fails_or_lies_plain_http_delivers(
    start: Start, model: Path, tmp_path: Path, waits: list[float], fault: str
) -> None:
    hub = start(model, xet=True)
    hub.faults.append(Fault.parse(fault))
    _, done = fetched(hub, model, tmp_path / "out")
    assert hub.faults[0].happened and asked(hub, "GET", "/blobs/") == 2
    assert not (tmp_path / ".out.partial").exists() and done.kept == 0
