"""Refused before a weight is read: formats, options, targets, shapes, calibration of another model."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from enginix.checkpoint.formats import format_of
from enginix.errors import MachineError, ModelError, UsageError
from enginix.quantize import calibration as calibrate
from enginix.quantize import source
from enginix.quantize.formats import check_shapes, find_format, resolve_format, warn_of_kv_cache
from enginix.tables import load_table

TABLE = load_table("quantize")


def test_every_row_is_known_to_the_other_tables() -> None:
    for name in TABLE["formats"]:
        found = find_format(name)
        assert found.algorithm in load_table("number_formats")["algorithms"], name
        assert load_table("number_formats")["algorithms"][found.algorithm]["engine"], name
        if load_table("number_formats")["algorithms"][found.algorithm]["convert"]:
            assert format_of(found.algorithm, "trtllm")
    assert set(TABLE["mixed"]["allowed"]) <= set(TABLE["formats"])
    assert not set(TABLE["refused"]) & set(TABLE["formats"])


def test_every_recipe_is_modelopts() -> None:
    source_of = pytest.importorskip("modelopt.torch.quantization.config")
    for found in [*TABLE["formats"].values(), *TABLE["kvCache"].values()]:
        assert getattr(source_of, found["recipe"])["quant_cfg"]


def test_a_kv_cache_that_exports_ignore_is_told_before_quantizing() -> None:
    for name in ("int4_awq", "int4_wo"):
        (warning,) = resolve_format(name, kv_cache="fp8").warnings
        assert "kind edgellm refuses this model" in warning and "without --kv-cache" in warning
        assert not resolve_format(name).warnings
    assert not resolve_format("fp8", kv_cache="fp8").warnings


@pytest.mark.parametrize("name", sorted(TABLE["refused"]))
def test_refused_formats_name_another(name: str) -> None:
    with pytest.raises(UsageError) as e:
        resolve_format(name)
    assert TABLE["refused"][name]["instead"] in str(e.value) and name in str(e.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"name": "fp9"}, "unknown format 'fp9'"),
        ({"name": "fp8", "effective_bits": 6.0}, "are for --format mixed"),
        ({"name": "fp8", "candidates": ("fp8", "nvfp4")}, "are for --format mixed"),
        ({"name": "mixed"}, "needs a budget"),
        ({"name": "mixed", "effective_bits": 3.0}, "not between 4"),
        ({"name": "mixed", "effective_bits": 16.0}, "not between 4"),
        ({"name": "mixed", "effective_bits": float("nan")}, "not between 4"),
        ({"name": "mixed", "effective_bits": 6.0, "candidates": ("fp8",)}, "two candidates"),
        ({"name": "mixed", "effective_bits": 6.0, "candidates": ("fp8", "fp8")}, "two candidates"),
        (
            {"name": "mixed", "effective_bits": 6.0, "candidates": ("fp8", "int8_wo")},
            "not a candidate of mixed",
        ),
        ({"name": "fp8", "kv_cache": "int8"}, "known to give garbage"),
        ({"name": "fp8", "kv_cache": "fp7"}, "unknown KV cache format"),
        ({"name": "nvfp4", "target_name": "h200"}, "NVFP4 needs SM 100 or later"),
        ({"name": "int4_awq", "target_name": "b200"}, "refuses W4A16_AWQ for SM 100"),
        ({"name": "fp8", "target_name": "a100-80gb"}, "FP8 needs SM 89"),
        ({"name": "fp8", "target_name": "h2000"}, "unknown target"),
        (
            {"name": "fp8", "target_name": "t4"},
            "no software of NVIDIA's that enginix serves with has code for SM 75",
        ),
    ],
)
def test_requests_that_cannot_be(words: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve_format(**words)


@pytest.mark.parametrize(("gpu", "names"), [("b200", ["nvfp4", "fp8"]), ("h200", ["w4a8_awq", "fp8"]),
                                            ("a100-80gb", ["int4_awq", "int8_sq"])])  # fmt: skip
def test_mixed_takes_what_the_target_executes(gpu: str, names: list[str]) -> None:
    found = resolve_format("mixed", effective_bits=9.0, target_name=gpu)
    assert [f.name for f in found.formats] == names and found.algorithm == "MIXED_PRECISION"


def test_mixed_on_a_cpu_is_without_nvfp4() -> None:
    assert [f.name for f in resolve_format("mixed", effective_bits=9.0, device="cpu").formats] == [
        "w4a8_awq",
        "fp8",
    ]
    for more in ({"candidates": ("nvfp4", "fp8")}, {"target_name": "b200"}):
        with pytest.raises(UsageError, match="emulates nvfp4 on CUDA alone"):
            resolve_format("mixed", effective_bits=9.0, device="cpu", **more)  # type: ignore[arg-type]


def test_what_nobody_vouches_for_is_said() -> None:
    found = resolve_format("fp8", kv_cache="fp8", target_name="h200", architecture="Qwen3ForCausalLM")
    assert any("Qwen3 with FP8 weights and FP8 KV cache failed" in w for w in found.warnings)
    assert not resolve_format("fp8", target_name="h200", architecture="LlamaForCausalLM").warnings
    assert not resolve_format("fp8", target_name="h200").warnings
    for name, says in (
        ("Gemma3ForCausalLM", "llmapi alone may"),
        ("Cohere2ForCausalLM", "no kind will"),
    ):
        (warning,) = resolve_format("fp8", target_name="h200", architecture=name).warnings
        assert warning.startswith(f"enginix convert does not take {name}") and says in warning


def test_what_conversion_refuses_later_is_told_before_quantizing() -> None:
    def list_told(name: str, architecture: str) -> list[str]:
        warnings = resolve_format(name, architecture=architecture).warnings
        return [w for w in warnings if w.startswith(f"enginix convert takes {architecture}")]

    assert "unquantized only" in list_told("fp8", "CohereForCausalLM")[0]
    assert "in FP8, " in list_told("fp8_pc_pt", "GPT2LMHeadModel")[0]
    assert list_told("fp8", "GPT2LMHeadModel") == list_told("fp8_pc_pt", "Qwen3ForCausalLM") == []


@pytest.mark.parametrize("name", TABLE["architecturesRefused"]["rows"])
def test_classes_that_modelopt_does_not_quantize_are_refused_before_work(name: str) -> None:
    """Slow tests of ModelOpt itself: test_quantize.py."""
    formats = TABLE["architecturesRefused"]["rows"][name]["formats"]
    for chosen in [*TABLE["formats"], "mixed"]:
        bits = {"effective_bits": 9.0} if chosen == "mixed" else {}
        if chosen in (formats or [chosen]):
            with pytest.raises(UsageError, match=f"{name} cannot be quantized to {chosen}") as e:
                resolve_format(chosen, architecture=name, device="cpu", **bits)  # type: ignore[arg-type]
            assert e.value.fix
        else:
            assert resolve_format(chosen, architecture=name, device="cpu", **bits)  # type: ignore[arg-type]


def test_small_models_with_an_fp8_cache_are_warned_of() -> None:
    assert "4218" in str(warn_of_kv_cache(8_000_000_000))
    assert warn_of_kv_cache(70_000_000_000) is None


def test_shapes() -> None:
    check_shapes(resolve_format("int4_awq"), {"a": (7, 256)}, False, "m")
    with pytest.raises(UsageError, match=r"a has 100 columns(.|\n)*use fp8, fp8_pc_pt, int8_sq, int8_wo"):
        check_shapes(resolve_format("nvfp4"), {"a": (7, 100)}, False, "m")
    with pytest.raises(UsageError, match=r"has experts(.|\n)*use fp8 or nvfp4"):
        check_shapes(resolve_format("int8_sq"), {"a": (7, 256)}, True, "m")


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    there = tmp_path / "model"
    shutil.copytree(model, there)
    return there


def _change(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_model_is_read(model: Path) -> None:
    found = source.read_source_model(model)
    assert len(found.matrices) == 28 and found.architecture == "Qwen3ForCausalLM" and not found.experts
    assert found.parameters == sum(a.size for a in load_file_sizes(model))


def load_file_sizes(model: Path) -> list[Any]:
    from safetensors import safe_open

    with safe_open(model / "model.safetensors", "pt") as f:
        return [np.empty(f.get_slice(k).get_shape()) for k in f.keys()]  # noqa: SIM118


def test_models_that_are_refused(copy: Path) -> None:
    _change(copy, quantization_config={"quant_method": "gptq"})
    with pytest.raises(UsageError, match="quantized already"):
        source.read_source_model(copy)
    _change(copy, quantization_config=None, auto_map={"AutoModel": "code.Model"})
    assert source.read_source_model(
        copy
    ).architecture  # transformers has it: Phi-3 is published with an auto_map
    _change(copy, architectures=["CodeForCausalLM"])
    with pytest.raises(UsageError, match="transformers has no CodeForCausalLM"):
        source.read_source_model(copy)
    _change(copy, auto_map=None, architectures=[])
    with pytest.raises(ModelError, match="names no architecture"):
        source.read_source_model(copy)
    with pytest.raises(ModelError, match="no such directory"):
        source.read_source_model(copy / "nowhere")


def test_int8_weights_without_a_claim_are_refused(copy: Path) -> None:
    save_file({"model.layers.0.mlp.up_proj.weight": np.ones((4, 4), np.int8)}, copy / "model.safetensors")
    with pytest.raises(ModelError, match="is I8"):
        source.read_source_model(copy)


def test_calibration_of_another_model(copy: Path, calibration: Path) -> None:
    data = calibrate.read_calibration(calibration)
    source.check_calibration(source.read_source_model(copy), data, "c")
    _change(copy, vocab_size=100)
    with pytest.raises(UsageError, match="beyond the model's vocabulary of 100"):
        source.check_calibration(source.read_source_model(copy), data, "c")
    _change(copy, vocab_size=2048, max_position_embeddings=64)
    with pytest.raises(UsageError, match="the model's context is 64"):
        source.check_calibration(source.read_source_model(copy), data, "c")
    _change(copy, max_position_embeddings=2048)
    tokenizer = copy / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace(" ", "  ", 1))
    with pytest.raises(UsageError, match=r"another tokenizer\.json"):
        source.check_calibration(source.read_source_model(copy), data, "c")
    # Without a file in common, nothing says that the ids mean the same.
    data.about["tokenizer"].clear()
    data.about["tokenizer"]["tokenizer.model"] = "0" * 64
    with pytest.raises(UsageError, match="cannot verify that this tokenizer belongs to the model"):
        source.check_calibration(source.read_source_model(copy), data, "c")


def test_too_little_memory_or_disk(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = source.read_source_model(model)
    source.check_machine(found, tmp_path / "out", "cpu")
    monkeypatch.setattr(source, "_available_memory", lambda: 1000)
    with pytest.raises(MachineError, match="of memory are needed"):
        source.check_machine(found, tmp_path / "out", "cpu")
    monkeypatch.setattr(source, "_available_memory", lambda: None)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(MachineError, match="or more, 10 B are free"):
        source.check_machine(found, tmp_path / "out", "cpu")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_memory_that_is_needed_is_the_tables(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """Nix names it at evaluation, from the same table."""
    found = source.read_source_model(model)
    percent = load_table("quantize")["memory"]["percentOfWeights"][device]
    monkeypatch.setattr(source, "_available_memory", lambda: found.bytes * percent // 100)
    source.check_machine(found, tmp_path / "out", device)
    monkeypatch.setattr(source, "_available_memory", lambda: found.bytes * percent // 100 - 1)
    with pytest.raises(MachineError, match="of memory are needed"):
        source.check_machine(found, tmp_path / "out", device)


def test_room_for_a_model_of_float32(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A half byte a weight is what a result may take, whatever the model took."""
    save_file(
        {"model.layers.0.mlp.up_proj.weight": np.ones((64, 64), np.float32)}, copy / "model.safetensors"
    )
    monkeypatch.setattr(source, "_available_memory", lambda: None)
    for free in (64 * 64 // 2, 64 * 64 // 2 - 1):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: type("Usage", (), {"free": free}))
        if free == 64 * 64 // 2:
            source.check_machine(source.read_source_model(copy), copy / "out", "cpu")
        else:
            with pytest.raises(MachineError, match="or more"):
                source.check_machine(source.read_source_model(copy), copy / "out", "cpu")


@pytest.mark.parametrize("command", ["quantize", "calibrate"])
def test_help_imports_nothing_heavy(command: str) -> None:
    code = (
        f"import sys\nfrom enginix import cli\n"
        f"try: cli.main(['{command}', '--help'])\nexcept SystemExit: pass\n"
        "sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'transformers', 'modelopt')))"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(source.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_refusals_come_before_torch(enginix: Any, model: Path, tmp_path: Path, calibration: Path) -> None:
    """The command line refuses what headers can tell; a torch that cannot be imported proves the order."""
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    trap = {"PYTHONPATH": f"{tmp_path}:{Path(source.__file__).parents[2]}"}
    out = tmp_path / "out"
    for words, message in (
        (("--format", "int4_gptq"), "use int4_awq"),
        (("--format", "nvfp4", "--target", "h200"), "NVFP4 needs SM 100"),
        (("--format", "fp8"), "needs calibration data"),
        (("--format", "fp8", "--calibration", tmp_path / "none"), "no such calibration file"),
        (("--format", "fp8", "--calibration", calibration, "--batch-size", "0"), "--batch-size: 0"),
    ):
        done = enginix("quantize", model, "-o", out, *words, **trap)
        assert message in done.stderr and "torch was imported" not in done.stderr
        assert done.returncode in (2, 3) and not out.exists()


def test_the_page_has_every_format() -> None:
    """docs/reference/quantization.md has a row for each format, with TensorRT-LLM's name and the SMs."""
    page = (Path(__file__).parents[3] / "docs/reference/quantization.md").read_text("utf-8")
    page = page.partition("## Formats\n")[2].partition("\n## ")[0]
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    assert set(rows) == {*TABLE["formats"], "mixed"}
    for name, raw in TABLE["formats"].items():
        cells = [c.strip() for c in rows[name].strip("|").split("|")]
        support = load_table("number_formats")["algorithms"][raw["algorithm"]]
        assert cells[1] == raw["algorithm"]
        assert cells[4] == ("yes" if raw["calibrates"] else "no"), name
        assert cells[5].startswith(f"SM {support['minSm']} "), name
        assert ("to 99, SM 120" in cells[5]) == (support["refusedSm"] == [100, 120]), name
        assert (
            cells[6].startswith("yes")
            == load_table("number_formats")["algorithms"][raw["algorithm"]]["convert"]
        )


@pytest.mark.parametrize(
    ("name", "gpu"),
    [("int4_awq", "jetson-t5000"), ("int8_sq", "jetson-t5000"), ("fp8", "vr200"), ("int4_awq", "igx-orin")],
)
def test_a_gpu_without_the_engine_path_is_not_held_to_its_builder(name: str, gpu: str) -> None:
    """Edge-LLM takes W4A16_AWQ for Thor (docs/explanation/kinds.md), which TensorRT-LLM's builder refuses."""
    resolve_format(name=name, target_name=gpu)


@pytest.mark.parametrize(
    ("name", "gpu"), [("w4a8_awq", "jetson-t5000"), ("nvfp4", "igx-orin"), ("int8_wo", "thor")]
)
def test_a_gpu_without_the_engine_path_takes_what_its_kinds_take(name: str, gpu: str) -> None:
    with pytest.raises(UsageError, match="kind edgellm takes no") as refusal:
        resolve_format(name=name, target_name=gpu)
    (offered,) = re.findall("--format ([a-z0-9_]+)", refusal.value.fix or "")
    resolve_format(name=offered, target_name=gpu)
