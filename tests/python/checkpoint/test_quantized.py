"""Quantization beyond the golden cases: mixed precision, exclude lists, replicated heads, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quantized_models
import random_models
from quantized_models import SIZES, SMALL, check, linear, llama

from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.checkpoint.mapped_tensors import RankFile
from enginix.checkpoint.mapping import CheckpointMapping
from enginix.checkpoint.verify import verify_checkpoint
from enginix.errors import EnginixError, ModelError, UsageError


@pytest.fixture(scope="module")
def write_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a model of an architecture in a format once for the mappings that it is converted to."""
    models: dict[tuple[str, str], Path] = {}

    def write(
        algorithm: str, config: dict[str, Any], excluded: list[str], is_quantized: Callable[[str], bool]
    ) -> Path:
        key = (algorithm, config["architectures"][0])
        if key not in models:
            models[key] = tmp_path_factory.mktemp("model")
            quantization = {"quant_algo": algorithm, "exclude_modules": excluded}
            quantized_models.write(
                models[key], config, lambda m: algorithm if is_quantized(m) else None, quantization
            )
        return models[key]

    return write


@pytest.mark.parametrize("tp", [*(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2)), 4])
@pytest.mark.parametrize(
    "architecture", ["LlamaForCausalLM", "Phi3ForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"]
)
@pytest.mark.parametrize("algorithm", quantized_models.MAKERS)
def test_every_dense_family_in_every_format(
    algorithm: str, architecture: str, tp: int, write_once: Callable[..., Path], tmp_path: Path
) -> None:
    """Also at more ranks than KV heads, where TensorRT-LLM's own converter raises for FP8."""
    config = random_models.config(
        architecture, **(SMALL if algorithm in ("FP8", "W8A8_SQ_PER_CHANNEL") else SIZES)
    )
    model = write_once(algorithm, config, ["lm_head"], linear)
    found = check(model, tmp_path / "out", ConvertOptions(mapping=CheckpointMapping(tp)))
    assert found["quantization"]["quant_algo"] == algorithm
    assert found["quantization"]["exclude_modules"] is None
    if architecture != "Phi3ForCausalLM" and tp == 4:  # ranks 0 and 1 hold KV head 0
        name = "transformer.layers.0.attention.qkv.weight"
        first, second = (RankFile(tmp_path / f"out/rank{r}.safetensors")[name] for r in (0, 1))
        rows = slice(-2 * config["head_dim"] // (2 if "AWQ" in algorithm else 1), None)
        if algorithm != "FP8":
            assert np.array_equal(first[rows].view(np.uint8), second[rows].view(np.uint8))


@pytest.mark.parametrize("architecture", ["MixtralForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM"])
@pytest.mark.parametrize("algorithm", ["FP8", "NVFP4"])
@pytest.mark.parametrize(("tp", "ep"), [(1, 1), pytest.param(2, 2, marks=pytest.mark.slow), (4, 2)])
def test_experts(
    algorithm: str, architecture: str, tp: int, ep: int, write_once: Callable[..., Path], tmp_path: Path
) -> None:
    config = random_models.config(architecture, **(SMALL_EXPERTS if algorithm == "FP8" else EXPERTS))
    model = write_once(algorithm, config, ["*gate", "lm_head"], is_matrix)
    found = check(model, tmp_path / "out", ConvertOptions(mapping=CheckpointMapping(tp, 1, ep)))
    assert found["quantization"]["exclude_modules"] is None  # the default patterns protect router and head
    router = RankFile(tmp_path / "out/rank0.safetensors")["transformer.layers.0.mlp.router.weight"]
    assert router.dtype == np.float32


def mixed(module: str) -> str | None:
    if not linear(module):
        return None
    if "self_attn" in module:
        return "FP8"
    return "W4A16_AWQ" if ".layers.1." in module else "NVFP4"


def test_mixed_precision(tmp_path: Path) -> None:
    config = llama(num_hidden_layers=2)
    names = [n.removesuffix(".weight") for n in random_models.shapes(config)]
    layers = {n: {"quant_algo": mixed(n)} for n in names if mixed(n)}
    for entry in layers.values():
        if entry["quant_algo"] == "W4A16_AWQ":
            entry["group_size"] = 128
    quantization = {"quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": None, "quantized_layers": layers}
    quantized_models.write(tmp_path / "m", config, mixed, quantization)
    found = check(tmp_path / "m", tmp_path / "out", ConvertOptions(mapping=CheckpointMapping(2)))
    assert found["quantization"]["quant_algo"] == "MIXED_PRECISION"
    written = json.loads((tmp_path / "out/quant_cfg.json").read_text())["quantized_layers"]
    assert written["transformer.layers.0.mlp.fc"] == {"quant_algo": "NVFP4", "group_size": 16}
    assert written["transformer.layers.1.mlp.proj"]["pre_quant_scale"] is True
    assert written["transformer.layers.1.attention.qkv"] == {"quant_algo": "FP8"}
    with pytest.raises(UsageError, match="pipeline"):
        convert_model(tmp_path / "m", tmp_path / "pp", ConvertOptions(mapping=CheckpointMapping(1, 2)))


MOE = ["MixtralForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM"]


EXPERTS = SIZES | {"hidden_size": 128, "moe_intermediate_size": 256, "shared_expert_intermediate_size": 512}
SMALL_EXPERTS = SMALL | {"moe_intermediate_size": 64, "shared_expert_intermediate_size": 128}


def moe(architecture: str) -> dict[str, Any]:
    return random_models.config(architecture, **EXPERTS, num_hidden_layers=2)


def of_expert(module: str) -> bool:
    return "experts." in module


def is_matrix(module: str) -> bool:
    return linear(module) or of_expert(module)


def mixed_model(directory: Path, architecture: str, algorithm_of: Any) -> None:
    names = [n.removesuffix(".weight") for n in random_models.shapes(moe(architecture))]
    layers = {n: {"quant_algo": algorithm_of(n)} for n in names if algorithm_of(n)}
    quantization = {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    quantized_models.write(directory, moe(architecture), algorithm_of, quantization)


@pytest.mark.parametrize("architecture", MOE)
def test_mixed_precision_of_experts(architecture: str, tmp_path: Path) -> None:
    """The quantization pass looks the experts' module up, the weights' preprocessing its two matrices."""

    def algorithm_of(module: str) -> str | None:
        if not is_matrix(module):
            return None
        return "NVFP4" if of_expert(module) else "FP8"

    mixed_model(tmp_path / "m", architecture, algorithm_of)
    check(tmp_path / "m", tmp_path / "out", ConvertOptions(mapping=CheckpointMapping(2, 1, 2)))
    path = tmp_path / "out/quant_cfg.json"
    written = json.loads(path.read_text())
    layers = written["quantized_layers"]
    for name in ("mlp", "mlp.fc", "mlp.proj"):
        assert layers[f"transformer.layers.1.{name}"] == {"quant_algo": "NVFP4", "group_size": 16}
    assert layers["transformer.layers.1.attention.qkv"] == {"quant_algo": "FP8"}
    # Without the module's own entry, only Mixtral's experts would still be quantized.
    del layers["transformer.layers.1.mlp"]
    path.write_text(json.dumps(written))
    found = verify_checkpoint(tmp_path / "out").findings
    assert bool(found) == (architecture != "MixtralForCausalLM")
    assert all("transformer.layers.1.mlp around it is not quantized" in f.what for f in found)


def test_experts_spared_in_mixed_precision_are_refused(tmp_path: Path) -> None:
    mixed_model(tmp_path / "m", MOE[0], lambda m: "FP8" if linear(m) else None)
    with pytest.raises(ModelError, match=r"experts of transformer\.layers\.0\.mlp are not quantized"):
        convert_model(tmp_path / "m", tmp_path / "out", ConvertOptions())


@pytest.mark.parametrize("spared", ["*.experts.*", "*.w2"])
def test_experts_are_excluded_together(spared: str, tmp_path: Path) -> None:
    def algorithm_of(module: str) -> str | None:
        out = of_expert(module) if spared == "*.experts.*" else module.endswith("w2")
        return "FP8" if is_matrix(module) and not out else None

    quantization = {"quant_algo": "FP8", "exclude_modules": ["lm_head", "*gate", spared]}
    quantized_models.write(tmp_path / "m", moe(MOE[0]), algorithm_of, quantization)
    if spared == "*.w2":
        with pytest.raises(ModelError, match="one module in TensorRT-LLM"):
            convert_model(tmp_path / "m", tmp_path / "out", ConvertOptions())
        return
    config = check(tmp_path / "m", tmp_path / "out", ConvertOptions(mapping=CheckpointMapping(2)))
    excluded = config["quantization"]["exclude_modules"]
    assert {f"transformer.layers.1.{n}" for n in ("mlp", "mlp.fc", "mlp.proj")} <= set(excluded)
    excluded.remove("transformer.layers.1.mlp")
    (tmp_path / "out/config.json").write_text(json.dumps(config))
    assert any("around it is FP8" in f.what for f in verify_checkpoint(tmp_path / "out").findings)


def test_excludes_are_translated(tmp_path: Path) -> None:
    patterns = ["lm_head", "model.layers.*.self_attn.o_proj", "model.layers.1.self_attn.*"]

    def algorithm_of(module: str) -> str | None:
        spared = module.endswith("o_proj") or ".layers.1.self_attn" in module
        return "FP8" if linear(module) and not spared else None

    quantization = {"quant_algo": "FP8", "exclude_modules": patterns}
    quantized_models.write(tmp_path / "m", llama(), algorithm_of, quantization)
    found = check(tmp_path / "m", tmp_path / "out", ConvertOptions())["quantization"]["exclude_modules"]
    assert found[-3:] == [
        f"transformer.layers.{n}" for n in ("0.attention.dense", "1.attention.dense", "1.attention.qkv")
    ]
    assert {"*lm_head", "*router"} <= set(found)
    with pytest.raises(UsageError, match="numbered within"):
        convert_model(tmp_path / "m", tmp_path / "pp", ConvertOptions(mapping=CheckpointMapping(1, 2)))


@pytest.mark.parametrize(
    ("algorithm_of", "exclude", "says"),
    [
        (lambda m: "FP8" if linear(m) and "q_proj" not in m else None, ["lm_head"], "quantization is lost"),
        (lambda m: "FP8" if linear(m) else None, ["lm_head", "*o_proj"], "does not cover"),
        (lambda m: "FP8" if linear(m) and "q_proj" not in m else None, ["lm_head", "*q_proj"], "one matrix"),
        (lambda m: "FP8" if linear(m) or m == "lm_head" else None, [], "lm_head is quantized"),
        (lambda m: "NVFP4" if linear(m) else None, ["lm_head"], "F8_E4M3"),
    ],
)
def test_disagreement_is_refused(algorithm_of: Any, exclude: list[str], says: str, tmp_path: Path) -> None:
    """The description says FP8; the tensors say otherwise."""
    quantization = {"quant_algo": "FP8", "exclude_modules": exclude}
    quantized_models.write(tmp_path / "m", llama(), algorithm_of, quantization)
    with pytest.raises(ModelError, match=says):
        convert_model(tmp_path / "m", tmp_path / "out", ConvertOptions())
    assert not (tmp_path / "out").exists()


def test_scales_without_a_description(tmp_path: Path) -> None:
    quantized_models.write(
        tmp_path / "m", llama(), lambda m: "FP8" if linear(m) else None, {"quant_algo": "FP8"}
    )
    (tmp_path / "m/hf_quant_config.json").unlink()
    with pytest.raises(ModelError, match="has scales, but there is no hf_quant_config"):
        convert_model(tmp_path / "m", tmp_path / "out", ConvertOptions())


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_bad_scales_are_refused(value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized_models, "_scale", lambda rng, *shape: np.full(shape, value, np.float32))
    quantized_models.write(
        tmp_path / "m",
        llama(),
        lambda m: "FP8" if linear(m) else None,
        {"quant_algo": "FP8", "exclude_modules": ["lm_head"]},
    )
    with pytest.raises(ModelError, match="scale"):
        convert_model(tmp_path / "m", tmp_path / "out", ConvertOptions())


def test_awq_group_across_ranks_is_refused(tmp_path: Path) -> None:
    quantization = {"quant_algo": "W4A16_AWQ", "group_size": 128, "exclude_modules": ["lm_head"]}
    config = llama(intermediate_size=384)
    quantized_models.write(tmp_path / "m", config, lambda m: "W4A16_AWQ" if linear(m) else None, quantization)
    with pytest.raises(UsageError, match="groups of 128"):
        convert_model(tmp_path / "m", tmp_path / "out", ConvertOptions(mapping=CheckpointMapping(2)))


def test_kv_cache_on_request(tmp_path: Path) -> None:
    random_models.write(tmp_path / "m", llama())
    done = convert_model(tmp_path / "m", tmp_path / "out", ConvertOptions(kv_cache="FP8"))
    assert any("KV cache scales are missing" in note for note in done.notes)
    report = verify_checkpoint(tmp_path / "out")
    assert report.findings == [] and any("1.0" in note for note in report.notes)


def test_an_error_says_what_to_do(tmp_path: Path) -> None:
    random_models.write(tmp_path / "m", llama(num_attention_heads=6, num_key_value_heads=3))
    with pytest.raises(EnginixError) as e:
        convert_model(tmp_path / "m", tmp_path / "out", ConvertOptions(mapping=CheckpointMapping(4)))
    assert "one of 1" in (e.value.fix or "")
