"""Each "next:" line is run as a user pastes it: the chain goes on, and no line is refused."""

from __future__ import annotations

import argparse
import os
import pty
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from enginix import next_command
from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.cli import main
from enginix.cli.command_table import COMMANDS
from enginix.manifest import Manifest, read_manifest
from environments import environment
from hub import Hub

ROOT = Path(__file__).parents[3]
MODEL = ROOT / "tests/models/tiny-qwen3"
NO_HOME = Path("/homeless-shelter")
Paste = Callable[[str], str]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.delenv("ENGINIX_TRITONSERVER", raising=False)
    return tmp_path


def _read_terminal(leader: int) -> str:
    parts = []
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # its other end is closed
            break
        if not part:
            break
        parts.append(part)
    return b"".join(parts).decode("utf-8", "replace")


@pytest.fixture
def paste(home: Path, monkeypatch: pytest.MonkeyPatch) -> Paste:
    """Runs a line in a shell at a terminal; returns the line that is named as the next, or nothing.

    ``serve`` ends after its answer, on free ports; ``build`` runs two gates, and has the home of a builder of
    Nix, which does not exist: nothing may want to write there.
    """
    (home / "bin").mkdir()
    shim = home / "bin/enginix"
    shim.write_text(
        '#!/bin/sh\ncase "$1" in serve) set -- "$@" --exit-after-ask --http-port 0 --no-grpc --no-metrics;; '
        'build) set -- "$@" --gates "{\\"files\\": {}, \\"logits\\": {}}"; '
        f"export HOME={NO_HOME}; unset XDG_CACHE_HOME XDG_DATA_HOME;; "
        f'esac\nexec {environment("runtime")}/bin/python3 -m enginix "$@"\n'
    )
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{home}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "python"))
    monkeypatch.setenv("NO_COLOR", "1")

    def run(line: str) -> str:
        leader, follower = pty.openpty()
        process = subprocess.Popen(["bash", "-c", line], cwd=home, stderr=follower, stdout=follower)
        os.close(follower)
        text = _read_terminal(leader)
        os.close(leader)
        assert process.wait() == 0, f"{line}\n{text}"
        lines = [part.strip() for part in text.replace("\r", "\n").split("\n")]
        return next((part.removeprefix("next: ") for part in lines[::-1] if part.startswith("next: ")), "")

    return run


def test_from_a_lock_to_an_answer(paste: Paste, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Taken names, and a lock without ".lock": a line must not name what exists.
    for name in ("checkpoint", "engine", "repository"):
        (home / name).mkdir()
        (home / name / "of the user").touch()
    monkeypatch.setenv("ENGINIX_TRITONSERVER", str(environment("tritonserver")))
    with Hub({"acme/Tiny-Qwen3": MODEL}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        line, commands = "enginix lock acme/Tiny-Qwen3 -o lock.json", []
        while line:
            commands.append(line.split()[1])
            line = paste(line)
    assert commands == ["lock", "fetch", "convert", "build", "triton-repo", "serve"]
    assert {path.name for path in home.iterdir()} > {"lock", "checkpoint-2", "engine-2", "repository-2"}
    gates = read_manifest(home / "engine-2").results["gates"]
    assert gates == {"files": "passed", "logits": "passed"} and not NO_HOME.exists()


def suggest_next(name: str, args: argparse.Namespace) -> str | None:
    modules = {command: f"enginix.cli.{module}" for command, (module, _) in COMMANDS.items()}
    return next_command.suggest_next(name, args, modules)


def _args(**values: object) -> argparse.Namespace:
    return argparse.Namespace(**{"quantize": None, "kind": "reference", "json": False, **values})


def test_a_tritonserver_is_made_before_it_is_needed(home: Path) -> None:
    Manifest("triton-repository", "tiny", kind="reference").write(_make(home / "repository"))
    line = suggest_next("triton-repo", _args(output=Path("repository")))
    assert line is not None and line.startswith("enginix tritonserver -o tritonserver && enginix serve ")


def _make(directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    return directory


def test_no_line_where_none_would_work(home: Path) -> None:
    """What a stage made cannot always be taken on, by what this machine and the command line know."""
    Manifest("triton-repository", "tiny", kind="tensorrt").write(_make(home / "repository"))
    assert suggest_next("triton-repo", _args(output=Path("repository"))) is None
    assert suggest_next("build", _args(output=Path("engine"), kind="edgellm")) is None
    shutil.copytree(MODEL, home / "model")
    config = home / "model/config.json"
    config.write_text(config.read_text().replace("Qwen3ForCausalLM", "UnknownForCausalLM"))
    lock = ROOT / "tests/models/tiny-qwen3.lock.json"
    assert suggest_next("fetch", _args(lock=lock, output=Path("model"))) is None
    assert suggest_next("fetch", _args(lock=lock, output=MODEL)) is not None
    # A model that was quantized: its checkpoint is compared with one that this command does not know.
    (home / "model/config.json").write_text((MODEL / "config.json").read_text())
    (home / "model/hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}')
    assert suggest_next("convert", _args(model=Path("model"), output=Path("checkpoint"))) is None
    assert suggest_next("verify", _args(output=Path("model"))) is None


def test_a_checkpoint_that_was_quantized_while_converting(home: Path) -> None:
    convert_model(MODEL, Path("checkpoint"), ConvertOptions(quantize="FP8_PER_CHANNEL_PER_TOKEN"))
    args = _args(model=MODEL, output=Path("checkpoint"), quantize="FP8_PER_CHANNEL_PER_TOKEN")
    line = suggest_next("convert", args)
    assert line is not None and f"--reference {MODEL}" in line


def test_a_small_package_names_no_command_that_it_leaves_out(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enginix.next_command.find_spec", lambda name: None if "build" in name else True)
    args = _args(model=MODEL, output=Path("checkpoint"))
    assert suggest_next("convert", args) is None


@pytest.mark.slow
def test_from_calibration_to_a_quantized_engine(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, whose environment has ModelOpt; the line of quantize is two commands."""
    import shlex

    def run(line: str) -> None:
        for part in line.split(" && "):
            assert main(shlex.split(part)[1:]) == 0, part

    run(f"enginix calibrate {MODEL} --size 16 -o calibration")
    line = suggest_next("calibrate", _args(model=MODEL, output=Path("calibration")))
    assert line is not None
    run(line)
    line = suggest_next("quantize", _args(model=MODEL, output=Path("tiny-qwen3-fp8")))
    assert line is not None and " && enginix build " in line
    run(line)
