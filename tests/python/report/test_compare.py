"""enginix compare: every kind says what its own tables say."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginix.cli import main
from enginix.errors import EnginixError, UsageError
from enginix.kinds.edgellm.memory_plan import find_edgellm_obstacles
from enginix.kinds.planning.checkpoint_refusal import LOCK_LACKS_VALUES
from enginix.kinds.planning.obstacles import find_format_obstacles, find_model_obstacles
from enginix.kinds.planning.plan_record import PlanRequest
from enginix.kinds.planning.planner import check_plan_request
from enginix.kinds.registry import KIND_NAMES, find_kind, list_kinds
from enginix.kinds.rtx_planning.memory_plan import find_rtx_obstacles
from enginix.machine.gpu_table import TargetGpu, find_gpu
from enginix.memory_plan.arithmetic import ModelSizes
from enginix.model.family_rows import list_family_rows
from enginix.report.artefacts import Artefact
from enginix.report.comparison.artefact_comparison import compare_artefacts
from enginix.report.comparison.page import render_comparison_page
from enginix.report.comparison.text import render_comparison_text
from enginix.report.gate_figures import GateFigures
from enginix.report.kinds import ComparedModel, KindRow, compare_kinds, read_compared_model
from enginix.report.model_origin import ModelOrigin
from enginix.run_log import ArtefactRun
from enginix.runtime.preflight import check_pipeline
from enginix.tables import load_table

ROOT = Path(__file__).resolve().parents[3]
TINY = ROOT / "tests/models/tiny-qwen3"
GPUS = load_table("gpus")["gpus"]
ALGORITHMS = load_table("number_formats")["algorithms"]


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
        assert (row.takes is False) == bool(set(row.why) - {LOCK_LACKS_VALUES}) or row.takes is None
        if target and row.takes and row.targets is not None:
            assert target in row.targets
        json.dumps(asdict(row))


def test_edgellm_runs_where_the_wheel_has_a_payload() -> None:
    row = {r.kind: r for r in compare_kinds(ComparedModel("m", "Qwen3ForCausalLM", None, "bfloat16", 1000))}[
        "edgellm"
    ]
    payloads = {(p["sm"], p["system"]) for p in load_table("edgellm")["payloads"]}
    assert row.targets is not None
    # Grace and Jetson have an ARM CPU; every other GPU is a board for either CPU.
    systems = {"grace": ["aarch64-linux"], "jetson": ["aarch64-linux"]}
    assert set(row.targets) == {
        name
        for name, gpu in GPUS.items()
        if any(
            (gpu["sm"], s) in payloads for s in systems.get(gpu["part"], ["aarch64-linux", "x86_64-linux"])
        )
    }
    assert "b200" in row.targets and "gb200" not in row.targets and "gb10" in row.targets
    (reason,) = find_edgellm_obstacles("Qwen3ForCausalLM", "NO_QUANT", find_gpu("gb200"))
    assert "no payload for SM 100 on aarch64 (gb200)" in reason
    assert 'use kind "tensorrt" or "llmapi" or "reference"' in reason


@pytest.mark.parametrize("kind", [k for k in KIND_NAMES if k != "reference"])
@pytest.mark.parametrize(
    "target", ["t4", "gtx-1660", "jetson-t5000", "gb200", "vr200", "h200", "l40s", "sm87-65gb"]
)
def test_a_refusal_names_kinds_that_do_run(kind: str, target: str) -> None:
    rows = {
        row.kind: row
        for row in compare_kinds(ComparedModel("m", "Qwen3ForCausalLM", None, "bfloat16", 1), target)
    }
    running = [name for name in KIND_NAMES if rows[name].takes is not False]
    if kind not in running:
        assert (
            rows[kind]
            .why[0]
            .endswith(
                f"(fix: use kind {' or '.join(f'{chr(34)}{k}{chr(34)}' for k in running)}, or another GPU)"
            )
        )


def test_sms_of_kinds_are_those_of_their_tables() -> None:
    kinds, systems = load_table("engine_kinds")["kinds"], ("x86_64-linux", "aarch64-linux")
    payloads = {s: {p["sm"] for p in load_table("edgellm")["payloads"] if p["system"] == s} for s in systems}
    assert {s: set(kinds["edgellm"]["sms"][s]) for s in systems} == payloads
    assert kinds["rtx"]["sms"]["x86_64-linux"] == load_table("rtx")["formats"]["taken"]["NO_QUANT"]
    sources = load_table("engine_kinds")["sources"]
    named = [row["sources"] for row in (*kinds.values(), *load_table("engine_kinds")["withoutTensorrtLlm"])]
    assert {key for row in named for key in row} == set(sources)


@settings(deadline=None)
@given(
    quantization=st.sampled_from(["NO_QUANT", *load_table("number_formats")["algorithms"]]),
    target=st.sampled_from([*GPUS, "sm87-65gb", "sm75-16gb", "sm120-12gb", "rtx-4090-48gb"]),
)
def test_plan_and_compare_agree_on_llmapi(quantization: str, target: str) -> None:
    model = ComparedModel("m", "Qwen3ForCausalLM", quantization, "bfloat16", 9)
    row = {row.kind: row for row in compare_kinds(model, target)}["llmapi"]
    sizes = ModelSizes(1, 1, 1, 1, 1, 1, 1, 1, quantization=quantization)
    obstacles = find_model_obstacles("llmapi", "Qwen3ForCausalLM", quantization)
    obstacles += find_format_obstacles(sizes, find_gpu(target), "llmapi")
    assert (row.takes is False) == bool(obstacles)


def judge(kind: str, architecture: str | None, quantization: str | None, **more: str) -> KindRow:
    model = ComparedModel("m", architecture, quantization, None, 9, **more)
    return {row.kind: row for row in compare_kinds(model)}[kind]


def test_what_another_converter_takes_is_left_to_the_tables(tmp_path: Path) -> None:
    config = {"architectures": ["BaiChuanForCausalLM"], "model_type": "baichuan"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    rows = {row.kind: row for row in compare_kinds(read_compared_model(tmp_path), "h200")}
    assert rows["tensorrt"].takes


@pytest.mark.parametrize("kind", ["tensorrt", "reference"])
def test_two_names_of_one_class_are_judged_alike(kind: str) -> None:
    aliases = {a: row["writtenAs"] for a, row in list_family_rows().items() if "writtenAs" in row}
    assert aliases["PhimoeForCausalLM"] == "PhiMoEForCausalLM"
    for alias, written in aliases.items():
        row, other = judge(kind, alias, None), judge(kind, written, None)
        assert (row.takes, row.targets) == (other.takes, other.targets)
        for name in (alias, written):
            with pytest.raises(UsageError, match="no pipeline"):
                check_pipeline(name, 2)


@pytest.mark.parametrize(
    ("quantization", "target", "runs"),
    [
        # By Marlin kernels, from TensorRT-LLM 1.3.0rc20 on; nothing before Ada has them.
        ("NVFP4", "h200", True),
        ("NVFP4", "l40s", True),
        ("NVFP4", "a100-80gb", False),
        ("NVFP4", "b200", True),
        # No code for Turing, Volta and Jetson.
        (None, "t4", False),
        (None, "v100-32gb", False),
        (None, "jetson-agx-orin-64gb", False),
        (None, "jetson-t5000", False),
        (None, "vr200", True),
        # TensorRT-LLM's hardware matrix: block-scaled FP8 from Hopper on, MXFP4 on Blackwell.
        ("W4A8_MXFP4_FP8", "h200", False),
        ("W4A8_MXFP4_FP8", "rtx-5090", True),
        ("FP8_BLOCK_SCALES", "l40s", False),
        ("FP8_BLOCK_SCALES", "h200", True),
        ("W4A16_MXFP4", "h200", True),
        # What the builder refuses on Blackwell is no matter of the PyTorch backend.
        ("W4A16_AWQ", "b200", True),
        ("FP8", "a10", False),
        (None, "a10", True),
        ("OWN", "a10", True),
    ],
)
def test_llmapi_runs_where_the_hardware_matrix_lets_it(
    quantization: str | None, target: str, runs: bool
) -> None:
    row = judge("llmapi", "Qwen3ForCausalLM", quantization)
    assert row.takes is None and row.targets is not None and (target in row.targets) == runs


@pytest.mark.parametrize("name", ALGORITHMS)
def test_llmapi_does_not_take_what_the_table_says_it_does_not(name: str) -> None:
    row = judge("llmapi", "Qwen3ForCausalLM", name)
    assert (row.takes is False) == (ALGORITHMS[name]["llmapi"] is False)
    assert row.takes is None or (row.targets == () and name in row.why[0])


@functools.cache
def find_target_gpus() -> dict[str, TargetGpu]:
    return {target: find_gpu(target) for target in GPUS}


@pytest.mark.parametrize("kind", [kind.name for kind in list_kinds()])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_compare_and_plan_agree_on_every_gpu(kind: str, name: str) -> None:
    row = judge(kind, "Qwen3ForCausalLM", name)
    sizes = ModelSizes(4, 8, 4, 32, 128, 512, 2048, 2048, quantization=name)
    of_model = find_model_obstacles(kind, "Qwen3ForCausalLM", name)
    for target, gpu in find_target_gpus().items():
        if kind == "edgellm":
            obstacles = of_model + find_edgellm_obstacles("Qwen3ForCausalLM", name, gpu)
        elif kind == "rtx":
            obstacles = find_rtx_obstacles("Qwen3ForCausalLM", sizes, gpu)
        else:
            obstacles = of_model + find_format_obstacles(sizes, gpu, kind)
        runs = row.takes is not False and (row.targets is None or target in row.targets)
        assert runs != bool(obstacles), (target, row, obstacles)


@pytest.mark.parametrize("kind", ["tensorrt", "reference"])
@pytest.mark.parametrize(
    ("architecture", "quantization", "method", "why"),
    [
        ("LlamaForCausalLM", "W4A16_GPTQ", None, "GPTQ's packing"),
        ("LlamaForCausalLM", "W4A8_QSERVE_PER_GROUP", None, "QServe's packing"),
        ("LlamaForCausalLM", "GPTQ", "gptq", "method gptq is not converted"),
        ("LlamaForCausalLM", "FP8", "fp8", "method fp8 is not converted"),
        ("LlamaForCausalLM", "FP8", "fp8-block", "block-scaled FP8"),
        ("LlamaForCausalLM", "OWN", None, "format OWN is not converted"),
        ("Gemma3ForCausalLM", None, None, "no converter takes Gemma3ForCausalLM"),
        ("ArcticForCausalLM", None, None, "is not converted"),
        ("CohereForCausalLM", "FP8", None, "takes CohereForCausalLM unquantized"),
        ("Gemma2ForCausalLM", "NVFP4", None, "takes Gemma2ForCausalLM in FP8, in W8A8_SQ_PER_CHANNEL"),
        ("MixtralForCausalLM", "W4A16_AWQ", None, "for dense models"),
    ],
)
def test_what_no_converter_takes_is_no_engine(
    kind: str, architecture: str, quantization: str | None, method: str | None, why: str
) -> None:
    row = judge(kind, architecture, quantization, **({"method": method} if method else {}))
    assert row.takes is False and any(why in reason for reason in row.why)


def test_a_checkpoint_that_no_supported_release_builds_is_no_engine() -> None:
    row = judge("tensorrt", "DeepseekV2ForCausalLM", None)
    assert row.takes is False and any("fused_q_proj" in reason for reason in row.why)
    assert judge("reference", "DeepseekV2ForCausalLM", None).takes is False


def test_an_architecture_of_another_converter_is_taken_unquantized() -> None:
    assert (
        judge("tensorrt", "GPT2LMHeadModel", None).takes and judge("tensorrt", "PhiForCausalLM", None).takes
    )
    assert judge("reference", "GPT2LMHeadModel", None).takes
    (why,) = judge("reference", "ChatGLMModel", None).why
    assert why == "the reference executor does not compute ChatGLMModel"
    assert judge("tensorrt", "GPT2LMHeadModel", "FP8").takes
    (why,) = judge("tensorrt", "BloomForCausalLM", "FP8").why
    assert why == "converter enginix takes BloomForCausalLM unquantized, and this one is FP8"


def test_what_nobody_takes_is_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["NobodyKnows"]}')
    assert main(["compare", str(tmp_path)]) == 1
    assert "NobodyKnows" in capsys.readouterr().out


def test_a_model_that_names_no_architecture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert main(["compare", str(tmp_path)]) == 1
    text = capsys.readouterr().out
    assert text.count("the model names no architecture") == 4 and "None " not in text


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


def test_only_kinds_with_stages_are_planned_with_a_pipeline() -> None:
    for kind in list_kinds():
        if kind.has_parallelism and not kind.has_pipeline:
            with pytest.raises(UsageError, match=f"kind {kind.name} has no pipeline stages"):
                check_plan_request(PlanRequest(kind=kind.name, pipeline_parallel=2))
        elif kind.has_pipeline:
            check_plan_request(PlanRequest(kind=kind.name, pipeline_parallel=2))
    assert [kind.name for kind in list_kinds() if kind.has_pipeline] == ["tensorrt"]


def test_a_misspelt_kind_gets_the_nearest() -> None:
    with pytest.raises(UsageError) as refused:
        find_kind("tensort")
    assert refused.value.fix == "did you mean tensorrt? known: tensorrt, llmapi, edgellm, rtx, reference"


def _make_artefact(name: str, **facts: Any) -> Artefact:
    rest = {"target": None, "kv_cache": None, "size": 1 << 20, "weights": None, "measured": None}
    return Artefact(name=name, **{"what": "reference engine", "format": "FP8", **rest, **facts})


def test_many_gpus_are_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(ROOT / "tests/models/tiny-qwen3")]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) < 160 and "GPUs that enginix target lists" in shown


def test_what_tells_artefacts_apart_is_said_once() -> None:
    origin = ModelOrigin(None, 64 * "a")
    alike = [
        _make_artefact("tiny", origin=origin),
        _make_artefact("tiny", origin=origin, what="checkpoint", target="h200"),
    ]
    first, second = render_comparison_text(compare_artefacts(alike)).splitlines()[1:3]
    assert first.startswith("tiny, reference engine  ") and second.startswith("tiny, checkpoint (for h200)  ")


def test_the_model_is_the_baseline_of_its_engines() -> None:
    model = ModelOrigin(None, 64 * "a")
    figures = GateFigures(
        "passed", ratio=1.01, perplexity=67.6, reference_perplexity=66.9, same=0.93, reference_score=37,
        score=36, questions=38, material="m", reference=model,
    )  # fmt: skip
    engine = _make_artefact("fp8", origin=model, measured=figures)
    baseline = _make_artefact("tiny", what="model", format="bfloat16", origin=model)
    other = _make_artefact("other", what="model", format="bfloat16", origin=ModelOrigin(None, 64 * "b"))
    ungated = _make_artefact("bf16", format="bfloat16", origin=model)
    rows = {a.name: a.measured for a in compare_artefacts([engine, baseline, other, ungated]).artefacts}
    assert rows["tiny"] is not None and rows["other"] is None and rows["bf16"] is None
    assert (rows["tiny"].verdict, rows["tiny"].ratio, rows["tiny"].same) == ("the reference", 1, 1)
    assert (rows["tiny"].perplexity, rows["tiny"].score, rows["tiny"].questions) == (66.9, 37, 38)


def test_builds_stand_side_by_side_and_fit_the_terminal() -> None:
    steps = ({"step": "gate task", "seconds": 2.5}, {"step": "gate task / answering", "seconds": 2.4})
    copied = ({"step": "writing", "seconds": 0.5, "bytesPerSecond": 3 << 20},)
    origin = ModelOrigin(None, 64 * "a")
    built = ArtefactRun("build", "2 processors", 26.66, 495 << 20, steps)
    rows = [
        _make_artefact("one", origin=origin, made=built),
        _make_artefact("two", origin=origin, made=ArtefactRun("convert", "2 processors", 0.7, None, copied)),
        _make_artefact("three", origin=origin),
    ]
    comparison = compare_artefacts(rows)
    text, wide = render_comparison_text(comparison, 80), render_comparison_text(comparison)
    assert max(map(len, text.split("\n"))) <= 80 < max(map(len, wide.split("\n")))
    lines = [line.split("  ") for line in text.split("\n")]
    shown = {line[0]: [cell.strip() for cell in line[1:] if cell] for line in lines}
    assert shown["made by"] == ["build", "convert", "not known"]
    assert shown["peak memory"] == ["495.0 MiB", "not known", "not known"]
    assert shown["gate task"] == ["2.5 s", "–", "not known"] and "gate task / answering" not in shown
    assert shown["writing"] == ["–", "0.5 s, 3.0 MiB/s", "not known"]
    assert "<h2>Builds</h2>" in render_comparison_page(comparison)
    assert "Builds" not in render_comparison_page(compare_artefacts(rows[2:]))
