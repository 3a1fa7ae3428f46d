"""What an export left alone is as it was, value by value; experts in one tensor never in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from enginix.errors import ModelError
from enginix.quantize import source, verify
from enginix.quantize.formats import resolve_format

torch = pytest.importorskip("torch")

KEPT, MADE = "model.layers.0.mlp.down_proj", "model.layers.0.mlp.up_proj"
FUSED = "model.layers.0.mlp.experts.gate_up_proj"
CONVOLUTION = "model.layers.0.mixer.conv1d.weight"


def _write(directory: Path, tensors: dict[str, Any], excluded: list[str] | None = None) -> Path:
    from safetensors.torch import save_file

    directory.mkdir()
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    (directory / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    if excluded is not None:
        claim = {"quant_algo": "FP8", "kv_cache_quant_algo": None, "exclude_modules": excluded}
        (directory / "hf_quant_config.json").write_text(json.dumps({"quantization": claim}))
    return directory


@pytest.fixture
def original() -> dict[str, Any]:
    torch.manual_seed(7)
    shapes = {f"{KEPT}.weight": (8, 12), f"{MADE}.weight": (12, 8), FUSED: (2, 4, 8), CONVOLUTION: (8, 1, 3)}
    return {name: torch.randn(shape).to(torch.bfloat16) for name, shape in shapes.items()}


def _exported(original: dict[str, Any]) -> dict[str, Any]:
    out = {name: value.clone() for name, value in original.items()}
    out[f"{MADE}.weight"] = original[f"{MADE}.weight"].to(torch.float8_e4m3fn)
    out |= {f"{MADE}.{leaf}": torch.tensor(0.5) for leaf in ("weight_scale", "input_scale")}
    return out


def _verify(tmp_path: Path, original: dict[str, Any], export: dict[str, Any], excluded: list[str]) -> Any:
    model = source.read_source_model(_write(tmp_path / "model", original))
    return verify.verify_export(_write(tmp_path / "export", export, excluded), resolve_format("fp8"), model)


@pytest.mark.parametrize("piece", [1, 7, 1 << 22])
def test_what_is_excluded_is_as_it_was(
    tmp_path: Path, original: dict[str, Any], monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(verify, "PIECE", piece)
    found = _verify(tmp_path, original, _exported(original), [KEPT, FUSED])
    assert found == {"FP8": 1, "NO_QUANT": 3}


@pytest.mark.parametrize("name", [f"{KEPT}.weight", FUSED, CONVOLUTION])
@pytest.mark.parametrize("piece", [7, 1 << 22])
def test_one_value_that_is_another_is_seen(
    tmp_path: Path, original: dict[str, Any], monkeypatch: pytest.MonkeyPatch, name: str, piece: int
) -> None:
    monkeypatch.setattr(verify, "PIECE", piece)
    export = _exported(original)
    export[name].view(-1)[-1] += 1
    with pytest.raises(ModelError, match="is excluded, but not as it was"):
        _verify(tmp_path, original, export, [KEPT, FUSED])


def test_experts_in_one_tensor_that_were_left_alone_in_silence(
    tmp_path: Path, original: dict[str, Any]
) -> None:
    with pytest.raises(ModelError, match=r"experts\.gate_up_proj' is not quantized"):
        _verify(tmp_path, original, _exported(original), [KEPT])


def test_experts_that_were_taken_apart_have_other_names(tmp_path: Path, original: dict[str, Any]) -> None:
    export = _exported(original)
    del export[FUSED]
    assert _verify(tmp_path, original, export, [KEPT]) == {"FP8": 1, "NO_QUANT": 2}


def test_a_tensor_stored_wider_than_the_model_says_is_compared_as_loaded(
    tmp_path: Path, original: dict[str, Any]
) -> None:
    """transformers loads it in the dtype of config.json, and so it is exported."""
    name = f"{KEPT}.weight"
    export = _exported(original)
    original[name] = original[name].float() * 1.0001
    export[name] = original[name].to(torch.bfloat16)
    assert _verify(tmp_path, original, export, [KEPT, FUSED])["FP8"] == 1
    (tmp_path / "again").mkdir()
    export[name].view(-1)[3] *= 2
    with pytest.raises(ModelError, match="not as it was"):
        _verify(tmp_path / "again", original, export, [KEPT, FUSED])
