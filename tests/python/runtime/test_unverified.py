"""A runtime that its user describes is told in every output about what is made for it.

One without Triton is refused where Triton is to serve.

The judges are the outputs themselves: text, JSON and page of each command.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from enginix.cli import main
from enginix.manifest import read_manifest

ROOT = Path(__file__).resolve().parents[3]
MODEL = ROOT / "tests" / "models" / "tiny-qwen3"
TOLD = "is not verified by enginix: its user describes it, like trtllm-1.2.1"
DESCRIBED: dict[str, Any] = {
    "like": "trtllm-1.2.1",
    "image": "registry.example/tritonserver:26.12",
    "versions": {"tensorrtLlm": "1.2.2", "tritonServer": "2.76.0"},
}


def build_engine(folder: Path, runtime: str) -> Path:
    engine = folder / "engine"
    words = ["build", "--kind", "llmapi", "--model", str(MODEL), "--runtime", runtime, "-o", str(engine)]
    assert main([*words, "--no-gates"]) == 0
    return engine


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    description = tmp_path / "runtime.json"
    description.write_text(json.dumps(DESCRIBED))
    return build_engine(tmp_path, str(description))


def test_every_output_says_that_it_is_not_verified(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str) -> str:
        capsys.readouterr()
        assert main([*words]) == 0
        return capsys.readouterr().out

    repository, page = tmp_path / "repository", tmp_path / "compare.html"
    assert TOLD in run("triton-repo", str(engine), "-o", str(repository))
    assert read_manifest(repository).runtime["verified"] is False
    assert TOLD in run("verify", str(repository))
    assert TOLD in run("compare", str(engine), "-o", str(page))
    assert TOLD in page.read_text()
    again = json.loads(run("triton-repo", str(engine), "-o", str(tmp_path / "again"), "--json"))
    assert TOLD in again["warning"]
    checked = json.loads(run("verify", str(repository), "--json"))["artefacts"]
    assert checked and all(TOLD in artefact["warning"] for artefact in checked)
    compared = json.loads(run("compare", str(engine), "--json"))
    assert TOLD in compared["artefacts"][0]["warning"] and TOLD in compared["notes"][0]


def test_a_runtime_of_the_table_has_no_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = build_engine(tmp_path, "trtllm-1.2.1")
    for words in (["triton-repo", str(engine), "-o", str(tmp_path / "r")], ["compare", str(engine)]):
        assert main(words) == 0
    assert main(["verify", str(tmp_path / "r")]) == 0
    printed = capsys.readouterr()
    assert "not verified" not in printed.out + printed.err


def test_a_runtime_without_triton_has_no_repository(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = build_engine(tmp_path, "trtllm-1.4.0rc1")
    capsys.readouterr()
    for words in (
        ["triton-repo", str(engine), "-o", str(tmp_path / "r")],
        ["up", str(MODEL), "--kind", "llmapi", "--runtime", "trtllm-1.4.0rc1", "--dry-run"],
    ):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert "the image of runtime trtllm-1.4.0rc1 has no Triton" in said
        assert "enginix runner ENGINE --rootfs ROOT" in said and "trtllm-1.1.0, trtllm-1.2.1" in said
    assert not (tmp_path / "r").exists()
    words = ["up", str(MODEL), "--kind", "llmapi", "--runtime", "trtllm-1.4.0rc1", "--print-nix"]
    assert main(words) == 0 and "mkServe { inherit engine; }" in capsys.readouterr().out
