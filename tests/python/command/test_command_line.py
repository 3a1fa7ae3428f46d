"""The command line itself: closed pipes, misspelt words, help, wording."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from enginix import cli, errors
from enginix.cli import command_parser, command_table
from enginix.help_text import fit_description
from enginix.wording import count_noun, with_article

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "python")}
RUNS = 20 if os.environ.get("ENGINIX_SLOW") else 1


def _shell(script: str) -> subprocess.CompletedProcess[str]:
    words = ["bash", "-c", f'set -o pipefail; enginix() {{ {sys.executable} -m enginix "$@"; }}; {script}']
    return subprocess.run(words, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "pipe",
    [
        "target | head -1",
        "target | true",
        "inspect tests/models/tiny-qwen3 --json | head -c 10",
        "inspect tests/models/tiny-qwen3 | head -1",
        "--help | true",
        "plan --help | head -1",
        "plan tests/models/tiny-qwen3 --target h200 | head -1",
        "compare tests/models/tiny-qwen3.lock.json | head -1",
        "inspect tests/models/none --json | true",
    ],
)
def test_a_closed_pipe_ends_quietly(pipe: str) -> None:
    done = _shell(f"for i in $(seq {RUNS}); do enginix {pipe} >/dev/null; echo $? >&2; done")
    said = done.stderr.split("\n")
    codes = {int(line) for line in said if line.isdigit()}
    # 3: the model that does not exist is an error all the same.
    assert codes <= {0, 141, 3} and len([line for line in said if line.isdigit()]) == RUNS
    assert not [line for line in said if "Broken" in line or "Traceback" in line or "unexpected" in line]


def test_a_closed_pipe_with_everything_buffered() -> None:
    """The reader is gone before the first byte."""
    done = _shell("(sleep 0.1; enginix target) | true; echo ${PIPESTATUS[0]}")
    assert done.stdout == "141\n" and "Broken" not in done.stderr


@pytest.mark.parametrize(
    "words", ["completion zsh", "plan tests/models/none --target h200 --json", "help target", "--version"]
)
def test_a_full_or_closed_output_is_one_error(words: str) -> None:
    for redirection in (">/dev/full", ">&-"):
        done = _shell(f"enginix {words} {redirection}")
        assert done.returncode == 5 and done.stderr.count("error: ") == 1, done.stderr
        assert "unexpected" not in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("words", ["completion zsh", "runtime predict"])
def test_a_closed_input_is_its_end(words: str) -> None:
    done = _shell(f"enginix {words} <&-")
    assert done.returncode == 0, done.stderr


def test_a_broken_pipe_elsewhere_is_no_quiet_end(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from enginix.cli.models import target

    def break_another(_: object) -> int:
        reading, writing = os.pipe()
        os.close(reading)
        return os.write(writing, b"x")

    monkeypatch.setattr(target, "run", break_another)
    assert cli.main(["target"]) == 70
    assert "BrokenPipeError" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (["locks"], "enginix lock"),
        (["convrt", "x"], "enginix convert"),
        (["verify_checkpoint"], "enginix verify-checkpoint"),
        (["zzzz"], "enginix --help"),
        (
            ["convert", "a", "-o", "b", "--tensor-paralel", "2"],
            "--tensor-parallel in place of --",
        ),
        (["serve", "a", "--tritonsever=x"], "--tritonserver in place of --tritonsever"),
        (["cache", "prune", "--kep", "2"], "--keep in place of --kep"),
        (["convert"], "enginix convert --help"),
        (["up", "x", "--kind", "referenc"], "did you mean reference? known: "),
        (["up", "x", "--kind=Reference"], "did you mean reference? known: "),
        (["build", "x", "--kind", "rtx-"], "did you mean rtx? known: "),
        (["quantize", "x", "-o", "y", "--format", "FP-8"], "did you mean fp8? known: "),
        (["convert", "x", "-o", "y", "--dtype", "bf16"], "did you mean bfloat16? known: "),
        (["runtime", "lst"], "did you mean list? known: "),
        (["completion", "bsh"], "did you mean bash? known: "),
        (["plan", "x", "--kv-cache", "fp-8"], "did you mean FP8? known: "),
        (["convert", "x", "-o", "y", "--dtype", "zzzz"], "known: bfloat16, float16, float32"),
    ],
)
def test_the_nearest_word_is_named(words: list[str], fix: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2 and f"fix: {fix}" in capsys.readouterr().err


def test_a_removed_command_names_what_replaces_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["openai-frontend", "--rootfs", "r"]) == 2
    error = capsys.readouterr().err
    assert "openai-frontend was removed" in error and "fix: enginix gateway" in error


@pytest.mark.parametrize(
    ("words", "code", "kind"),
    [
        (["locks", "--json"], 2, "usage"),
        (["convert", "--json"], 2, "usage"),
        (["cache", "prune", "--keep", "many", "--json"], 2, "usage"),
        (["lock", "--check", "none.json", "--json"], 3, "lock"),
    ],
)
def test_a_failure_is_one_json_object(
    words: list[str], code: int, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == code
    printed = json.loads(capsys.readouterr().out)
    assert (printed["error"], printed["exitCode"]) == (kind, code) and printed["what"]


@pytest.mark.parametrize(("raised", "code"), [(KeyboardInterrupt, 130), (ZeroDivisionError, 70)])
def test_an_interrupt_and_a_bug_are_json_too(
    raised: type[BaseException],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from enginix.cli.models import target

    def end_early(_: object) -> int:
        raise raised

    monkeypatch.setattr(target, "run", end_early)
    assert cli.main(["target", "--json"]) == code
    assert json.loads(capsys.readouterr().out)["exitCode"] == code


def test_json_of_another_program_is_not_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["runtime", "run", "none", "--", "tool", "--json"]) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("words", "first"), [(["fp8"], "up"), (["quantise"], None), (["speed"], "bench"), (["SPEED"], "bench")]
)
def test_help_finds_a_word(words: list[str], first: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    if first is None:
        assert cli.main(["help", *words]) == 2
        return
    assert cli.main(["help", "--json", *words]) == 0
    found = json.loads(capsys.readouterr().out)["commands"]
    assert found[0] == first and not set(found) & set(command_table.INTERNAL_COMMANDS)


@pytest.mark.parametrize(
    ("words", "what", "fix"),
    [
        (["up", "./none"], "./none: no such file or directory", "check the path"),
        (["inspect", "models/tiny.lock"], "models/tiny.lock: no such file or directory", "owner/name"),
        (["lock", "../x.json", "-o", "y"], "../x.json: no such file or directory", "check the path"),
        (
            ["inspect", "tests/models/tiny-qwen3/config.json"],
            "config.json: not a lock",
            "a model's directory",
        ),
        (["bench", "tests"], "tests: no enginix.json", "pass the output"),
        (["bench", "localhost"], "neither the directory of an engine nor an address", "http://host:port/v1"),
        (["chat", "--url", "localhost"], "is no address", "pass http://127.0.0.1:4000/v1"),
        (["reference", "tests", "--questions", "none", "-o", "x"], "none: no such file", "check the path"),
        (["gateway", "tests/models/tiny-qwen3/config.json"], "version is None, not 1", '"version": 1'),
        (["gateway", "none.json"], "unreadable", "enginix gateway --help"),
    ],
)
def test_a_mistake_is_told_apart(
    words: list[str], what: str, fix: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a path that is not there, nothing asks the Hub; a fix is one that this command takes."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert cli.main(words) in (2, 3)
    said = capsys.readouterr().err
    assert what in said and fix in said.partition("fix: ")[2]


def test_help_lists_every_exit_code() -> None:
    codes = {
        value for name, value in vars(errors).items() if name.startswith("EXIT_") and name != "EXIT_CODES"
    }
    assert codes == set(errors.EXIT_CODES)


@pytest.mark.parametrize(
    ("words", "start"), [(["help", "lock"], "usage: enginix lock"), (["help"], "usage: enginix COMMAND")]
)
def test_help_is_a_command(words: list[str], start: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 0 and capsys.readouterr().out.startswith(start)


def test_articles_and_numbers() -> None:
    nouns = "engine model FP8_checkpoint NVFP4 MIXED_PRECISION INT8 bfloat16 Aquila Qwen3"
    articles = [with_article(noun).split()[0] for noun in nouns.split()]
    assert articles == ["an", "a", "an", "an", "a", "an", "a", "an", "a"]
    assert [count_noun(n, "gate") for n in (0, 1, 2, 1500)] == ["0 gates", "1 gate", "2 gates", "1,500 gates"]


def test_an_artefact_of_another_stage(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from enginix.manifest import Manifest

    Manifest("model", "tiny").write(tmp_path)
    assert cli.main(["check", str(tmp_path)]) == 3
    assert "is a model, not an engine\n  fix: pass an engine" in capsys.readouterr().err


@pytest.mark.parametrize("command", sorted(command_table.COMMANDS))
def test_help_fits_a_terminal(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples are broken as a shell takes them: joined again, they are the words that were written."""
    for columns in ("80", None):
        # In a pipe there is neither a terminal nor $COLUMNS.
        monkeypatch.delenv("COLUMNS", raising=False)
        if columns is not None:
            monkeypatch.setenv("COLUMNS", columns)
        _check_width(command)


def test_the_overview_fits_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert [line for line in capsys.readouterr().out.splitlines() if len(line) > 80] == []


def _check_width(command: str) -> None:
    module = importlib.import_module(f"enginix.cli.{command_table.COMMANDS[command][0]}")
    text = command_parser.make_parser(command, module).format_help()
    assert [line for line in text.splitlines() if len(line) > 80] == []
    assert (module.__doc__ or "").split() == fit_description(module.__doc__ or "", 500).split()
    joined = fit_description(module.__doc__ or "", 80).replace(" \\\n", " ").split()
    assert joined == (module.__doc__ or "").replace(" \\\n", " ").split()


def test_an_option_and_its_value_stay_on_one_line() -> None:
    text = '  enginix gate ./engine --reference ./answers --gates \'{"task": {}, "smoke": {}}\'  judged'
    assert fit_description(text, 60).splitlines() == [
        "  enginix gate ./engine --reference ./answers \\",
        '      --gates \'{"task": {}, "smoke": {}}\'',
        "      judged",
    ]
