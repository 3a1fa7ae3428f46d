"""enginix compare: every kind says what its own tables say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginix.cli import main
from enginix.errors import EnginixError
from enginix.kinds.registry import KIND_NAMES
from enginix.report.kinds import ComparedModel, compare_kinds, read_compared_model
from enginix.tables import load_table

ROOT = Path(__file__).resolve().parents[3]
TINY = ROOT / "tests/models/tiny-qwen3"
GPUS = load_table("gpus")["gpus"]


def test_directory_and_lock_say_the_same() -> None:
    ours, pinned = read_compared_model(TINY), read_compared_model(ROOT / "tests/models/tiny-qwen3.lock.json")
    assert (ours.architecture, ours.quantization, ours.weights) == (
        pinned.architecture,
        pinned.quantization,
        pinned.weights,
    )


@given(
    architecture=st.sampled_from(
        [
            *load_table("architectures")["architectures"],
            *load_table("edgellm")["architectures"],
            "UnknownForCausalLM",
            None,
        ]
    ),
    quantization=st.sampled_from([*load_table("number_formats")["algorithms"], None, "OWN"]),
    target=st.sampled_from([*GPUS, None]),
)
def test_every_model_gets_a_row_a_kind(
    architecture: str | None, quantization: str | None, target: str | None
) -> None:
    rows = compare_kinds(ComparedModel("m", architecture, quantization, "bfloat16", 1000), target)
    assert [row.kind for row in rows] == list(KIND_NAMES)
    for row in rows:
        assert (row.takes is False) == bool(row.why) or row.takes is None
        if target and row.takes and row.targets is not None:
            assert target in row.targets
        json.dumps(row.as_json())


def test_edgellm_runs_where_the_wheel_has_a_payload() -> None:
    row = {r.kind: r for r in compare_kinds(ComparedModel("m", "Qwen3ForCausalLM", None, "bfloat16", 1000))}[
        "edgellm"
    ]
    sms = {p["sm"] for p in load_table("edgellm")["payloads"]}
    assert row.targets is not None
    assert set(row.targets) == {name for name, gpu in GPUS.items() if gpu["sm"] in sms}


@pytest.mark.parametrize(
    ("quantization", "target", "runs"),
    [
        ("W4A16_NVFP4", "h200", False),
        ("W4A8_MXFP4_FP8", "h200", True),
        ("FP8_BLOCK_SCALES", "l40s", True),
        ("FP8", "a10", False),
    ],
)
def test_llmapi_runs_where_evaluation_lets_it(quantization: str, target: str, runs: bool) -> None:
    row = {r.kind: r for r in compare_kinds(ComparedModel("m", "Qwen3ForCausalLM", quantization, None, 9))}[
        "llmapi"
    ]
    assert row.targets is not None and (target in row.targets) == runs


def test_what_nobody_takes_is_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["NobodyKnows"]}')
    assert main(["compare", str(tmp_path)]) == 1
    assert "NobodyKnows" in capsys.readouterr().out


def test_a_model_that_names_no_architecture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert main(["compare", str(tmp_path)]) == 1
    text = capsys.readouterr().out
    assert text.count("the model names no architecture") == 3 and "None " not in text


def test_text_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(TINY), "--target", "h200"]) == 0
    text = capsys.readouterr().out
    assert all(f"{kind}: " in text for kind in KIND_NAMES) and "h200 is SM 90" in text
    assert main(["compare", str(TINY), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["kinds"]) == len(KIND_NAMES)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"architectures": 3}', b"\xff", b'{"quantization_config": 1}']
)
def test_garbage_is_an_error_or_nobody(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    try:
        rows = compare_kinds(read_compared_model(tmp_path))
    except EnginixError:
        return
    assert not any(row.takes for row in rows)


def test_facts_of_a_lock_that_are_no_text(tmp_path: Path) -> None:
    lock = json.loads((ROOT / "tests/models/tiny-qwen3.lock.json").read_text())
    lock["model"].update(architecture=["Qwen3ForCausalLM"], quantization={"algo": "FP8"}, dtype=[])
    (tmp_path / "x.lock.json").write_text(json.dumps(lock))
    assert not any(row.takes for row in compare_kinds(read_compared_model(tmp_path / "x.lock.json")))


def test_unknown_target() -> None:
    assert main(["compare", str(TINY), "--target", "h2000"]) == 2
