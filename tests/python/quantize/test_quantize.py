"""Every format on a CPU by the real ModelOpt: same bytes twice, true claims, taken by the next stage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from enginix import manifest
from enginix.checkpoint.compare_with_model import CheckpointComparison
from enginix.checkpoint.convert import ConvertOptions as Conversion
from enginix.checkpoint.convert import convert_model
from enginix.checkpoint.verify import verify_checkpoint as verify_checkpoint
from enginix.errors import ModelError, UsageError
from enginix.files import sha256_file
from enginix.quantize import source, verify
from enginix.quantize.formats import FormatChoice, resolve_format
from enginix.quantize.run import QuantizeOptions, quantize_model
from enginix.tables import load_table

pytest.importorskip("modelopt")
pytestmark = pytest.mark.slow

CONVERTED = [n for n, r in load_table("quantize")["formats"].items()
             if load_table("number_formats")["algorithms"][r["algorithm"]]["convert"]]  # fmt: skip
FORMATS = list(load_table("quantize")["formats"])
MIXED = {"effective_bits": 9.5, "candidates": ("w4a8_awq", "fp8")}
CARRIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "generation_config.json",
    "LICENSE",
)
# How far a format's logits lie from the model's, as a share of their own spread: a tiny model is hurt more
# than a large one. What a broken format does to it is beyond 1.
DISTANCE = {"fp8": 0.2, "fp8_pc_pt": 0.2, "int8_sq": 0.2, "int8_wo": 0.1, "mixed": 0.4}


def _choice(name: str, **more: Any) -> FormatChoice:
    return resolve_format(name, **(MIXED if name == "mixed" else {}), **more)


@pytest.fixture(scope="session")
def model(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first two of its four layers: what is done to one layer is done to each."""
    out = tmp_path_factory.mktemp("shallow") / "model"
    shutil.copytree(model, out)
    tensors = load_file(model / "model.safetensors")
    kept = {n: t for n, t in tensors.items() if not n.startswith(("model.layers.2.", "model.layers.3."))}
    save_file(kept, out / "model.safetensors", {"format": "pt"})
    raw = json.loads((model / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**raw, "num_hidden_layers": 2, "max_window_layers": 2}))
    return out


@pytest.fixture(scope="module")
def quantized(model: Path, calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Name → its quantized model, made once."""
    made: dict[str, Path] = {}

    def make(name: str, **more: Any) -> Path:
        key = name + json.dumps(more)
        if key not in made:
            out = tmp_path_factory.mktemp(name) / "quantized"
            quantize_model(model, out, _choice(name, **more), calibration, QuantizeOptions())
            made[key] = out
        return made[key]

    return make


@pytest.mark.parametrize("name", [*FORMATS, "mixed"])
def test_twice_the_same_bytes(
    name: str, quantized: Any, model: Path, calibration: Path, tmp_path: Path
) -> None:
    """Also on another number of threads."""
    import torch

    threads = torch.get_num_threads()
    try:
        quantize_model(
            model,
            tmp_path / "again",
            _choice(name),
            calibration,
            QuantizeOptions(threads=3 - min(threads, 2)),
        )
    finally:
        torch.set_num_threads(threads)
    first = {p.name: sha256_file(p) for p in quantized(name).iterdir()}
    assert first == {p.name: sha256_file(p) for p in (tmp_path / "again").iterdir()}


@pytest.mark.parametrize("name", [*FORMATS, "mixed"])
def test_the_directory(name: str, quantized: Any, model: Path, calibration: Path) -> None:
    there = quantized(name)
    for carried in CARRIED:
        assert (there / carried).read_bytes() == (model / carried).read_bytes(), carried
    claimed = json.loads((there / "hf_quant_config.json").read_text())["quantization"]
    assert claimed["kv_cache_quant_algo"] is None
    found = manifest.read_manifest(there, "quantized-model")
    assert found.model["quantization"] == claimed["quant_algo"] == _choice(name).algorithm
    assert found.inputs["calibration"]["sha256"] == sha256_file(calibration)
    assert found.results["bytes"] == sum(p.stat().st_size for p in there.glob("*.safetensors"))
    assert sum(found.results["matrices"].values()) == 14
    assert 4 < found.results["bitsPerWeight"] < 16
    whole = "".join(p.read_text() for p in there.glob("*.json"))
    assert str(model) not in whole and str(there.parent) not in whole


@pytest.mark.parametrize("name", [*CONVERTED, "mixed"])
def test_the_next_stage_takes_it(name: str, quantized: Any, tmp_path: Path) -> None:
    convert_model(quantized(name), tmp_path / "out", Conversion())
    assert verify_checkpoint(tmp_path / "out").findings == []
    assert list(CheckpointComparison(tmp_path / "out", quantized(name)).findings()) == []
    found = manifest.read_manifest(tmp_path / "out", "checkpoint")
    assert found.inputs["model"]["artefact"] == "quantized-model"


def test_int8_wo_is_told_where_it_cannot_go(quantized: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="compiled operator"):
        convert_model(quantized("int8_wo"), tmp_path / "out", Conversion())


def _restored(there: Path, name: str) -> dict[str, Any]:
    """Weights of the plainly scaled formats, multiplied out again."""
    tensors = load_file(there / "model.safetensors")
    found = {}
    for key, value in tensors.items():
        if key.endswith(".weight"):
            scale = tensors.get(key + "_scale")
            if scale is not None:
                scale = scale.float()[:, None] if scale.dim() == 1 else scale.float()
                value = value.float() * scale
            found[key] = value.float()
    return found


@pytest.mark.parametrize("name", ["fp8", "fp8_pc_pt", "int8_wo"])
def test_it_still_computes_the_function(name: str, quantized: Any, model: Path, calibration: Path) -> None:
    """The stored weights, multiplied out, in the original network: logits near the original's."""
    import torch
    from transformers import AutoModelForCausalLM

    from enginix.quantize.calibration import read_calibration

    tokens = torch.from_numpy(read_calibration(calibration).tokens[:2].astype(np.int64))
    with torch.no_grad():
        network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        before = network(tokens).logits
        network.load_state_dict(_restored(quantized(name), name), strict=False)
        after = network(tokens).logits
    distance = float((after - before).norm() / (before - before.mean()).norm())
    assert 0 < distance < DISTANCE[name]


def _scales_of_inputs(there: Path) -> dict[str, Any]:
    return {k: v for k, v in load_file(there / "model.safetensors").items() if "pre_quant" in k}


def test_int4_wo_has_the_form_that_its_label_says(quantized: Any) -> None:
    """ModelOpt claims pre_quant_scale and writes none; ours is 1, where int4_awq has one."""
    neutral = _scales_of_inputs(quantized("int4_wo"))
    searched = _scales_of_inputs(quantized("int4_awq"))
    assert neutral.keys() == searched.keys() and all((v == 1).all() for v in neutral.values())


@pytest.mark.parametrize("name", ["fp8", "nvfp4", "int4_awq", "int8_sq", "int8_wo"])
def test_a_kv_cache_is_quantized_when_asked(name: str, quantized: Any) -> None:
    there = quantized(name, kv_cache="fp8")
    claimed = json.loads((there / "hf_quant_config.json").read_text())["quantization"]
    tensors = load_file(there / "model.safetensors")
    scales = {k: float(v) for k, v in tensors.items() if k.endswith((".k_scale", ".v_scale"))}
    assert claimed["kv_cache_quant_algo"] == "FP8" and len(scales) == 4
    assert len(set(scales.values())) > 1  # measured, not 1.0 everywhere
    found = manifest.read_manifest(there)
    assert found.model["kvCacheQuantization"] == "FP8"
    assert any("30 billion" in w for w in found.results["warnings"])
    plain = load_file(quantized(name) / "model.safetensors")
    assert tensors.keys() - plain.keys() == scales.keys()


def test_weight_only_formats_need_no_calibration(model: Path, quantized: Any, tmp_path: Path) -> None:
    quantize_model(model, tmp_path / "out", _choice("int8_wo"), None, QuantizeOptions())
    one, two = (p / "model.safetensors" for p in (tmp_path / "out", quantized("int8_wo")))
    assert sha256_file(one) == sha256_file(two)
    assert manifest.read_manifest(tmp_path / "out").inputs["calibration"] is None


def test_calibration_data_matter(model: Path, quantized: Any, tmp_path: Path) -> None:
    from enginix.quantize.calibration import Recipe, make_calibration

    make_calibration(model, tmp_path / "data", None, Recipe(16, 96, seed=5))
    quantize_model(model, tmp_path / "out", _choice("fp8"), tmp_path / "data", QuantizeOptions())
    assert sha256_file(tmp_path / "out/model.safetensors") != sha256_file(
        quantized("fp8") / "model.safetensors"
    )


def test_mixed_keeps_its_budget_and_mixes(quantized: Any) -> None:
    found = manifest.read_manifest(quantized("mixed"))
    assert set(found.results["matrices"]) >= {"FP8", "W4A8_AWQ"}
    # The search counts the head, which stays as it is and shares the embedding's weights here.
    assert found.results["bitsPerWeight"] <= MIXED["effective_bits"] + 0.1


def test_a_budget_that_cannot_be_met(model: Path, calibration: Path, tmp_path: Path) -> None:
    choice = resolve_format("mixed", effective_bits=5.0, candidates=("int4_awq", "int8_sq"))
    with pytest.raises(UsageError, match=r"--effective-bits 5\.0: .*minimum"):
        quantize_model(model, tmp_path / "out", choice, calibration, QuantizeOptions())
    assert not list(tmp_path.iterdir())


def _break(directory: Path, how: str) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    module = "model.layers.1.mlp.up_proj"
    if how == "unquantized":
        tensors[f"{module}.weight"] = tensors[f"{module}.weight"].to(tensors["model.norm.weight"].dtype)
    elif how == "shape":
        tensors[f"{module}.weight"] = tensors[f"{module}.weight"][:-1].contiguous()
    elif how == "missing":
        del tensors[f"{module}.weight"]
    elif how == "no scale":
        del tensors[f"{module}.input_scale"]
    elif how in ("zero", "nan", "negative"):
        value = {"zero": 0.0, "nan": float("nan"), "negative": -1.0}[how]
        tensors[f"{module}.weight_scale"].fill_(value)
    save_file(tensors, path, {"format": "pt"})
    claim = directory / "hf_quant_config.json"
    raw = json.loads(claim.read_text())
    if how == "claim":
        raw["quantization"]["quant_algo"] = "NVFP4"
    elif how == "kv claim":
        raw["quantization"]["kv_cache_quant_algo"] = "FP8"
    elif how == "excluded":
        raw["quantization"]["exclude_modules"].append(f"{module}*")
    claim.write_text(json.dumps(raw))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("unquantized", "not quantized"),
        ("shape", "does not fit"),
        ("missing", "is missing"),
        ("no scale", "input_scale' is missing"),
        ("zero", "not finite and positive"),
        ("nan", "not finite and positive"),
        ("negative", "not finite and positive"),
        ("claim", "'FP8' was requested"),
        ("kv claim", "None was requested"),
        ("excluded", "but not as it was"),
    ],
)
def test_a_broken_export_is_refused(
    how: str, message: str, quantized: Any, model: Path, tmp_path: Path
) -> None:
    there = tmp_path / "broken"
    shutil.copytree(quantized("fp8"), there)
    assert verify.verify_export(there, _choice("fp8"), source.read_source_model(model)) == {"FP8": 14}
    _break(there, how)
    with pytest.raises(ModelError, match=message):
        verify.verify_export(there, _choice("fp8"), source.read_source_model(model))


def test_a_broken_export_leaves_nothing(
    model: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check is part of the stage: what it refuses never appears."""
    from enginix.quantize import ptq

    export = ptq.export_checkpoint

    def broken(network: Any, directory: Path) -> None:
        export(network, directory)
        _break(directory, "unquantized")

    monkeypatch.setattr(ptq, "export_checkpoint", broken)
    with pytest.raises(ModelError, match="not quantized"):
        quantize_model(model, tmp_path / "out", _choice("fp8"), calibration, QuantizeOptions())
    assert not list(tmp_path.iterdir())


# Sizes of random models whose class ModelOpt was seen to quantize, and of one that it was seen to refuse.
FAMILIES: dict[str, dict[str, Any]] = {
    "GPT2": {"n_embd": 128, "n_layer": 1, "n_head": 4},
    "MPT": {"d_model": 128, "n_layers": 1, "n_heads": 4},
    "Cohere": {
        "hidden_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 128,
    },
    "Bloom": {"hidden_size": 128, "n_layer": 1, "n_head": 4},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families_work_or_are_refused_before_work(
    family: str, model: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    stem = {"MPT": "Mpt"}.get(family, family)
    config = getattr(transformers, f"{stem}Config")(vocab_size=2048, bos_token_id=1, **FAMILIES[family])
    network = transformers.AutoModelForCausalLM.from_config(config)
    network.bfloat16().save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model / name, tmp_path / "model" / name)
    architecture = source.read_source_model(tmp_path / "model").architecture
    for name in ("fp8", "int8_sq", "int4_awq"):
        try:
            choice = resolve_format(name, architecture=architecture)
        except UsageError as e:
            assert family == "Bloom" and e.fix
            continue
        assert family != "Bloom"
        quantize_model(tmp_path / "model", tmp_path / name, choice, calibration, QuantizeOptions())
