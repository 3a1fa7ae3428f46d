"""The token: it opens what it should, goes nowhere else, and is never shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hub_support import REPO

from enginix.cli import main
from enginix.errors import HubError
from enginix.hub import session
from enginix.hub.fetch import fetch_locked_files
from enginix.hub.lock import Selection
from enginix.hub.locking import make_lock
from hub import Hub, Repository

Start = Callable[..., Hub]
TOKEN = "hf_secretsecretsecret"


@pytest.mark.parametrize("gated", ["auto", "manual"])
def test_a_gated_repository_without_token_names_the_licence_page_and_the_daemon(
    start: Start, model: Path, tmp_path: Path, gated: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = start(Repository({"main": model}, gated=gated), tokens=[TOKEN])
    assert main(["lock", REPO, "-o", str(tmp_path / "x")]) == 4
    text = capsys.readouterr().err
    for words in (f"{hub.endpoint}/{REPO}", "licence", "HF_TOKEN", "nix-daemon"):
        assert words in text


def test_with_a_token_it_is_locked_and_fetched(
    start: Start, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(Repository({"main": model}, gated="auto", private=True), tokens=[TOKEN])
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    lock = make_lock(REPO, Selection()).lock
    assert lock.gated == "auto"
    fetch_locked_files(lock, tmp_path / "out")
    assert TOKEN not in lock.dump()
    assert not any(TOKEN.encode() in p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file())


def test_a_licence_that_is_not_accepted(
    start: Start,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub = start(Repository({"main": model}, gated="manual"), "not-accepted", tokens=[TOKEN])
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(["lock", REPO, "-o", str(tmp_path / "x")]) == 4
    text = capsys.readouterr().err
    assert "has not accepted the licence" in text and f"open {hub.endpoint}/{REPO}" in text


def test_a_token_that_nobody_knows_and_a_private_repository(
    start: Start,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start(Repository({"main": model}, private=True), tokens=[TOKEN])
    assert main(["lock", REPO, "-o", str(tmp_path / "x")]) == 4
    assert "no such repository, or it is private" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "hf_stale")
    assert main(["lock", REPO, "-o", str(tmp_path / "x")]) == 4
    text = capsys.readouterr().err
    assert "refused the token" in text and "hf_stale" not in text and "nix-daemon" in text


def test_the_token_stays_on_the_hubs_host(
    start: Start, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = start(Repository({"main": model}, gated="auto"), "other-host", tokens=[TOKEN])
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    fetch_locked_files(make_lock(REPO, Selection()).lock, tmp_path / "out")
    home = hub.endpoint.removeprefix("http://")
    elsewhere = [r for r in hub.requests if r["host"] != home]
    assert elsewhere and all(r["authorization"] is None for r in elsewhere)
    assert all(r["authorization"] == f"Bearer {TOKEN}" for r in hub.requests if r["host"] == home)


def test_the_token_does_not_follow_a_redirect_to_another_port(
    start: Start, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    """huggingface_hub compares host names only; another port is another server."""
    first = start(model, tokens=[TOKEN])
    lock = make_lock(REPO, Selection()).lock
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    start(model, tokens=[TOKEN])
    monkeypatch.setattr("hub.server._Handler._base", lambda self: first.endpoint)
    first.requests.clear()
    with pytest.raises(HubError):
        fetch_locked_files(lock, tmp_path / "out")  # the first hub does not know the second one's signatures
    blobs = [r for r in first.requests if "/blobs/" in r["path"]]
    assert blobs and all(r["authorization"] is None for r in blobs)


def test_an_error_never_carries_the_token(
    start: Start,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start(model, f"status,code=400,text=you sent {TOKEN} to me", tokens=[TOKEN])
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(["lock", REPO, "-o", str(tmp_path / "x"), "--json"]) == 4
    said = capsys.readouterr()
    assert "<token>" in said.err and TOKEN not in said.err + said.out


@pytest.mark.parametrize(
    ("url", "home", "same"),
    [
        ("https://hub.co/x", "https://hub.co", True),
        ("https://hub.co:443/x", "https://hub.co", True),
        ("https://cdn.hub.co/x", "https://hub.co", False),
        ("http://hub.co/x", "https://hub.co", False),
        ("https://hub.co/x", "http://hub.co", True),
        ("http://hub.co:81/x", "http://hub.co", False),
        ("https://hub.co@evil.co/x", "https://hub.co", False),
        ("https://hub.co.evil.co/x", "https://hub.co", False),
        ("https://hub.co:bad/x", "https://hub.co", False),
        ("//hub.co/x", "https://hub.co", False),
    ],
)
def test_which_addresses_are_the_hubs(url: str, home: str, same: bool) -> None:
    assert session.is_same_host(url, home) is same


@pytest.mark.parametrize("address", ["hub.co", "ftp://hub.co", "http://", "http://h:bad", "http://[::1"])
def test_an_endpoint_that_is_none(address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", address)
    assert main(["lock", REPO, "-o", str(tmp_path / "x")]) == 2
