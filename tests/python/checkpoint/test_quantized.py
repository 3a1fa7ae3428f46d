"""Quantization beyond the golden cases: mixed precision, exclude lists, replicated heads, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quantized_models
import random_models
from hypothesis import given, settings
from hypothesis import strategies as st

from enginix.checkpoint.against import Comparison
from enginix.checkpoint.convert import Options, convert
from enginix.checkpoint.mapping import Mapping
from enginix.checkpoint.numbers import cast, fp8_rescale, fp8_values, interleave_tiles
from enginix.checkpoint.stored import RankFile
from enginix.checkpoint.verify import verify
from enginix.errors import EnginixError, ModelError, UsageError

SIZES: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "num_attention_heads": 8,
    "num_key_value_heads": 2,
}  # fmt: skip


def llama(**changes: Any) -> dict[str, Any]:
    return random_models.config("LlamaForCausalLM", **(SIZES | changes))


def linear(module: str) -> bool:
    return module.endswith("_proj")


def check(model: Path, out: Path, options: Options) -> dict[str, Any]:
    convert(model, out, options)
    assert verify(out).findings == []
    assert list(Comparison(out, model).findings()) == []
    config: dict[str, Any] = json.loads((out / "config.json").read_text())
    return config


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize(
    "architecture", ["LlamaForCausalLM", "Phi3ForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"]
)
@pytest.mark.parametrize("algorithm", quantized_models.MAKERS)
def test_every_dense_family_in_every_format(
    algorithm: str, architecture: str, tp: int, tmp_path: Path
) -> None:
    """Also at more ranks than KV heads, where TensorRT-LLM's own converter raises for FP8."""
    config = random_models.config(architecture, **SIZES)
    quantization = {"quant_algo": algorithm, "exclude_modules": ["lm_head"]}
    quantized_models.write(tmp_path / "m", config, lambda m: algorithm if linear(m) else None, quantization)
    found = check(tmp_path / "m", tmp_path / "out", Options(mapping=Mapping(tp)))
    assert found["quantization"]["quant_algo"] == algorithm
    assert found["quantization"]["exclude_modules"] is None
    if architecture != "Phi3ForCausalLM" and tp == 4:  # ranks 0 and 1 hold KV head 0
        name = "transformer.layers.0.attention.qkv.weight"
        first, second = (RankFile(tmp_path / f"out/rank{r}.safetensors")[name] for r in (0, 1))
        rows = slice(-2 * 64 // (2 if "AWQ" in algorithm else 1), None)
        if algorithm != "FP8":
            assert np.array_equal(first[rows].view(np.uint8), second[rows].view(np.uint8))


@pytest.mark.parametrize("architecture", ["MixtralForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM"])
@pytest.mark.parametrize("algorithm", ["FP8", "NVFP4"])
@pytest.mark.parametrize(("tp", "ep"), [(1, 1), (2, 2), (4, 2)])
def test_experts(algorithm: str, architecture: str, tp: int, ep: int, tmp_path: Path) -> None:
    sizes = SIZES | {"moe_intermediate_size": 256, "shared_expert_intermediate_size": 512}
    config = random_models.config(architecture, **sizes)
    routers = ["*gate", "lm_head"]

    def algorithm_of(module: str) -> str | None:
        return algorithm if linear(module) or module.endswith(("w1", "w2", "w3")) else None

    quantization = {"quant_algo": algorithm, "exclude_modules": routers}
    quantized_models.write(tmp_path / "m", config, algorithm_of, quantization)
    found = check(tmp_path / "m", tmp_path / "out", Options(mapping=Mapping(tp, 1, ep)))
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
    found = check(tmp_path / "m", tmp_path / "out", Options(mapping=Mapping(2)))
    assert found["quantization"]["quant_algo"] == "MIXED_PRECISION"
    written = json.loads((tmp_path / "out/quant_cfg.json").read_text())["quantized_layers"]
    assert written["transformer.layers.0.mlp.fc"] == {"quant_algo": "NVFP4", "group_size": 16}
    assert written["transformer.layers.1.mlp.proj"]["pre_quant_scale"] is True
    assert written["transformer.layers.1.attention.qkv"] == {"quant_algo": "FP8"}
    with pytest.raises(UsageError, match="pipeline"):
        convert(tmp_path / "m", tmp_path / "pp", Options(mapping=Mapping(1, 2)))


MOE = ["MixtralForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM"]


def moe(architecture: str) -> dict[str, Any]:
    sizes = SIZES | {"moe_intermediate_size": 256, "shared_expert_intermediate_size": 512}
    return random_models.config(architecture, **sizes, num_hidden_layers=2)


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
    check(tmp_path / "m", tmp_path / "out", Options(mapping=Mapping(2, 1, 2)))
    path = tmp_path / "out/quant_cfg.json"
    written = json.loads(path.read_text())
    layers = written["quantized_layers"]
    for name in ("mlp", "mlp.fc", "mlp.proj"):
        assert layers[f"transformer.layers.1.{name}"] == {"quant_algo": "NVFP4", "group_size": 16}
    assert layers["transformer.layers.1.attention.qkv"] == {"quant_algo": "FP8"}
    # Without the module's own entry, only Mixtral's experts would still be quantized.
    del layers["transformer.layers.1.mlp"]
    path.write_text(json.dumps(written))
    found = verify(tmp_path / "out").findings
    assert bool(found) == (architecture != "MixtralForCausalLM")
    assert all("transformer.layers.1.mlp around it is not quantized" in f.what for f in found)


def test_experts_spared_in_mixed_precision_are_refused(tmp_path: Path) -> None:
    mixed_model(tmp_path / "m", MOE[0], lambda m: "FP8" if linear(m) else None)
    with pytest.raises(ModelError, match=r"experts of transformer\.layers\.0\.mlp are not quantized"):
        convert(tmp_path / "m", tmp_path / "out", Options())


@pytest.mark.parametrize("spared", ["*.experts.*", "*.w2"])
def test_experts_are_excluded_together(spared: str, tmp_path: Path) -> None:
    def algorithm_of(module: str) -> str | None:
        out = of_expert(module) if spared == "*.experts.*" else module.endswith("w2")
        return "FP8" if is_matrix(module) and not out else None

    quantization = {"quant_algo": "FP8", "exclude_modules": ["lm_head", "*gate", spared]}
    quantized_models.write(tmp_path / "m", moe(MOE[0]), algorithm_of, quantization)
    if spared == "*.w2":
        with pytest.raises(ModelError, match="one module in TensorRT-LLM"):
            convert(tmp_path / "m", tmp_path / "out", Options())
        return
    config = check(tmp_path / "m", tmp_path / "out", Options(mapping=Mapping(2)))
    excluded = config["quantization"]["exclude_modules"]
    assert {f"transformer.layers.1.{n}" for n in ("mlp", "mlp.fc", "mlp.proj")} <= set(excluded)
    excluded.remove("transformer.layers.1.mlp")
    (tmp_path / "out/config.json").write_text(json.dumps(config))
    assert any("around it is FP8" in f.what for f in verify(tmp_path / "out").findings)


def test_excludes_are_translated(tmp_path: Path) -> None:
    patterns = ["lm_head", "model.layers.*.self_attn.o_proj", "model.layers.1.self_attn.*"]

    def algorithm_of(module: str) -> str | None:
        spared = module.endswith("o_proj") or ".layers.1.self_attn" in module
        return "FP8" if linear(module) and not spared else None

    quantization = {"quant_algo": "FP8", "exclude_modules": patterns}
    quantized_models.write(tmp_path / "m", llama(), algorithm_of, quantization)
    found = check(tmp_path / "m", tmp_path / "out", Options())["quantization"]["exclude_modules"]
    assert found[-3:] == [
        f"transformer.layers.{n}" for n in ("0.attention.dense", "1.attention.dense", "1.attention.qkv")
    ]
    assert {"*lm_head", "*router"} <= set(found)
    with pytest.raises(UsageError, match="numbered within"):
        convert(tmp_path / "m", tmp_path / "pp", Options(mapping=Mapping(1, 2)))


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
        convert(tmp_path / "m", tmp_path / "out", Options())
    assert not (tmp_path / "out").exists()


def test_scales_without_a_description(tmp_path: Path) -> None:
    quantized_models.write(
        tmp_path / "m", llama(), lambda m: "FP8" if linear(m) else None, {"quant_algo": "FP8"}
    )
    (tmp_path / "m/hf_quant_config.json").unlink()
    with pytest.raises(ModelError, match="does not cover"):
        convert(tmp_path / "m", tmp_path / "out", Options())


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
        convert(tmp_path / "m", tmp_path / "out", Options())


def test_awq_group_across_ranks_is_refused(tmp_path: Path) -> None:
    quantization = {"quant_algo": "W4A16_AWQ", "group_size": 128, "exclude_modules": ["lm_head"]}
    config = llama(intermediate_size=384)
    quantized_models.write(tmp_path / "m", config, lambda m: "W4A16_AWQ" if linear(m) else None, quantization)
    with pytest.raises(UsageError, match="groups of 128"):
        convert(tmp_path / "m", tmp_path / "out", Options(mapping=Mapping(2)))


def test_kv_cache_on_request(tmp_path: Path) -> None:
    random_models.write(tmp_path / "m", llama())
    done = convert(tmp_path / "m", tmp_path / "out", Options(kv_cache="FP8"))
    assert any("KV cache scales are missing" in note for note in done.notes)
    report = verify(tmp_path / "out")
    assert report.findings == [] and any("1.0" in note for note in report.notes)


@settings(max_examples=60, deadline=None)
@given(
    st.floats(2**-20, 2**10, width=32), st.floats(2**-20, 2**10, width=32), st.binary(min_size=1, max_size=65)
)
def test_rescaling_is_the_formula(one: float, other: float, data: bytes) -> None:
    """fp8(value * scale / target) in float32, against ml_dtypes element by element."""
    import ml_dtypes

    codes = np.frombuffer(data, np.uint8) & np.uint8(0x7E)  # no NaN
    scale, target = np.float32(min(one, other)), np.float32(max(one, other))
    direct = ((fp8_values()[codes] * scale) / target).astype(ml_dtypes.float8_e4m3fn)
    assert np.array_equal(fp8_rescale(codes, float(scale), float(target)), direct.view(np.uint8))


@pytest.mark.parametrize("source", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("target", ["F32", "F16", "BF16"])
@settings(max_examples=40, deadline=None)
@given(data=st.binary(min_size=4, max_size=64).filter(lambda b: len(b) % 4 == 0))
def test_casts_equal_torchs(source: str, target: str, data: bytes) -> None:
    import torch

    names = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    from enginix.checkpoint.numbers import numpy_dtype

    array = np.frombuffer(data, numpy_dtype(source))
    theirs = torch.frombuffer(bytearray(data), dtype=names[source]).to(names[target])
    finite = torch.isfinite(torch.frombuffer(bytearray(data), dtype=names[source]).float())
    try:
        ours = cast(array, source, target)
    except OverflowError:
        assert target == "F16" and (torch.isinf(theirs) & finite).any()
        return
    width = torch.int16 if theirs.element_size() == 2 else torch.int32
    bits = np.ascontiguousarray(ours).view(np.uint16 if theirs.element_size() == 2 else np.uint32)
    same = bits == theirs.view(width).numpy().view(bits.dtype)
    assert (same | np.isnan(theirs.float().numpy())).all()


LOWS = (0, 1, 0xFFF, 0x1000, 0x1001, 0x1FFF, 0x2000, 0x2FFF, 0x3000, 0x3001, 0x8000, 0xEFFF, 0xF000, 0xFFFF)


@pytest.mark.parametrize("source", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("target", ["F32", "F16", "BF16"])
def test_casts_equal_ml_dtypes_on_every_pattern(source: str, target: str) -> None:
    """Every 16-bit pattern; of float32 every upper half, with lower halves around each rounding."""
    from enginix.checkpoint.numbers import numpy_dtype

    every = np.arange(1 << 16, dtype=np.uint32)
    if source == "F32":
        every = np.concatenate([every << np.uint32(16) | np.uint32(low) for low in LOWS])
        values = every.view(np.float32)
    else:
        values = every.astype(np.uint16).view(numpy_dtype(source))
    with np.errstate(all="ignore"):
        theirs = values.astype(np.float32).astype(numpy_dtype(target))
        lost = np.isfinite(values.astype(np.float32)) & ~np.isfinite(theirs.astype(np.float32))
    if target != "F16":
        lost = np.zeros(lost.shape, np.bool_)
    ours = cast(values[~lost], source, target)
    kept = theirs[~lost]
    width = np.uint32 if target == "F32" else np.uint16
    assert ((ours.view(width) == kept.view(width)) | np.isnan(kept.astype(np.float32))).all()
    for value in values[lost][:: max(1, lost.sum() // 50)]:
        with pytest.raises(OverflowError, match="does not fit"):
            cast(np.array([1, value, 0], values.dtype), source, target)


def test_interleaving_is_the_documented_order() -> None:
    rows, width = 256, 8
    plain = np.random.default_rng(0).integers(0, 256, (rows, width), np.uint8)
    tiled = np.frombuffer(interleave_tiles(plain.tobytes(), width), np.uint8)
    for row in range(rows):
        for column in range(width):
            tile = row // 128 * (width // 4) + column // 4
            at = tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + column % 4
            assert tiled[at] == plain[row, column]


def test_verifier_sees_every_kind_of_damage(tmp_path: Path) -> None:
    """Each damage is found; an undamaged copy is not."""
    quantization = {"quant_algo": "NVFP4", "exclude_modules": ["lm_head"]}
    quantized_models.write(tmp_path / "m", llama(), lambda m: "NVFP4" if linear(m) else None, quantization)
    convert(tmp_path / "m", tmp_path / "good", Options(mapping=Mapping(2)))
    path = tmp_path / "good/rank1.safetensors"
    good = {n: RankFile(path)[n].copy() for n in RankFile(path).tensors}
    layer = "transformer.layers.0"

    def damaged(change: Any) -> list[str]:
        tensors = {n: a.copy() for n, a in good.items()}
        change(tensors)
        path.write_bytes(random_models.safetensors_bytes(tensors))
        return [str(f) for f in verify(tmp_path / "good").findings]

    def put(name: str, value: Any, at: Any = ...) -> Any:
        def change(tensors: dict[str, Any]) -> None:
            tensors[name][at] = value

        return change

    assert damaged(lambda t: None) == []
    assert "missing" in damaged(lambda t: t.pop(f"{layer}.mlp.fc.alpha"))[0]
    assert "not required" in damaged(lambda t: t.update(stray=np.zeros(1, np.float32)))[0]
    assert "should be" in damaged(lambda t: t.update({f"{layer}.mlp.fc.alpha": np.ones(2, np.float32)}))[0]
    assert "NaN" in damaged(put(f"{layer}.input_layernorm.weight", np.nan, 3))[0]
    assert "not positive" in damaged(put(f"{layer}.mlp.fc.activation_global_scaling_factor", -1))[0]
    assert "product" in damaged(put(f"{layer}.mlp.fc.alpha", 7.0))[0]
    assert "tiled" in damaged(put(f"{layer}.mlp.fc.weights_block_scaling_factor", 1.0))[0]
    assert "differs from rank0" in damaged(put("transformer.ln_f.weight", 9.0, 0))[0]
    path.write_bytes(path.read_bytes()[:-3])
    assert "rank1.safetensors" in str(verify(tmp_path / "good").findings[0])
    path.unlink()
    assert verify(tmp_path / "good").findings


def test_comparison_sees_wrong_weights(tmp_path: Path) -> None:
    quantization = {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    quantized_models.write(tmp_path / "m", llama(), lambda m: "FP8" if linear(m) else None, quantization)
    convert(tmp_path / "m", tmp_path / "out", Options())
    path = tmp_path / "out/rank0.safetensors"
    for name, change in (
        ("transformer.layers.1.mlp.proj.weights_scaling_factor", lambda a: a * 1.5),
        ("transformer.layers.0.attention.qkv.weight", lambda a: a[::-1]),
        ("transformer.vocab_embedding.weight", lambda a: a * 2),
        ("transformer.layers.0.post_layernorm.weight", lambda a: a + 1),
    ):
        tensors = {n: RankFile(path)[n].copy() for n in RankFile(path).tensors}
        whole = path.read_bytes()
        tensors[name] = np.ascontiguousarray(change(tensors[name])).astype(tensors[name].dtype)
        path.write_bytes(random_models.safetensors_bytes(tensors))
        assert verify(tmp_path / "out").findings == []
        findings = [str(f) for f in Comparison(tmp_path / "out", tmp_path / "m").findings()]
        assert len(findings) == 1 and name.rsplit(".", 1)[0] in findings[0]
        path.write_bytes(whole)


def test_verify_refuses_unprotected_heads_and_useless_excludes(tmp_path: Path) -> None:
    quantization = {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    quantized_models.write(tmp_path / "m", llama(), lambda m: "FP8" if linear(m) else None, quantization)
    convert(tmp_path / "m", tmp_path / "out", Options())
    raw = json.loads((tmp_path / "out/config.json").read_text())
    raw["quantization"]["exclude_modules"] = ["model.layers.0.mlp.gate"]
    (tmp_path / "out/config.json").write_text(json.dumps(raw))
    findings = "\n".join(map(str, verify(tmp_path / "out").findings))
    assert "lm_head is not protected" in findings and "matches no module" in findings


def test_an_error_says_what_to_do(tmp_path: Path) -> None:
    random_models.write(tmp_path / "m", llama(num_attention_heads=6, num_key_value_heads=3))
    with pytest.raises(EnginixError) as e:
        convert(tmp_path / "m", tmp_path / "out", Options(mapping=Mapping(4)))
    assert "one of 1" in (e.value.fix or "")
