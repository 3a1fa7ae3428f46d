"""No token and no password in a lock, manifest, error or --json, wherever a hub or an address puts it."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_support import CONFIG, REPO

from enginix import console
from enginix.cli import main
from enginix.credentials import has_secret, redact_secrets
from hub import Hub

Start = Callable[..., Hub]
TOKEN = "hf_secretsecretsecret"


def config(**more: Any) -> Callable[[Path], None]:
    return lambda model: (model / "config.json").write_text(json.dumps({**CONFIG, **more})) and None


def renamed(name: str) -> Callable[[Path], None]:
    return lambda model: shutil.move(model / "model-00001-of-00002.safetensors", model / name) and None


def licensed(text: str) -> Callable[[Path], None]:
    return lambda model: (model / "README.md").write_text(f"---\nlicense: {text}\n---\n") and None


SPLIT = f"{TOKEN[:8]}\u200b{TOKEN[8:]}"
ECHOES: dict[str, Callable[[Path], None]] = {
    "file name": renamed(f"{TOKEN}.safetensors"),
    "hostile file name": renamed(f"{TOKEN}\\x.safetensors"),
    "file name in pieces": renamed(f"{SPLIT}.safetensors"),
    "architecture": config(architectures=[TOKEN]),
    "model type": config(model_type=TOKEN),
    "dtype": config(torch_dtype=TOKEN),
    "quantization": config(quantization_config={"quant_algo": TOKEN, "quant_method": TOKEN}),
    "base 64": config(architectures=[base64.b64encode(b"x" + TOKEN.encode()).decode()]),
    "licence": licensed(TOKEN),
}


@pytest.mark.parametrize("where", ECHOES)
def test_a_hub_that_sends_the_token_back(
    start: Start,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    where: str,
) -> None:
    ECHOES[where](model)
    start(model, tokens=[TOKEN])
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    path = tmp_path / "x.lock.json"
    status = main(["lock", REPO, "-o", str(path), "--json"])
    said = capsys.readouterr()
    assert status == (0 if where == "licence" else 4), said.err
    text = said.out + said.err + (path.read_text() if path.exists() else "")
    assert TOKEN not in text and not has_secret(text)
    if status:
        assert "sends it back" in said.err and not path.exists()


def test_a_hostile_path_in_an_error(
    start: Start,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start(model, f"extra-path,text={TOKEN}/../x", tokens=[TOKEN])
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(["lock", REPO, "-o", str(tmp_path / "x"), "--json"]) == 4
    said = capsys.readouterr()
    assert TOKEN not in said.out + said.err


@pytest.mark.parametrize("command", ["lock", "fetch-file", "inspect"])
def test_a_password_in_the_hubs_address(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://bob:hunter2secret@127.0.0.1:9")
    words = {
        "lock": ["lock", REPO, "-o", str(tmp_path / "x")],
        "fetch-file": [
            *("fetch-file", REPO, "0" * 40, "a.json", "--sha256", "0" * 64, "--size", "1"),
            *("-o", str(tmp_path / "x")),
        ],
        "inspect": ["inspect", REPO],
    }
    assert main([*words[command], "--json"]) == 2
    said = capsys.readouterr()
    assert "user name or password" in said.err and "hunter2secret" not in said.out + said.err


@pytest.mark.parametrize(
    "token", ["hf_secret\u200bsecret", "hf_secret secret", "hf_secrét", "hf_\x7fsecretsecret"]
)
def test_a_token_that_was_pasted_badly(
    start: Start,
    model: Path,
    tmp_path: Path,
    token: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start(model)
    monkeypatch.setenv("HF_TOKEN", token)
    assert main(["lock", REPO, "-o", str(tmp_path / "x")]) == 2
    text = capsys.readouterr().err
    assert "HF_TOKEN" in text and "U+" in text and token not in text


def test_what_is_said_shows_no_credentials(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HTTPS_PROXY", "http://bob:hunter2%40secret@proxy:3128")
    for text in (TOKEN, "http://bob:hunter2@proxy/x", "password hunter2@secret", "hunter2%40secret"):
        console.print_message(f"cannot reach {text}")
        console.report_error(ValueError(text))
        for as_json in (True, False):
            console.set_style(quiet=False, as_json=as_json)
            console.print_result({"x": text}, text)
    said = capsys.readouterr()
    assert "hunter2" not in said.out + said.err and TOKEN not in said.out + said.err
    assert redact_secrets("see https://hub.co/a@b and a@b") == "see https://hub.co/a@b and a@b"
