"""Answers that end too early, servers that end within one, checkpoints without verdicts: none passes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from enginix import manifest
from enginix.errors import GateError, ManifestError
from enginix.evaluation.engine_judgement import answer_metrics, gated_engine
from enginix.evaluation.engine_judgement.answer_record import GreedyAnswer
from enginix.kinds.edgellm import edgellm_asker
from enginix.ports import choose_loopback_port

# A server that promises more of an answer than it sends.
SERVER = """
import socket, sys
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listening:
    while True:
        connection, _ = listening.accept()
        with connection:
            asked = connection.recv(65536).decode()
            ready = asked.startswith("GET")
            length = 2 if ready else 1000
            connection.sendall(f"HTTP/1.1 200 OK\\r\\nContent-Length: {length}\\r\\n\\r\\n{{}}".encode())
"""


def _greedy(tokens: list[int], finish: str, limit: int) -> Any:
    text = SimpleNamespace(tokens=(5, 6, 7))
    ours = (GreedyAnswer(tuple(tokens), finish),)
    said: Any = SimpleNamespace(runs={"batch": ours, "replies": ()}, limit=limit)
    asked: Any = SimpleNamespace(prompts=(text,), questions=(), continued=4, answered=4)
    answers: Any = SimpleNamespace(ends=frozenset({0}), continuations=((1, 2, 3, 4),), replies=())
    return answer_metrics.judge_greedy(said, asked, answers, {"top1": 0.9})


def test_an_answer_that_was_cut_short_is_not_the_references() -> None:
    assert _greedy([1, 2, 3, 4], "length", 100).passed
    assert not _greedy([1, 2], "length", 100).passed, "two tokens, and four were asked for"
    assert _greedy([1, 2], "length", 5).passed, "the engine takes no more"


@pytest.mark.parametrize("verdicts", [{}, "not gated", None, {"logits": "failed"}])
def test_a_checkpoint_without_verdicts_is_not_gated(tmp_path: Path, verdicts: Any) -> None:
    inputs = {"checkpoint": {"manifestSha256": "0" * 64}}
    made = manifest.Manifest("engine", "tiny", "tensorrt", inputs=inputs)
    tmp_path.joinpath("gated").mkdir()
    manifest.Manifest("engine", "tiny", "reference", inputs=inputs, results={"gates": verdicts}).write(
        tmp_path / "gated"
    )
    with pytest.raises(ManifestError, match="its gates did not pass"):
        gated_engine.read_checkpoint_verdicts(made, tmp_path / "gated")


def test_a_server_that_ends_within_an_answer_is_named(tmp_path: Path) -> None:
    port = choose_loopback_port()
    command: Any = SimpleNamespace(
        words=(sys.executable, "-c", SERVER, str(port)), environment=dict(os.environ)
    )
    with (
        edgellm_asker._run_server(command, tmp_path / "log", port, "key", 20) as ask_one,
        pytest.raises(GateError, match=r"the server is gone: (IncompleteRead|.*reset by peer)"),
    ):
        ask_one("text", 4, 2)
