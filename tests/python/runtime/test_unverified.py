"""A runtime that its user describes is told in every output about what is made for it.

One without Triton is refused where Triton is to serve.

The judges are the outputs themselves: text, JSON and page of each command.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginix.cli import main
from enginix.cli.serving.serve.report import describe_server
from enginix.errors import UsageError
from enginix.manifest import Manifest, explain_unverified, read_manifest
from enginix.report.html import render_gate_report
from enginix.runtime.table import find_runtime

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
    assert main(["triton-repo", str(engine), "-o", str(tmp_path / "r")]) == 2
    said = capsys.readouterr().err
    assert "the image of runtime trtllm-1.4.0rc1 has no Triton" in said
    assert "enginix runner ENGINE --rootfs ROOT" in said and "trtllm-1.1.0, trtllm-1.2.1" in said
    assert not (tmp_path / "r").exists()
    # Behind the gateway of enginix up is trtllm-serve, which needs no Triton.
    words = ["up", str(MODEL), "--kind", "llmapi", "--runtime", "trtllm-1.4.0rc1", "--dry-run"]
    assert main(words) == 0 and "triton-repo" not in capsys.readouterr().out
    words = ["up", str(MODEL), "--kind", "llmapi", "--runtime", "trtllm-1.4.0rc1", "--print-nix"]
    assert main(words) == 0 and "mkServe { inherit engine; }" in capsys.readouterr().out


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=6,
)
VALUES = JSON | st.sampled_from(["trtllm-1.2.1", "a.b/c:1.2.2", "a.b/c:v1.2.2-x", {"tensorrtLlm": "1.2.2"}])


@given(
    st.fixed_dictionaries({}, optional=dict.fromkeys(["like", "image", "versions", "id", "verified"], VALUES))
)
def test_any_description_is_taken_or_refused(described: dict[str, Any]) -> None:
    """Of a file, and of a manifest, which anybody may have written."""
    try:
        runtime = find_runtime(described)
    except UsageError as e:
        assert e.fix
        return
    assert runtime.is_verified or runtime.id == "trtllm-1.2.2-unverified"


def test_the_page_and_a_server_say_so() -> None:
    unverified = Manifest(
        artefact="triton-repository", name="m", runtime={"id": "x", "verified": False, **DESCRIBED}
    )
    warning = explain_unverified(unverified)
    assert warning is not None and TOLD in warning
    assert TOLD in render_gate_report("m", {"warning": warning})
    assert "Warning" not in render_gate_report("m", {})
    endpoints = SimpleNamespace(host="127.0.0.1", http=1, grpc=None, metrics=None)
    spec: Any = SimpleNamespace(endpoints=endpoints)
    assert describe_server(spec, unverified, 1.0, None)["warning"] == warning


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("1.2.1", "trtllm-1.2.1"),
        ("1.4.0rc0", "trtllm-1.4.0rc0"),
        ("trtllm-1.5.0", None),
        ("trtlm-1.2.1", "trtllm-1.2.1"),
    ],
)
def test_another_release_is_no_typing_error(name: str, meant: str | None) -> None:
    """Nothing near a release that the table does not have is meant by it; the fix says how to describe it."""
    with pytest.raises(UsageError, match="unknown runtime") as refusal:
        find_runtime(name)
    suggested = re.findall(r"did you mean (\S+)\?", refusal.value.fix or "")
    assert suggested == ([meant] if meant else [])
    assert "description" in (refusal.value.fix or "")
