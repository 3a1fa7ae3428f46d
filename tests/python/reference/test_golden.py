"""The executor on TensorRT-LLM's own checkpoints against transformers on their models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_choice import choose_rows

from enginix.errors import CheckpointError
from enginix.evaluation.judgement.logits import relative_error
from enginix.reference import Executor
from golden import unpack_archive

# Weights that are the same numbers on both sides differ by the order of sums alone.
EXACT = 1e-6
# Golden checkpoints that round: float32 weights to 11 or 8 significant bits.
ROUNDED = {"llama-fp32-source/trtllm-tp1-float16": 2e-3, "llama-fp32-source/trtllm-tp1-bfloat16": 2e-2}
# What TensorRT-LLM's converter loses without calling it a defect; the executor then follows the checkpoint.
LOST = {
    # Rope scaling below 128000 positions is dropped.
    "phi3-longrope/trtllm-tp1-bfloat16",
}
# Full attention whatever the model's sliding window says: equal up to the window's 32 tokens.
WINDOW = {"mistral-bf16": 32}


def _conversions() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((unpack_archive("golden") / "index.json").read_text())
    plain = [r for r in rows if r["kind"] == "convert" and r["result"] == "ok"]
    return [r for r in plain if r["format"] in ("bfloat16", "float32")]


def _name(row: dict[str, Any]) -> str:
    return f"{row['case']}/{row['output']}"


CONVERSIONS = [r for r in _conversions() if "fp8" not in r["case"]]
SOUND = [r for r in CONVERSIONS if not r["known_defect"]]
DEFECTIVE = [r for r in CONVERSIONS if r["known_defect"]]


def _error(golden: Path, row: dict[str, Any], load: Callable[..., Any], length: int = 48) -> float:
    checkpoint = golden / row["case"] / row["output"]
    executor = Executor.load(checkpoint, dtype="float32")
    changes = {}
    if row["architecture"] == "Qwen3MoeForCausalLM":
        # TensorRT-LLM's converter writes 0 whatever the model says; the executor obeys the checkpoint.
        changes["norm_topk_prob"] = (
            executor.config.experts is not None and executor.config.experts.renormalize
        )
    model = load(golden / row["case"] / "hf", **changes)
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for count in (1, 7, length):
        ids = torch.randint(0, executor.config.vocab_size, (count,), generator=generator)
        with torch.no_grad():
            reference = model(ids[None]).logits[0]
        (found,) = executor.forward([ids.tolist()])
        assert found.dtype == torch.float32 and found.shape == (count, executor.config.vocab_size)
        worst = max(worst, float(relative_error(found, reference).max()))
    return worst


def test_every_architecture_and_split_is_there() -> None:
    assert {r["architecture"] for r in SOUND} == {
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "MixtralForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen2MoeForCausalLM",
        "Qwen3ForCausalLM",
        "Qwen3MoeForCausalLM",
        "Phi3ForCausalLM",
    }
    assert {r["mapping"]["tp_size"] for r in SOUND} == {1, 2, 4}
    assert {r["mapping"]["pp_size"] for r in SOUND} == {1, 2}


def _list_features(row: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Return what a choice of rows must have: every model, and every mapping of an architecture."""
    return [(row["case"],), (row["architecture"], *row["mapping"].values())]


EQUAL = [r for r in SOUND if _name(r) not in LOST]
CHOSEN = choose_rows(sorted(EQUAL, key=lambda r: -r["mapping"]["world_size"]), _list_features)


@pytest.mark.parametrize(
    "row",
    [pytest.param(r, id=_name(r), marks=() if r in CHOSEN else pytest.mark.slow) for r in EQUAL],
)
def test_logits_equal_transformers(
    golden: Path, row: dict[str, Any], hugging_face: Callable[..., Any]
) -> None:
    error = _error(golden, row, hugging_face, WINDOW.get(row["case"], 48))
    assert error <= ROUNDED.get(_name(row), EXACT)


@pytest.mark.parametrize("name", sorted(LOST))
def test_lost_rope_scaling_is_noticed(golden: Path, name: str, hugging_face: Callable[..., Any]) -> None:
    row = next(r for r in SOUND if _name(r) == name)
    assert _error(golden, row, hugging_face) > 1e-3


@pytest.mark.parametrize("row", DEFECTIVE, ids=_name)
def test_defective_checkpoints_are_refused_or_differ(
    golden: Path, row: dict[str, Any], hugging_face: Callable[..., Any]
) -> None:
    try:
        error = _error(golden, row, hugging_face)
    except CheckpointError:
        return
    assert error > 1e-2


@pytest.mark.parametrize("dtype,bound", [("bfloat16", 0.1), ("float16", 0.02)])
@pytest.mark.parametrize("case", ["llama-bf16", "qwen3-bf16", "mixtral-bf16", "phi3-bf16"])
def test_sixteen_bit_arithmetic_stays_near(golden: Path, case: str, dtype: str, bound: float) -> None:
    checkpoint = golden / case / "trtllm-tp1-bfloat16"
    ids = list(range(3, 43))
    (wide,) = Executor.load(checkpoint, dtype="float32").forward([ids])
    (narrow,) = Executor.load(checkpoint, dtype=dtype).forward([ids])
    error = float(relative_error(narrow, wide).median())
    assert 0 < error <= bound
