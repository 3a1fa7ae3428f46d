"""Each file that a command reads, where it cannot be read: refused, never a failed check or a bug."""

from __future__ import annotations

import argparse
import importlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from enginix.cli import main
from enginix.cli.command_table import COMMANDS, INTERNAL_COMMANDS
from enginix.errors import EXIT_INPUT, EXIT_MACHINE, EXIT_USAGE
from enginix.manifest import Manifest

MODEL = Path(__file__).parents[2] / "models/tiny-qwen3"
# Command → words with which it would work, or gets as far as this machine lets it.
WORDS = {
    "up": "{model} --dry-run",
    "chat": "--url http://127.0.0.1:9/v1",
    "bench": "http://127.0.0.1:9/v1 --model m --requests 1",
    "lock": "--check {model}.lock.json",
    "fetch": "{model}.lock.json -o out",
    "fetch-tree": "acme/none " + "0" * 40 + " -o out",
    "check-facts": "{model} --repo a/b",
    "inspect": "{model}",
    "compare": "{model}",
    "target": "",
    "plan": "{model} --target h200",
    "calibrate": "{model} -o out --size 4",
    "quantize": "{model} --format int4_wo -o out",
    "convert": "{model} -o out",
    "verify-checkpoint": "checkpoint",
    "build": "checkpoint --kind reference --model {model} -o out",
    "reference": "{model} -o out",
    "gate": "engine --reference {model} --gates {{}}",
    "check": "engine",
    "verify": "engine",
    "sign": "engine --key none",
    "runner": "engine",
    "edgellm-export": "{model} -o out",
    "edgellm-build": "engine -o out",
    "edgellm-serve": "engine",
    "rtx-build": "checkpoint --model {model} -o out",
    "triton-repo": "engine -o out",
    "tritonserver": "-o out --wheel none",
    "serve": "engine",
    "gateway": "none",
}
# Commands without a file of their own at the top, and options that are read only where others are given:
# their own tests have them.
LEFT_OUT = ("doctor", "completion", "pin", "fetch-file", "runtime", "cache", "ready", "rollout")
UNREAD = {
    ("up", "gateway_python"), ("up", "tritonserver"), ("build", "reference"), ("build", "original"),
    ("build", "model"), ("gate", "said"), ("gate", "questions"), ("gate", "driver"), ("gate", "pin"),
    ("gate", "python"), ("gate", "original"), ("gate", "model"), ("gate", "reference"),
    ("gate", "gated_checkpoint"),
    ("gate", "interpreter"), ("up", "rootfs"), ("gate", "rootfs"), ("check", "driver"),
}  # fmt: skip
WRONG: dict[str, Callable[[Path], object]] = {
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 20),
    "empty": lambda path: path.touch(),
    "missing": lambda path: None,
    "directory": lambda path: path.mkdir(),
    "another JSON": lambda path: path.write_text("[1, 2]"),
    "too deep": lambda path: path.write_text("[" * 100_000),
    "a loop of links": lambda path: path.symlink_to(path.name),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_once: Callable[..., Path]) -> Path:
    checkpoint = made_once("read-checkpoint", lambda out: main(["convert", str(MODEL), "-o", str(out)]))
    monkeypatch.chdir(tmp_path)
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shutil.copytree(checkpoint, "checkpoint")
    shutil.copytree(checkpoint, "engine/checkpoint")
    Manifest("engine", "tiny", kind="reference").write(Path("engine"))
    return tmp_path


def _list_files(command: str) -> list[tuple[str, list[str]]]:
    """Return the arguments of a command that are paths which it reads, each with its words."""
    parser = argparse.ArgumentParser()
    importlib.import_module(f"enginix.cli.{COMMANDS[command][0]}").add_arguments(parser)
    words = WORDS[command].format(model=MODEL).split()
    found = []
    for action in parser._actions:
        if action.type is not Path or action.dest == "output" or (command, action.dest) in UNREAD:
            continue
        changed = list(words)
        if action.option_strings:
            option = action.option_strings[-1]
            if option in changed:
                changed[changed.index(option) + 1] = "wrong"
            else:
                changed += [option, *["wrong"] * (action.nargs if isinstance(action.nargs, int) else 1)]
        elif words and not words[0].startswith("-"):
            changed[0] = "wrong"
        else:
            changed.insert(0, "wrong")
        found.append((action.dest, changed))
    return found


def test_every_command_is_here() -> None:
    assert {*WORDS, *LEFT_OUT} == {*COMMANDS} and "fetch-file" in INTERNAL_COMMANDS


@pytest.mark.parametrize("command", WORDS)
def test_what_cannot_be_read_is_refused(command: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argument, words in _list_files(command):
        for how, make in WRONG.items():
            wrong = here / "wrong"
            shutil.rmtree(wrong) if wrong.is_dir() else wrong.unlink(missing_ok=True)
            make(wrong)
            capsys.readouterr()
            status = main([command, *words])
            error = capsys.readouterr().err
            assert status in (EXIT_INPUT, EXIT_MACHINE, EXIT_USAGE), f"{argument}, {how}: {status}\n{error}"
            assert "unexpected" not in error and "Traceback" not in error
