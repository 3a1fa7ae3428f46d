"""A server of an engine that was not gated says so at start."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from enginix import manifest
from enginix.cli import main
from enginix.errors import ManifestError
from enginix.kinds.triton_repository.repository import build_triton_repository
from enginix.serve import preflight
from manifests import edit_manifest

SAYS = "note: not gated: the engine's answers were not compared with the model's"


@pytest.fixture
def check(
    tritonserver: Any, serving_python: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[[Path], str]:
    """Return the standard error of ``enginix serve --check``: the start, without the server."""

    def run(repository: Path) -> str:
        ports = [word for name in ("http", "grpc", "metrics") for word in (f"--{name}-port", "0")]
        where = ["--tritonserver", str(tritonserver.directory), "--python", str(serving_python)]
        assert main(["serve", str(repository), *where, *ports, "--check"]) == 0
        return capsys.readouterr().err

    return run


@pytest.mark.slow
def test_the_server_of_an_engine_without_gates_says_so(
    check: Callable[[Path], str],
    tritonserver: Any,
    served_engine: Path,
    served_repository: Path,
    tmp_path: Path,
) -> None:
    assert manifest.read_manifest(served_engine).results["gates"] == "not gated"
    assert manifest.read_manifest(served_repository).results["gates"] == "not gated"
    assert SAYS in check(served_repository)
    gated = shutil.copytree(served_repository, tmp_path / "gated", symlinks=True)
    edit_manifest(gated, lambda m: m["results"].update(gates={"logits": "passed"}))
    with pytest.raises(ManifestError, match=r"results\.gates is not that of its engine"):
        preflight.check_repository(gated, tritonserver)
    engine = shutil.copytree(served_engine, tmp_path / "engine", symlinks=True)
    edit_manifest(engine, lambda m: m["results"].update(gates={"logits": "passed"}))
    build_triton_repository(engine, tmp_path / "repository")
    assert "gate" not in check(tmp_path / "repository")


@pytest.mark.parametrize(
    ("gates", "said"),
    [
        ({"logits": "passed"}, None),
        ({"task": "passed", "checkpoint": {"logits": "passed"}, "manifestSha256": "a"}, None),
        ({"checkpoint": {"logits": "passed"}, "manifestSha256": "a"}, "the checkpoint was compared"),
        ({"task": "failed", "smoke": "passed"}, "gate task did not pass"),
        ({"task": None}, "gate task did not pass"),
        ({"manifestSha256": "a"}, "names no gate"),
        ("not gated", "answers were not compared"),
        ({}, "answers were not compared"),
        (None, "answers were not compared"),
        (["passed"], "answers were not compared"),
        (True, "answers were not compared"),
    ],
)
def test_only_gates_that_passed_are_silent(gates: Any, said: str | None) -> None:
    found = manifest.explain_ungated(manifest.Manifest("engine", "e", "reference", results={"gates": gates}))
    assert found is None if said is None else said in str(found)


def test_a_manifest_without_verdict_is_not_gated() -> None:
    assert "not gated" in str(manifest.explain_ungated(manifest.Manifest("engine", "e", "reference")))
