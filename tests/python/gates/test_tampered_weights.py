"""Weights and configurations are compared with the model's: changed engines, each of which once passed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from engine_damage import FC, WEIGHTS, edit, raw_bytes
from enginix.evaluation.judgement import model_weights
from tiny_model import Tensors, damaged


def judge(checkpoint: Path, model: Path) -> Any:
    return model_weights.judge_weights(checkpoint, {"the model": model}, {"steps": 1.0})


@pytest.mark.parametrize("form", ["plain", "fp8"])
def test_sound_weights_pass(sound_forms: dict[str, Path], model: Path, form: str) -> None:
    assert judge(sound_forms[form], model).passed


@pytest.mark.parametrize("form", ["plain", "fp8"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_changed_weights_fail(
    sound_forms: dict[str, Path], model: Path, tmp_path: Path, name: str, form: str
) -> None:
    outcome = judge(damaged(sound_forms[form], tmp_path / "out", WEIGHTS[name]), model)
    assert not outcome.passed, name


def test_rounding_down_is_not_rounding(sound_forms: dict[str, Path], model: Path, tmp_path: Path) -> None:
    """Every value is within a step, and half a step away on average: four times the noise."""

    def round_down(tensors: Tensors) -> None:
        exact = load_file(model / "model.safetensors")["model.layers.2.mlp.gate_proj.weight"].float()
        scaled = exact / tensors[f"{FC}.per_channel_scale"][:, None]
        codes = tensors[f"{FC}.weight"]
        away = codes.float().abs() > scaled.abs()
        lower = (raw_bytes(codes).int() - away.int()).clamp(min=0).to(torch.uint8)
        tensors[f"{FC}.weight"] = lower.view(codes.dtype)

    outcome = judge(damaged(sound_forms["fp8"], tmp_path / "out", round_down), model)
    assert not outcome.passed and "mlp.fc" in outcome.summary, outcome.summary


@pytest.mark.parametrize("form", ["plain", "fp8"])
@pytest.mark.parametrize(
    "changes",
    [
        {"rotary_base": 10001.0},
        {"rotary_base": 15000.0},
        {"norm_epsilon": 1e-3},
        {"rotary_scaling": {"type": "dynamic", "factor": 64.0, "original_max_position_embeddings": 256}},
        {"max_position_embeddings": 64},
        {"rotary_scaling": {"type": "linear", "factor": 1.1}},
    ],
    ids=str,
)
def test_a_changed_configuration_fails(
    sound_forms: dict[str, Path], model: Path, tmp_path: Path, changes: dict[str, Any], form: str
) -> None:
    out = shutil.copytree(sound_forms[form], tmp_path / "out")
    edit(out / "config.json", lambda raw: raw.update(changes))
    outcome = judge(out, model)
    assert not outcome.passed and next(iter(changes)) in outcome.summary, outcome.summary
