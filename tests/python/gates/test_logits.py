"""The gate ``logits`` passes what is sound, and fails on everything else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.errors import CheckpointError, GateError
from enginix.evaluation.judgement import logits, run
from enginix.evaluation.judgement.outcome import GateOutcome, round_up_bound
from enginix.evaluation.reference_answers import hf
from enginix.evaluation.reference_answers.prompts import PromptSet, tokenize_prompts
from enginix.reference.executor import Executor
from enginix.tables import load_table

Reference = tuple[list[torch.Tensor], str]


@pytest.fixture(scope="session")
def prompts(model: Path) -> PromptSet:
    return tokenize_prompts(hf.TransformersTokenizer(model).encode, 2048, 2048)


@pytest.fixture(scope="session")
def reference(model: Path, prompts: PromptSet) -> Reference:
    """The model's logits of the prompts, computed once, and its dtype."""
    return hf.compute_hf_logits(model, [p.tokens for p in prompts.prompts]), hf.read_stored_dtype(model)


def judge(
    model: Path,
    checkpoint: Path,
    prompts: PromptSet,
    reference: Reference | None = None,
) -> GateOutcome:
    def load() -> Executor:
        return Executor.load(checkpoint, dtype="float32")

    (outcome,) = run.run_logits_gate(model, load, prompts, stored_reference=reference)
    return outcome


def test_a_sound_checkpoint_passes(model: Path, checkpoint: Path, prompts: PromptSet) -> None:
    outcome = judge(model, checkpoint, prompts)
    assert outcome.passed and outcome.detail["errorAtMost"] <= 1e-5
    assert len(outcome.detail["prompts"]) >= 10
    run.require_gates_passed([outcome])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_dtypes_pass_their_bounds(
    model: Path, prompts: PromptSet, reference: Reference, tmp_path: Path, dtype: str
) -> None:
    convert_model(model, tmp_path / "out", ConvertOptions(dtype=dtype))
    outcome = judge(model, tmp_path / "out", prompts, reference)
    assert outcome.passed, outcome.summary


def test_rounding_to_bfloat16_passes_its_bound_and_no_tighter_one(
    model: Path, prompts: PromptSet, tmp_path: Path
) -> None:
    """A float32 model: the trained one, moved by less than bfloat16 can hold."""
    wide = tmp_path / "wide"
    shutil.copytree(model, wide)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: t.float() * (1 + (torch.rand(t.shape, generator=generator) - 0.5) / 256)
        for name, t in load_file(wide / "model.safetensors").items()
    }
    save_file(tensors, wide / "model.safetensors", {"format": "pt"})
    config = json.loads((wide / "config.json").read_text())
    config.update(torch_dtype="float32", dtype="float32")
    (wide / "config.json").write_text(json.dumps(config))
    convert_model(wide, tmp_path / "out", ConvertOptions(dtype="bfloat16"))
    outcome = judge(wide, tmp_path / "out", prompts)
    assert outcome.passed, outcome.summary
    assert outcome.detail["errorAtMost"] > logits.find_tolerance("bfloat16", "bfloat16")[0]


QKV = "transformer.layers.2.attention.qkv.weight"
FC, GATE = "transformer.layers.1.mlp.fc.weight", "transformer.layers.1.mlp.gate.weight"
Tensors = dict[str, torch.Tensor]


def _swap(t: Tensors, a: str, b: str) -> None:
    t[a], t[b] = t[b].clone(), t[a].clone()


DAMAGE: dict[str, Callable[[Tensors], None]] = {
    "rows of one matrix shuffled": lambda t: t.update({QKV: t[QKV].roll(1, 0)}),
    "query and key exchanged in part": lambda t: t.update(
        {QKV: torch.cat([t[QKV][32:64], t[QKV][:32], t[QKV][64:]])}
    ),
    "one matrix scaled by 8": lambda t: t.update({FC: t[FC] * 8}),
    "one matrix scaled by 1.01": lambda t: t.update({FC: t[FC] * 1.01}),
    "fc and gate exchanged": lambda t: _swap(t, FC, GATE),
    "two layers exchanged": lambda t: _swap(t, QKV, QKV.replace(".2.", ".3.")),
    "one row zeroed": lambda t: t[FC][5].zero_(),
    "head shuffled by one token": lambda t: t.update({"lm_head.weight": t["lm_head.weight"].roll(1, 0)}),
}


def damaged(checkpoint: Path, out: Path, change: Callable[[Tensors], object]) -> Path:
    shutil.copytree(checkpoint, out)
    tensors = load_file(out / "rank1.safetensors")
    change(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, out / "rank1.safetensors")
    return out


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_fails(
    model: Path, checkpoint: Path, prompts: PromptSet, reference: Reference, tmp_path: Path, damage: str
) -> None:
    outcome = judge(model, damaged(checkpoint, tmp_path / "out", DAMAGE[damage]), prompts, reference)
    assert not outcome.passed
    with pytest.raises(GateError, match="gate logits failed: relative error"):
        run.require_gates_passed([outcome])


@pytest.mark.parametrize(
    "changes",
    [{"rotary_base": 20000.0}, {"norm_epsilon": 1e-3}, {"rotary_scaling": {"type": "linear", "factor": 2.0}}],
)
def test_a_wrong_configuration_fails(
    model: Path,
    checkpoint: Path,
    prompts: PromptSet,
    reference: Reference,
    tmp_path: Path,
    changes: dict[str, object],
) -> None:
    out = shutil.copytree(checkpoint, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, **changes}))
    assert not judge(model, out, prompts, reference).passed


def test_nan_is_refused_with_the_tensor_named(
    model: Path, checkpoint: Path, prompts: PromptSet, reference: Reference, tmp_path: Path
) -> None:
    out = damaged(checkpoint, tmp_path / "out", lambda t: t[FC][0].fill_(float("nan")))
    with pytest.raises(CheckpointError, match=r"mlp\.fc\.weight: holds NaN"):
        judge(model, out, prompts, reference)


def test_a_reference_with_missing_weights_is_no_reference(
    model: Path, checkpoint: Path, prompts: PromptSet, tmp_path: Path
) -> None:
    holed = shutil.copytree(model, tmp_path / "model")
    tensors = load_file(holed / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, holed / "model.safetensors", {"format": "pt"})
    with pytest.raises(GateError, match=r"cannot be run: weights are missing: model\.layers\.1"):
        judge(holed, checkpoint, prompts)


@pytest.mark.parametrize("gone", ["model.safetensors", "config.json"])
def test_a_missing_reference_fails(
    model: Path, checkpoint: Path, prompts: PromptSet, tmp_path: Path, gone: str
) -> None:
    holed = shutil.copytree(model, tmp_path / "model")
    (holed / gone).unlink()
    with pytest.raises(GateError, match="reference model cannot be run"):
        judge(holed, checkpoint, prompts)


def test_an_executor_that_raises_fails(model: Path, prompts: PromptSet) -> None:
    def broken() -> Executor:
        raise ZeroDivisionError("sudden")

    with pytest.raises(GateError, match="gate logits could not be run: ZeroDivisionError: sudden"):
        run.run_logits_gate(model, broken, prompts)


def test_no_prompts_fail(prompts: PromptSet) -> None:
    with pytest.raises(GateError):
        logits.compare_logits(replace(prompts, prompts=()), [], [], 1.0, "")
    with pytest.raises(GateError, match="empty"):
        tokenize_prompts(lambda text: [1], 2048, 64, {**load_table("gate_prompts"), "prompts": []})
    with pytest.raises(GateError, match="no tokens"):
        tokenize_prompts(lambda text: [], 2048, 64)
    with pytest.raises(GateError, match="no gate was run"):
        run.require_gates_passed([])


def test_a_tokenizer_of_another_model_fails(model: Path) -> None:
    encode = hf.TransformersTokenizer(model).encode
    with pytest.raises(GateError, match="but the model has only 1000"):
        tokenize_prompts(encode, 1000, 64)


@pytest.mark.parametrize(
    "found,reference",
    [
        (torch.full((2, 4), float("nan")), torch.randn(2, 4)),
        (torch.randn(2, 4), torch.tensor([[1.0, 2, 3, float("inf")]] * 2)),
        (torch.randn(2, 4), torch.ones(2, 4)),
        (torch.randn(2, 4), torch.randn(3, 4)),
        (torch.randn(2, 4), torch.randn(2, 5)),
        (torch.empty(0, 4), torch.empty(0, 4)),
    ],
)
def test_what_cannot_be_compared_fails(found: torch.Tensor, reference: torch.Tensor) -> None:
    with pytest.raises(GateError):
        logits.relative_error(found, reference)


def test_a_common_offset_does_not_hide_an_error() -> None:
    b = torch.tensor([[1.0, -1.0, 0.0]])
    error = torch.tensor([[0.1, 0.0, 0.0]])
    plain = logits.relative_error(b + error, b)
    assert torch.allclose(plain, logits.relative_error(b + 1000 + error, b + 1000), rtol=1e-3)


@pytest.mark.parametrize(("activation", "bound"), [("gelu", 0.005), ("gelu_new", 0.0001)])
def test_an_exact_gelu_has_its_own_bound(
    prompts: PromptSet, tmp_path: Path, activation: str, bound: float
) -> None:
    """TensorRT-LLM computes it by tanh; a sound conversion passes as it is."""
    import transformers

    torch.manual_seed(1)
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.GPTNeoXConfig(**sizes, vocab_size=2048, hidden_act=activation)
    transformers.GPTNeoXForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "model")
    convert_model(tmp_path / "model", tmp_path / "out", ConvertOptions())
    outcome = judge(tmp_path / "model", tmp_path / "out", prompts)
    assert outcome.passed and outcome.detail["tolerance"] == bound, outcome.summary


def test_every_pair_of_dtypes_has_a_bound() -> None:
    for theirs in ("float32", "float16", "bfloat16"):
        for ours in ("float32", "float16", "bfloat16"):
            bound, reason = logits.find_tolerance(theirs, ours)
            assert 0 < bound < 0.1 and reason


@given(st.floats(1e-9, 1e6))
def test_at_most_is_an_upper_bound_of_one_digit(value: float) -> None:
    bound = round_up_bound(value)
    assert bound >= value * (1 - 1e-8) and bound >= 1e-6
    assert bound <= max(2.0001 * value, 1e-6) and len(f"{bound:e}".split("e")[0].rstrip("0").rstrip(".")) == 1
