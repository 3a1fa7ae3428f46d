"""How the programs of Nix builds end: as the command does, with one line that names a fix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from enginix.errors import GateError
from enginix.kinds.asking import asker_main
from enginix.kinds.tensorrt.build import build_main

ASK = ["ask", "--model", "m", "--out", "o"]
MACHINE = ["machine", "--request", "r", "--rootfs", "f"]
PROGRAMS = [(asker_main.main, "_write_questions", ASK), (build_main.main, "check_build_machine", MACHINE)]


@pytest.mark.parametrize(("main", "inside", "words"), PROGRAMS)
def test_errors_and_bugs_have_their_exit_codes(
    main: Callable[..., int],
    inside: str,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = asker_main if main is asker_main.main else build_main

    def fails(e: Exception) -> Callable[..., None]:
        def run(*_: object) -> None:
            raise e

        return run

    monkeypatch.delenv("ENGINIX_TRACEBACK", raising=False)
    monkeypatch.setattr(module, inside, fails(GateError("nothing was asked", fix="ask")))
    assert main(words) == 1
    assert capsys.readouterr().err == "error: nothing was asked\n  fix: ask\n"
    monkeypatch.setattr(module, inside, fails(ZeroDivisionError("x")))
    assert main(words) == 70
    told = capsys.readouterr().err
    assert told.startswith(
        "error: unexpected ZeroDivisionError: x\n  fix: run again with ENGINIX_TRACEBACK=1"
    )
    monkeypatch.setenv("ENGINIX_TRACEBACK", "1")
    assert main(words) == 70
    assert Path(__file__).name in capsys.readouterr().err
