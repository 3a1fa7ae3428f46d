"""Each check against a machine that lacks the thing: what is missing is said, and how to mend it."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from enginix import optional_libraries
from enginix.cli import main
from enginix.diagnosis import machine_checks
from enginix.diagnosis.machine_checks import CheckResult, run_checks
from enginix.optional_libraries import EXTRAS
from hub import Hub

ROOT = Path(__file__).parents[3]


def _find(results: list[CheckResult], name: str) -> CheckResult:
    [result] = [result for result in results if result.name == name]
    return result


@pytest.fixture(autouse=True)
def empty_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.delenv("ENGINIX_TRITONSERVER", raising=False)


def test_what_is_missing_has_a_way_to_mend_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setenv("ENGINIX_BWRAP", "/nonexistent/bwrap")
    results = run_checks(ask_hub=False)
    for name in ("GPU and driver", "user namespaces", "tritonserver"):
        assert _find(results, name).status == "absent", name
    assert all(result.fix for result in results if result.status != "ok")
    assert not any(result.fix for result in results if result.status == "ok")


def test_the_gateway_of_another_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python = tmp_path / "python3"
    python.write_text("#!/bin/sh\necho 99.1\n")
    python.chmod(0o755)
    monkeypatch.setenv("ENGINIX_GATEWAY_PYTHON", str(python))
    result = _find(run_checks(ask_hub=False), "extra gateway")
    assert result.status == "ok" and str(python) in result.detail
    python.write_text("#!/bin/sh\necho 1.0 orjson uvicorn\n")
    result = _find(run_checks(ask_hub=False), "extra gateway")
    assert result.status == "absent" and "orjson, uvicorn are not installed" in result.detail


def test_a_taken_port(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(machine_checks, "PORTS", {"tritonserver": (port,)})
        result = _find(run_checks(ask_hub=False), "ports of tritonserver")
        assert result.status == "absent" and str(port) in result.detail
    assert _find(run_checks(ask_hub=False), "ports of tritonserver").status == "ok"


def test_a_small_disk_and_a_directory_of_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine_checks, "FEWEST_BYTES", 1 << 60)
    result = _find(run_checks(ask_hub=False), "disk of the cache")
    assert result.status == "failed" and "XDG_CACHE_HOME" in str(result.fix)
    monkeypatch.setattr(machine_checks, "FEWEST_BYTES", 1)
    assert _find(run_checks(ask_hub=False), "disk of the cache").status == "ok"
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    assert _find(run_checks(ask_hub=False), "disk of the cache").status == "failed"


def test_the_hub_is_asked_without_a_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "secret" * 5)
    with Hub({}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        assert _find(run_checks(ask_hub=True), "hub").status == "ok"
        assert hub.requests and "secret" not in json.dumps(hub.requests, default=str)
        endpoint = hub.endpoint
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    result = _find(run_checks(ask_hub=True), "hub")
    assert result.status == "failed" and "HF_ENDPOINT" in str(result.fix)


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(machine_checks, "FEWEST_BYTES", 1)
    assert main(["doctor", "--offline", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] and {row["status"] for row in report["checks"]} <= {"ok", "absent"}
    monkeypatch.setattr(machine_checks, "FEWEST_BYTES", 1 << 60)
    assert main(["doctor", "--offline"]) == 1
    printed = capsys.readouterr().out
    assert "failed  disk of the cache" in printed and "fix: set XDG_CACHE_HOME" in printed


@pytest.mark.parametrize("is_nix", [True, False])
def test_fixes_fit_how_enginix_was_installed(monkeypatch: pytest.MonkeyPatch, is_nix: bool) -> None:
    """A package of the flake names another one that has the libraries, never itself; pip's names pip."""
    monkeypatch.setattr(optional_libraries, "find_spec", lambda _: None)
    monkeypatch.setattr(optional_libraries, "is_in_nix_store", lambda *_: is_nix)
    results = run_checks(ask_hub=False)
    for name, extra in EXTRAS.items():
        fix = str(_find(results, f"extra {name}").fix)
        if is_nix:
            assert fix.endswith(f"nix run {ROOT}#{extra.package} -- {extra.commands[0]}")
        else:
            assert "nix run" not in fix and f"python[{name}]" in fix
    fix = str(_find(results, "tritonserver").fix)
    assert fix.startswith(f"nix build {ROOT}#tritonserver" if is_nix else "enginix tritonserver -o")


def test_words_of_a_fix_stay_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "nix run github:enginix/enginix#enginix-edgellm -- edgellm-export"
    result = CheckResult("extra edgellm", "absent", "onnx missing", "edgellm-export", command)
    monkeypatch.setattr(machine_checks, "run_checks", lambda **_: [result])
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["doctor", "--offline"]) == 0
    assert set(command.split()) <= set(capsys.readouterr().out.split())


def test_lines_fit_the_terminal_and_paths_stay_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = f"/nix/store/{'0' * 32}-python3-gateway/bin/python3"
    results = [
        CheckResult("extra gateway", "ok", f"litellm 1.104.5 of {path}", "up"),
        CheckResult(
            "GPU and driver", "absent", "none", "kinds tensorrt, llmapi, edgellm; --device cuda", path
        ),
    ]
    monkeypatch.setattr(machine_checks, "run_checks", lambda **_: results)
    for columns in ("80", "72"):
        monkeypatch.setenv("COLUMNS", columns)
        assert main(["doctor", "--offline"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= int(columns)
        assert len([line for line in lines if line.endswith(path)]) == 2
    monkeypatch.delenv("COLUMNS")
    assert main(["doctor", "--offline"]) == 0
    assert f"litellm 1.104.5 of {path}" in capsys.readouterr().out
