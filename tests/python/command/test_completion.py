"""Completion by the shells themselves, and the lines that name the next command."""

from __future__ import annotations

import argparse
import importlib
import io
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from enginix import cli, console
from enginix.cli import command_table
from enginix.cli.shell.completion import render_completion

ROOT = Path(__file__).parents[3]
# What is typed → what is offered, among others.
TYPED = {
    "enginix quan": "quantize",
    "enginix up --kin": "--kind",
    "enginix up --kind re": "reference",
    "enginix plan --target h200-": "h200-nvl",
    "enginix runtime pre": "predict",
    "enginix runtime pin --syst": "--system",
    "enginix completion fi": "fish",
    "enginix help qua": "quantize",
}


def _ask_bash(script: Path, typed: str) -> list[str]:
    words = shlex.join(typed.split(" "))
    code = (
        f"source {script}; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); "
        '_shtab_enginix; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split("\n")


def _ask_fish(script: Path, typed: str) -> list[str]:
    code = f"source {script}; complete -C '{typed}'"
    done = subprocess.run(["fish", "--no-config", "-c", code], capture_output=True, text=True, check=True)
    return [line.split("\t")[0] for line in done.stdout.split("\n")]


@pytest.mark.parametrize(("shell", "ask"), [("bash", _ask_bash), ("fish", _ask_fish)])
def test_the_shell_offers(shell: str, ask: object, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = tmp_path / "script"
    script.write_text(render_completion(shell))
    for typed, offered in TYPED.items():
        assert offered in ask(script, typed), typed  # type: ignore[operator]


def test_zsh_parses_the_script(tmp_path: Path) -> None:
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    (tmp_path / "_enginix").write_text(render_completion("zsh"))
    subprocess.run(["zsh", "-n", str(tmp_path / "_enginix")], check=True)


def test_every_option_of_every_command_is_offered() -> None:
    bash, zsh, fish = (render_completion(shell) for shell in ("bash", "zsh", "fish"))
    for name, (module, _) in command_table.COMMANDS.items():
        offered = re.search(rf"^_shtab_enginix_{name.replace('-', '_')}_option_strings=\((.*)\)$", bash, re.M)
        if name in command_table.INTERNAL_COMMANDS:
            assert offered is None
            continue
        assert offered is not None, name
        parser = argparse.ArgumentParser()
        importlib.import_module(f"enginix.cli.{module}").add_arguments(parser)
        for action in parser._actions:
            if action.help is argparse.SUPPRESS:
                continue
            for option in action.option_strings:
                flag = f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
                assert option in offered[1].split() and re.search(rf"[{{\",*)]{option}[,}}[]", zsh), name
                assert re.search(rf"'_shtab_enginix_using {name}.* {flag} ", fish), name


def test_colour_is_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = "error: no such file"
    assert console._colour_prefix(text, Terminal()) == "\x1b[1;31merror:\x1b[0m no such file"  # type: ignore[arg-type]
    assert console._colour_prefix("errors: 3", Terminal()) == "errors: 3"  # type: ignore[arg-type]
    assert console._colour_prefix(text, io.StringIO()) == text
    monkeypatch.setenv("NO_COLOR", "1")
    assert console._colour_prefix(text, Terminal()) == text  # type: ignore[arg-type]


def test_tables_fit_eighty_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert cli.main(["target"]) == 0
    assert cli.main(["runtime", "list"]) == 0
    assert cli.main(["compare", str(ROOT / "tests/models/tiny-qwen3.lock.json")]) == 0
    assert [line for line in capsys.readouterr().out.split("\n") if len(line) > 80] == []


def test_completion_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "bash", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["script"].rstrip().endswith("-F _shtab_enginix enginix")
