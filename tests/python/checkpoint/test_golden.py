"""Every conversion of the golden archive: TensorRT-LLM's own converter against ours."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from compare import INTENDED, Result, config_differences, intended, ours, tensor_differences
from golden_choice import choose_rows, mark_others_slow

import golden
from enginix.checkpoint.compare_with_model import CheckpointComparison
from enginix.checkpoint.verify import verify_checkpoint

CASES = golden.conversions()
SOUND = [c for c in CASES if c.ok and not c.defect]
OTHERS = [c for c in CASES if not c.ok or c.defect]


def list_features(case: golden.Conversion) -> list[tuple[object, ...]]:
    """Return what a choice of rows must have: every model, and every mapping in every format."""
    mapping = (case.tensor_parallel, case.pipeline_parallel, case.expert_parallel)
    return [(case.case,), (case.format, *mapping), (case.route, case.dtype, str(case.arguments))]


# Of each model the row with most ranks: it shows the cuts.
CHOSEN = choose_rows(sorted(SOUND, key=lambda c: -c.tensor_parallel * c.pipeline_parallel), list_features)
ConvertOnce = Callable[[golden.Conversion], tuple[Result, Path]]


@pytest.fixture(scope="module")
def convert_once(tmp_path_factory: pytest.TempPathFactory) -> ConvertOnce:
    """Converts a case once for all tests; each has a directory of its own."""
    base, results = tmp_path_factory.mktemp("ours"), dict[str, tuple[Result, Path]]()

    def convert(case: golden.Conversion) -> tuple[Result, Path]:
        if case.id not in results:
            out = base / str(len(results)) / "out"
            out.parent.mkdir()
            results[case.id] = ours(case, out), out
        return results[case.id]

    return convert


@pytest.mark.parametrize("case", mark_others_slow(SOUND, CHOSEN))
def test_same_as_theirs(case: golden.Conversion, convert_once: ConvertOnce) -> None:
    result, out = convert_once(case)
    assert result.plan is not None, result.refusal
    assert tensor_differences(case, out) == []
    for key, (theirs, mine) in config_differences(case, out).items():
        row = intended(case, key)
        assert row is not None, f"{key}: {theirs!r} became {mine!r}"


@pytest.mark.parametrize("case", OTHERS, ids=lambda c: c.id)
def test_right_or_refused(case: golden.Conversion, convert_once: ConvertOnce) -> None:
    """Where theirs raises or is wrong, ours writes what verifies, or refuses and says what to do."""
    result, out = convert_once(case)
    if result.refusal is not None:
        assert result.refusal.fix and not list(out.parent.iterdir())
        return
    assert verify_checkpoint(out).findings == []
    if case.defect and case.ok:
        wrong = config_differences(case, out), tensor_differences(case, out)
        assert any(wrong), "theirs is marked defective, but ours is the same"


def test_every_intended_difference_is_seen(convert_once: ConvertOnce) -> None:
    """A row of the table that explains nothing any more must go."""
    seen = set()
    for case in SOUND:
        if any(row for row in INTENDED if row["only"] != "*" and _matches(case, row)):
            _, out = convert_once(case)
            for key in config_differences(case, out):
                row = intended(case, key)
                seen.add((key, row["only"] if row else None))
    assert {(r["key"], r["only"]) for r in INTENDED} == seen


def _matches(case: golden.Conversion, row: dict[str, str]) -> bool:
    from fnmatch import fnmatchcase

    return fnmatchcase(case.id, row["only"])


@pytest.mark.parametrize("case", mark_others_slow(CASES, [*CHOSEN, *OTHERS]))
def test_ours_means_what_the_model_means(case: golden.Conversion, convert_once: ConvertOnce) -> None:
    """Whatever ours writes verifies, and dequantizes to the model within the format's step."""
    result, out = convert_once(case)
    if result.plan is None:
        pytest.skip(f"refused: {result.refusal}")
    assert verify_checkpoint(out).findings == []
    assert list(CheckpointComparison(out, case.model).findings()) == []


@pytest.mark.parametrize("case", mark_others_slow(SOUND, CHOSEN))
def test_theirs_verifies(case: golden.Conversion) -> None:
    """The verifier accepts what TensorRT-LLM wrote; Hugging Face exclude lists are its known complaint."""
    findings = [f for f in verify_checkpoint(case.output).findings if "exclude pattern" not in f.what]
    assert findings == []


MODELOPT = sorted(p for p in golden.root().glob("load-*/modelopt-*"))


@pytest.mark.parametrize("directory", MODELOPT, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_modelopts_form_verifies(directory: Path) -> None:
    """The verifier accepts ModelOpt's own checkpoints, which TensorRT-LLM's loader was seen to read."""
    assert verify_checkpoint(directory).findings == []


def leaves(rank: Path, module: str) -> dict[str, tuple[str, int]]:
    """Last name → dtype and number of dimensions of a module's tensors."""
    return {
        name.removeprefix(f"{module}."): (dtype, len(shape))
        for name, (dtype, shape, _) in golden.tensors(rank).items()
        if name.startswith(f"{module}.") and "." not in name.removeprefix(f"{module}.")
    }


def test_phi3_fp8_has_what_their_network_requires(tmp_path: Path) -> None:
    """Their converter knows no FP8 Phi-3, but their network does: the error lists the tensors it requires."""
    case = next(c for c in CASES if c.case == "phi3-fp8")
    assert case.error is not None and "Required but not provided tensors" in case.error
    required = set(re.findall(r"'(transformer[^']+)'", case.error))
    assert len(required) == 16
    ours(case, tmp_path / "out")
    written = golden.tensors(tmp_path / "out/rank0.safetensors")
    assert {n for n in written if n.endswith("scaling_factor")} == required
    # And what one of these layers reads, as their loader showed for Llama.
    loaded = golden.root() / "load-llama-fp8-kvfp8/loaded-tp1/rank0.safetensors"
    for module in ("attention.qkv", "attention.dense", "mlp.fc", "mlp.proj"):
        mine = leaves(tmp_path / "out/rank0.safetensors", f"transformer.layers.0.{module}")
        assert mine == leaves(loaded, f"transformer.layers.0.{module}")


def test_qwen2_moe_fp8_is_what_their_layers_read(tmp_path: Path) -> None:
    """Their converter fails in an FP8 layer's own postprocess: the layers are FP8, its inputs are not merged.

    Experts are as theirs of Qwen3-MoE, the shared expert's matrices as the FP8 layers of Llama.
    """
    case = next(c for c in CASES if c.case == "qwen2moe-fp8" and not c.label.endswith("-hfq"))
    assert case.error == "AttributeError: 'list' object has no attribute 'reshape'"
    ours(case, tmp_path / "out")
    rank, layer = tmp_path / "out/rank0.safetensors", "transformer.layers.0"
    experts = golden.root() / "qwen3moe-fp8/trtllm-tp1-bfloat16/rank0.safetensors"
    dense = golden.root() / "load-llama-fp8-kvfp8/loaded-tp1/rank0.safetensors"
    for module in ("fc", "proj"):
        assert leaves(rank, f"{layer}.mlp.{module}") == leaves(experts, f"{layer}.mlp.{module}")
        assert leaves(rank, f"{layer}.mlp.shared_expert.{module}") == leaves(dense, f"{layer}.mlp.{module}")
    assert leaves(rank, f"{layer}.mlp.shared_expert_gate") == {"weight": ("BF16", 2)}
