"""Wrong input of every command: its status is that of the table, and its fix names what mends it."""

from __future__ import annotations

import argparse
import importlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from enginix.cli import command_parser, command_table, main
from enginix.device import find_device
from enginix.errors import MachineError, UsageError
from enginix.gateway.launch import require_litellm
from enginix.gateway.spec import GatewaySpecError, parse_gateway_spec
from enginix.serve.tritonserver import find_tritonserver

ROOT = Path(__file__).parents[3]
MODEL = str(ROOT / "tests/models/tiny-qwen3")
CLOSED = "http://127.0.0.1:9"  # nothing listens there


def _list_numbers() -> Iterator[tuple[tuple[str, ...], argparse.Action]]:
    """Yield each option that takes a number, with the words of its command."""

    def walk(
        parser: argparse.ArgumentParser, words: tuple[str, ...]
    ) -> Iterator[tuple[tuple[str, ...], argparse.Action]]:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for verb, inner in action.choices.items():
                    yield from walk(inner, (*words, verb))
            elif action.type in (int, float):
                yield words, action

    for name, (module, _) in command_table.COMMANDS.items():
        parser = command_parser.make_parser(name, importlib.import_module(f"enginix.cli.{module}"))
        yield from walk(parser, (name,))


def test_a_number_that_says_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Of every option that takes one, before anything else is looked at."""
    numbers = list(_list_numbers())
    assert len(numbers) > 60
    for words, action in numbers:
        wrong = ["-1"] if action.dest in command_parser.ZERO_ALLOWED else ["-1", "0"]
        wrong += ["nan", "inf", "1e300"] if action.type is float else ["nan", "1.5"]
        for text in wrong:
            option = action.option_strings[0]
            assert main([*words, f"{option}={text}"]) == 2, (words, option, text)
            assert option in capsys.readouterr().err, (words, option, text)


def test_a_question_that_is_not_utf_8(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for errors in ("strict", "surrogateescape"):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hi\xff"), "utf-8", errors))
        assert main(["chat", CLOSED, "--model", "m"]) == 2
        assert "standard input: is not UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize("zero", sorted(command_parser.ZERO_ALLOWED))
def test_zero_is_a_number_of_some_options(zero: str) -> None:
    assert zero in {action.dest for _, action in _list_numbers()}


@pytest.mark.parametrize(
    "words",
    [
        ["chat", CLOSED],
        ["chat", "--url", f"{CLOSED}/v1"],
        ["chat", "127.0.0.1:9"],
        ["bench", CLOSED],
        ["bench", "127.0.0.1:9"],
        ["bench", CLOSED, "--model", "tiny"],
        ["ready", CLOSED, "--timeout", "0.01"],
        ["ready", CLOSED, "--timeout", "0.01", "--triton", "reference"],
    ],
)
def test_an_endpoint_that_is_down(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    assert main(words) == 4
    assert "fix: start it" in capsys.readouterr().err or words[1:] == [CLOSED, "--model", "tiny"]


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (["plan", MODEL, "--kind", "trt"], "did you mean tensorrt?"),
        (["plan", MODEL, "--target", "h201"], "did you mean h200?"),
        (["quantize", MODEL, "--fromat", "fp8", "-o", "x"], "--format in place of --fromat"),
        (["build", "x", "--knid", "reference"], "--kind in place of --knid"),
        (["pin", "qwen3-32b-nvfp5"], f"nix run {ROOT}#pin -- qwen3-32b-nvfp4"),
        (["runtime", "run", "--rotfs", "x"], "--rootfs in place of --rotfs"),
    ],
)
def test_the_nearest_value_is_named(words: list[str], fix: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert f"fix: {fix}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "fix"),
    [
        ({"kind": "opena"}, "did you mean openai?"),
        ({"ulr": "x"}, "did you mean url?"),
        ({"keyfile": "x"}, "did you mean keyFile?"),
    ],
)
def test_the_nearest_word_of_a_gateway(change: dict[str, str], fix: str) -> None:
    server = {"kind": "openai", "url": "http://h:1/v1", "model": "m", **change}
    with pytest.raises(GatewaySpecError, match=r"did you mean") as refused:
        parse_gateway_spec({"version": 1, "name": "g", "models": {"tiny": [server]}}, "bad.json")
    assert fix in (refused.value.fix or "")
    known = {"tiny": [{"kind": "openai", "url": "http://h:1/v1", "model": "m"}]}
    for more in ({"aliases": {"a": "tiyn"}}, {"strategy": "simple-shufle"}):
        with pytest.raises(GatewaySpecError, match="did you mean"):
            parse_gateway_spec({"version": 1, "name": "g", "models": known, **more}, "bad.json")


def test_a_gateway_python_that_does_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    for python, why in (("/bin/false", "is no Python that runs"), ("/bin", "cannot be started")):
        assert main(["gateway", "--check", str(ROOT / "none"), "--python", python]) in (3, 5)
        capsys.readouterr()
        with pytest.raises(MachineError, match=why) as refused:
            require_litellm(Path(python))
        assert "pip install" not in str(refused.value) and refused.value.fix


def test_a_directory_in_place_of_a_file_and_a_missing_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for output in (tmp_path, tmp_path / "none" / "file"):
        assert main(["bench", CLOSED, "--model", "m", "-o", str(output)]) == 2
        assert main(["bench", "--dataset", str(output)]) == 2
        assert main(["compare", MODEL, MODEL, "-o", str(output)]) == 2
    with pytest.raises(UsageError, match="no such device"):
        find_device("cud")
    with pytest.raises(UsageError, match="--tritonserver"):
        find_tritonserver(tmp_path / "none")
    assert main(["gate", str(tmp_path / "none"), "--reference", MODEL]) == 3
    assert "no such directory" in capsys.readouterr().err
