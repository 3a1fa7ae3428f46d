"""Commands that judge the same model and kind agree: plan, compare, convert, build's refusals, evaluation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from family_models import MODELS

from enginix.checkpoint.convert import ConvertOptions, derive_conversion_spec
from enginix.cli import main
from enginix.errors import EnginixError
from enginix.inspect import open_model
from enginix.kinds.planning.checkpoint_refusal import find_checkpoint_refusal
from enginix.kinds.planning.plan_record import PlanRequest
from enginix.kinds.planning.planner import plan_memory
from enginix.kinds.registry import KIND_NAMES, find_kind
from enginix.machine.target import find_gpu
from enginix.model.engine_classes import explain_no_engine_class
from enginix.reference.config import ARCHITECTURES, parse_executor_config
from enginix.report.kinds import compare_kinds, read_compared_model
from golden import conversions
from nix_evaluation import check, needs_nix

FAMILIES = dict(MODELS)
for _case in conversions():
    if not (_case.model / "hf_quant_config.json").exists():
        _raw = json.loads((_case.model / "config.json").read_text())
        FAMILIES.setdefault(_raw["architectures"][0], _case.model)
# A GPU that each kind runs on.
TARGETS = dict.fromkeys(KIND_NAMES, "h200") | {"edgellm": "rtx-5090", "rtx": "rtx-5090"}


def is_planned(model: Path, kind: str) -> bool:
    request = PlanRequest(kind=kind, max_seq_len=16, max_input_len=8 if kind == "edgellm" else None)
    with open_model(str(model)) as inspected:
        return plan_memory(inspected, find_gpu(TARGETS[kind]), request).fits


def is_converted(model: Path, kind: str) -> bool:
    """Return whether ``enginix convert --kind`` takes a model, without its weights' values."""
    try:
        if find_checkpoint_refusal(kind, model) is not None:
            return False
        derive_conversion_spec(model, ConvertOptions(kind=kind), headers_only=True)
    except EnginixError:
        return False
    return True


@pytest.mark.parametrize("kind", KIND_NAMES)
@pytest.mark.parametrize("architecture", sorted(FAMILIES))
def test_plan_compare_and_convert_agree(architecture: str, kind: str) -> None:
    model = FAMILIES[architecture]
    planned = is_planned(model, kind)
    row = next(r for r in compare_kinds(read_compared_model(model), TARGETS[kind]) if r.kind == kind)
    assert (row.takes is not False) == planned, (row.why, planned)
    if kind in ("tensorrt", "reference"):
        assert is_converted(model, kind) == planned


# Of kind llmapi no table tells what its runtime makes of a value.
JUDGING_KINDS = sorted({*KIND_NAMES} - {"llmapi"})
# Of one Llama: a change of config.json, and the kinds that still take it.
CHANGES: dict[str, tuple[dict[str, object], set[str]]] = {
    "none": ({}, {*JUDGING_KINDS}),
    "activation": ({"hidden_act": "gelu"}, set()),
    "two names": ({"architectures": ["LlamaForCausalLM", "MistralForCausalLM"]}, set()),
    "another class": ({"architectures": ["Qwen3ForCausalLM"]}, set()),
    "dtype of integers": ({"dtype": "int8"}, set()),
    "dtype of eight bytes": ({"dtype": "float64"}, set()),
    "no layers": ({"num_hidden_layers": 0}, set()),
    "width as text": ({"intermediate_size": "256"}, set()),
    "key-value heads": ({"num_key_value_heads": 3}, set()),
    "epsilon of zero": ({"rms_norm_eps": 0}, {"tensorrt"}),
    "negative epsilon": ({"rms_norm_eps": -1e-6}, set()),
    "multiplier": ({"embedding_multiplier": 2}, set()),
}


@pytest.mark.parametrize("kind", JUDGING_KINDS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_configuration_has_one_verdict(change: str, kind: str, tmp_path: Path) -> None:
    model = shutil.copytree(FAMILIES["LlamaForCausalLM"], tmp_path / "model")
    changed, takers = CHANGES[change]
    raw = json.loads((model / "config.json").read_text()) | changed
    (model / "config.json").write_text(json.dumps(raw))
    try:
        planned = is_planned(model, kind)
    except EnginixError:
        planned = False
    row = next(r for r in compare_kinds(read_compared_model(model), TARGETS[kind]) if r.kind == kind)
    assert (row.takes is not False, planned) == (kind in takers, kind in takers), row.why
    if kind in ("tensorrt", "reference"):
        assert is_converted(model, kind) == planned


def has_advice(text: str, kind: str) -> bool:
    return f"kind {kind}" in text or f"{kind} kind" in text


@pytest.mark.parametrize("architecture", sorted({*FAMILIES, "NovelForCausalLM"} - set(ARCHITECTURES)))
def test_the_executor_proposes_the_kinds_that_plan_takes(architecture: str) -> None:
    with pytest.raises(EnginixError, match="unknown to the reference executor") as e:
        parse_executor_config({"architecture": architecture}, "config.json")
    for kind in ("tensorrt", "llmapi"):
        takes = find_kind(kind).judge_model(architecture, None).takes is not False
        assert has_advice(str(e.value.fix), kind) == takes, e.value.fix


@pytest.mark.parametrize(
    ("architecture", "kind", "status"),
    [
        ("DbrxForCausalLM", "reference", 3),
        ("RecurrentGemmaForCausalLM", "reference", 3),
        ("DeepseekV2ForCausalLM", "tensorrt", 3),
        ("DeepseekV2ForCausalLM", None, 0),
        ("DbrxForCausalLM", "tensorrt", 0),
        ("OPTForCausalLM", "reference", 0),
    ],
)
def test_convert_ends_as_plan_does(
    architecture: str, kind: str | None, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = FAMILIES[architecture], tmp_path / "checkpoint"
    assert main(["convert", str(model), "-o", str(out), *(["--kind", kind] if kind else [])]) == status
    assert out.exists() == (status == 0)
    err = capsys.readouterr().err
    planned = main(["plan", str(model), "--target", "h200", "--kind", kind or "tensorrt", "--json"])
    obstacles = json.loads(capsys.readouterr().out)["obstacles"]
    assert (planned == 0) == (not obstacles)
    assert all(obstacle in err for obstacle in obstacles)
    if kind is not None:
        assert (planned == 0) == (status == 0)


@needs_nix
def test_evaluation_judges_architectures_as_the_tables_of_the_commands() -> None:
    names = sorted({*FAMILIES, "NovelForCausalLM"})
    texts = " ".join(f'"{name}"' for name in names)
    try_each = "accepts = e: (builtins.tryEval (builtins.deepSeq e true)).success;"
    evaluated = check(
        f"let {try_each} in map (name: {{ "
        'engine = accepts (check.target.architecture "e" name); hasEngine = check.target.hasEngine name; '
        "computed = check.checkpoint.isComputed name; "
        'released = accepts (check.llmapiAdvice.requireClass "e" name "1.2.1"); '
        'later = accepts (check.llmapiAdvice.requireClass "e" name "1.3.0rc20"); '
        f"}}) [ {texts} ]"
    )
    for name, verdict in zip(names, evaluated, strict=True):
        has_engine = explain_no_engine_class(name) is None
        has_class = find_kind("llmapi").judge_model(name, None).takes is not False
        # Of unknown names the table says nothing: their conversion is refused.
        computed = find_kind("reference").judge_model(name, None).takes or name == "NovelForCausalLM"
        assert verdict == {
            "computed": computed,
            "engine": has_engine,
            "hasEngine": has_engine,
            "released": has_class,
            "later": True,
        }, name
