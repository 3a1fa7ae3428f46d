"""What is wrong with a model is told apart from what is at hand, with a way out; before a weight is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quantized_models
import random_models

from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.checkpoint.convert import derive_conversion_spec as plan_conversion
from enginix.checkpoint.verify import verify_checkpoint
from enginix.cli import main
from enginix.errors import EnginixError, ModelError
from enginix.inspect import describe_model
from enginix.inspect.inspected_model import open_model

Tensors = dict[str, Any]
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def rewrite(directory: Path, change: Callable[[Tensors], Tensors], **keys: Any) -> Path:
    config = random_models.config("LlamaForCausalLM", **keys)
    tensors = random_models.write(directory, config)
    (directory / "model.safetensors").write_bytes(random_models.safetensors_bytes(change(tensors)))
    return directory


def renamed(rule: Callable[[str], str]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {rule(name): array for name, array in tensors.items()}


def without(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {n: a for n, a in tensors.items() if n not in names}


def added(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: np.zeros(24, np.float32)}


def as_float64(tensors: Tensors) -> Tensors:
    random_models.CODES[np.dtype(np.float64)] = "F64"
    return {n: a.astype(np.float64) if n == "model.norm.weight" else a for n, a in tensors.items()}


@pytest.mark.parametrize(
    ("change", "what", "fix"),
    [
        (renamed(lambda n: f"module.{n}"), "begin with 'module.'", "remove 'module.'"),
        (renamed(lambda n: n.removeprefix("model.")), "lack 'model.'", "save_pretrained"),
        (without(HEAD), "without a head", "tie_word_embeddings"),
        (without(EMBEDDING), "tied alias", "rename"),
        (as_float64, "is F64", "save the model in bfloat16"),
        (added("lm_head.bias"), "lm_head.bias", "llmapi"),
        (added("model.layers.0.self_attn.q_proj.lora_A.weight"), "lora_A", "merge"),
        (added("model.layers.0.self_attn.kv_scale"), "kv_scale", "AutoFP8"),
        (renamed(lambda n: n.replace("model.", "transformer.")), "in place of 'model.'", "rename"),
        (renamed(lambda n: n.replace("q_proj", "qkv_proj")), "fused with others", "architectures"),
        (renamed(lambda n: n.replace("gate_proj", "gate_up_proj")), "fused with others", "architectures"),
        (renamed(lambda n: n.replace("down_proj.weight", "down_proj.qweight")), "packed by GPTQ", "ModelOpt"),
        (added("model.layers.0.self_attn.q_proj.bias"), "q_proj.bias", "llmapi"),
        (added("model.layers.2.input_layernorm.weight"), "layers.2", "num_hidden_layers"),
        (added("score.weight"), "classifier or reward model", "remove"),
        (added("vision_tower.patch.weight"), "multimodal", "llmapi"),
        (added("model.layers.0.mlp.down_proj.weight.absmax"), "bitsandbytes", "ModelOpt"),
    ],
)
def test_tensors(change: Callable[[Tensors], Tensors], what: str, fix: str, tmp_path: Path) -> None:
    model = rewrite(tmp_path / "model", change)
    with pytest.raises(ModelError) as caught:
        plan_conversion(model, ConvertOptions())
    assert what in caught.value.what and fix in (caught.value.fix or "")
    with open_model(str(model)) as opened:
        refusal = describe_model(opened).refusal
    assert refusal is not None and caught.value.what in refusal


def fused(names: str) -> Callable[[Tensors], Tensors]:
    """Experts of a layer in one tensor, under these names."""

    def change(tensors: Tensors) -> Tensors:
        kept = {n: a for n, a in tensors.items() if ".experts." not in n}
        return {**kept, f"model.layers.0.{names}": np.zeros((4, 16, 24), np.float32)}

    return change


@pytest.mark.parametrize(
    ("architecture", "change", "what", "fix"),
    [
        ("MixtralForCausalLM", fused("block_sparse_moe.experts.w1"), "experts are fused", "from_config"),
        ("MixtralForCausalLM", fused("block_sparse_moe.experts.mlp.v1"), "fused", "save_pretrained"),
        ("Qwen3MoeForCausalLM", fused("mlp.experts.gate_up_proj"), "fused", "save_pretrained"),
        ("MixtralForCausalLM", renamed(lambda n: n.replace(".w3.", ".up_proj.")), "other names", "type"),
        ("Qwen3MoeForCausalLM", lambda tensors: {n: a for n, a in tensors.items() if ".experts.3." not in n},
         "the weights have 3 experts", "number of experts"),
        ("Phi3ForCausalLM", renamed(lambda n: n.replace("qkv_proj", "q_proj")), "or split", "architectures"),
    ],
)  # fmt: skip
def test_layers_of_another_class(
    architecture: str, change: Callable[[Tensors], Tensors], what: str, fix: str, tmp_path: Path
) -> None:
    tensors = random_models.write(tmp_path / "model", random_models.config(architecture))
    path = tmp_path / "model/model.safetensors"
    path.write_bytes(random_models.safetensors_bytes(change(tensors)))
    with pytest.raises(ModelError) as caught:
        plan_conversion(tmp_path / "model", ConvertOptions())
    assert what in caught.value.what and fix in (caught.value.fix or "")


def test_a_resized_vocabulary_and_bytes_that_nothing_explains(tmp_path: Path) -> None:
    more = dict.fromkeys((HEAD, EMBEDDING), np.zeros((40, 24), np.float32))
    larger = rewrite(tmp_path / "a", lambda tensors: tensors | more)
    with pytest.raises(ModelError, match="set vocab_size to 40"):
        plan_conversion(larger, ConvertOptions())
    bytes_of = rewrite(tmp_path / "b", lambda t: {n: a.astype(np.int8) if "down_proj" in n else a
                                                  for n, a in t.items()})  # fmt: skip
    with pytest.raises(ModelError, match=r"quantized, and nothing says how\n.*hf_quant_config"):
        plan_conversion(bytes_of, ConvertOptions())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html>\n<html><head></head></html>" * 20, "HTML page"),
        (b"\n<html>sign in</html>", "HTML page"),
        (b"<!-- a proxy -->\n<html></html>", "HTML page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML message"),
        (b'{"error":"Repository not found"}', "error message of the site"),
        (b"version https://hawser.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer"),
        (b"Invalid username or password.", "begins with 'Invalid username or password.'"),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_other_files_in_place_of_a_model(content: bytes, says: str, name: str, tmp_path: Path) -> None:
    model = rewrite(tmp_path / "model", lambda tensors: tensors)
    (model / name).write_bytes(content)
    with pytest.raises(ModelError, match=says):
        plan_conversion(model, ConvertOptions())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"PK\x03\x04" + b"\x14" * 60, "a zip archive"),
        (b"\x80\x02}q\x00." + b"\x01" * 60, "a pickle"),
        (b"GGUF" + b"\x03" * 60, "GGUF"),
        (b"\x1f\x8b" + b"\x08" * 60, "gzip"),
        (b"\xff" * 60, "header length"),
    ],
)
def test_other_formats_under_the_name_of_safetensors(content: bytes, says: str, tmp_path: Path) -> None:
    model = rewrite(tmp_path / "model", lambda tensors: tensors)
    (model / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=says):
        plan_conversion(model, ConvertOptions())


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["consolidated.safetensors"], "Mistral's own layout"),
        (["model.fp16.safetensors"], "rename it to model.safetensors"),
        (["consolidated.safetensors", "params.json"], "Mistral's own layout"),
        (["adapter_model.safetensors", "adapter_config.json"], "LoRA adapter"),
        (["model.gguf"], "GGUF"),
        (["rank0.safetensors"], "a TensorRT-LLM checkpoint, not a model"),
        (["rank0.engine"], "an engine of TensorRT-LLM, not a model"),
        (["pytorch_model.bin"], "pickle"),
        (["model-00001-of-00002.safetensors"], "index"),
    ],
)
def test_other_layouts(files: list[str], says: str, tmp_path: Path) -> None:
    model = rewrite(tmp_path / "model", lambda tensors: tensors)
    (model / "model.safetensors").unlink()
    for name in files:
        (model / name).write_bytes(b"x")
    with pytest.raises(ModelError, match=says):
        plan_conversion(model, ConvertOptions())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"unread": Infinity, "other": [NaN, -Infinity]}', None),
        ('{"unread": 1, "unread": 1}', None),
        ('{"unread": [NaN], "unread": [NaN]}', None),
        ('{"vocab_size": 37, "vocab_size": 38}', "twice"),
        ('{"rms_norm_eps": NaN}', "rms_norm_eps"),
        ('{"rope_theta": Infinity}', "rope_theta"),
    ],
)
def test_json_as_pythons_own_reader_takes_it(text: str, says: str | None, tmp_path: Path) -> None:
    model = rewrite(tmp_path / "model", lambda tensors: tensors)
    whole = json.dumps({k: v for k, v in json.loads((model / "config.json").read_text()).items()})
    (model / "config.json").write_text(whole[:-1] + ", " + text[1:])
    if says is None:
        plan_conversion(model, ConvertOptions())
        return
    with pytest.raises(EnginixError, match=says):
        plan_conversion(model, ConvertOptions())


def nvfp4_with_zero_scales(tensors: Tensors, erase: bool) -> Tensors:
    name = "model.layers.0.mlp.down_proj"
    scales = tensors[f"{name}.weight_scale"].copy()
    scales.view(np.uint8)[0, 0] = 0
    codes = tensors[f"{name}.weight"].copy()
    codes[0, :8] = 0x80 if erase else 0x31  # minus zero and zero, or values
    return {**tensors, f"{name}.weight_scale": scales, f"{name}.weight": codes}


@pytest.mark.parametrize("erase", [True, False])
def test_zero_scales_are_for_blocks_of_zeros_alone(erase: bool, tmp_path: Path) -> None:
    config = quantized_models.llama(hidden_size=128, intermediate_size=256, head_dim=32)
    tensors = quantized_models.write(
        tmp_path / "model",
        config,
        lambda m: "NVFP4" if quantized_models.linear(m) else None,
        {"quant_algo": "NVFP4", "exclude_modules": ["lm_head"]},
    )
    path = tmp_path / "model/model.safetensors"
    path.write_bytes(random_models.safetensors_bytes(nvfp4_with_zero_scales(tensors, erase)))
    convert_model(tmp_path / "model", tmp_path / "out", ConvertOptions())
    found = [str(f) for f in verify_checkpoint(tmp_path / "out").findings]
    assert (found == []) if erase else (len(found) == 1 and "weights are lost" in found[0])


def test_a_tied_head_that_differs_is_noted(tmp_path: Path) -> None:
    def other(tensors: Tensors) -> Tensors:
        return {**tensors, HEAD: tensors[EMBEDDING] * 2}

    model = rewrite(tmp_path / "model", other, tie_word_embeddings=True)
    assert any("tie_word_embeddings" in note for note in plan_conversion(model, ConvertOptions()).notes)


def write_fp8(directory: Path, quantization: dict[str, Any]) -> Tensors:
    config = quantized_models.llama(hidden_size=32, intermediate_size=32, head_dim=8)
    made = lambda m: "FP8" if quantized_models.linear(m) else None  # noqa: E731
    return quantized_models.write(directory, config, made, quantization)


def test_a_matrix_without_an_input_scale_was_not_calibrated(tmp_path: Path) -> None:
    tensors = write_fp8(tmp_path / "model", {"quant_algo": "FP8", "exclude_modules": ["lm_head"]})
    kept = without("model.layers.0.mlp.down_proj.input_scale")(tensors)
    (tmp_path / "model/model.safetensors").write_bytes(random_models.safetensors_bytes(kept))
    with pytest.raises(ModelError, match="its input was not calibrated") as caught:
        plan_conversion(tmp_path / "model", ConvertOptions())
    assert "enginix quantize" in str(caught.value.fix)


def test_a_description_without_an_algorithm_is_named(tmp_path: Path) -> None:
    write_fp8(tmp_path / "model", {"exclude_modules": ["lm_head"]})
    with pytest.raises(ModelError, match=r"hf_quant_config\.json names no quant_algo"):
        plan_conversion(tmp_path / "model", ConvertOptions())


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_no_numbers_are_named(dtype: str, value: float, tmp_path: Path) -> None:
    def break_one(tensors: Tensors) -> Tensors:
        tensors["model.layers.1.mlp.up_proj.weight"].reshape(-1)[-1] = value
        return tensors

    model = rewrite(tmp_path / "model", break_one)
    with pytest.raises(ModelError, match=r"'model\.layers\.1\.mlp\.up_proj\.weight' holds NaN") as caught:
        convert_model(model, tmp_path / "out", ConvertOptions(dtype=dtype))
    assert "model.safetensors" in str(caught.value) and not (tmp_path / "out").exists()
    assert "compare the file with the Hub's" in (caught.value.fix or "")


OTHER_CONFIGS: dict[str, dict[str, str]] = {
    "a TensorRT-LLM checkpoint, not a model": {"config.json": '{"architecture": "LlamaForCausalLM"}'},
    "an engine of TensorRT-LLM, not a model": {
        "config.json": '{"pretrained_config": {}, "build_config": {}}'
    },
    "an engine, not a model": {"enginix.json": '{"artefact": "engine"}', "checkpoint/config.json": "{}"},
}
TAKE_A_MODEL = {
    "calibrate": ["calibrate", "OTHER"],
    "reference": ["reference", "OTHER"],
    "quantize": ["quantize", "OTHER", "--format", "fp8"],
    "edgellm-export": ["edgellm-export", "OTHER"],
    "convert": ["convert", "OTHER"],
    "build-model": ["build", "CHECKPOINT", "--kind", "reference", "--model", "OTHER"],
    **{
        f"build-{option}": [
            "build", "CHECKPOINT", "--kind", "reference", "--model", "CHECKPOINT/tokenizer", f"--{option}",
            "OTHER",
        ]
        for option in ("original", "reference")
    },
}  # fmt: skip


@pytest.mark.parametrize("command", TAKE_A_MODEL)
@pytest.mark.parametrize("says", OTHER_CONFIGS)
def test_a_checkpoint_or_an_engine_in_a_models_place(
    says: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in OTHER_CONFIGS[says].items():
        path = tmp_path / "OTHER" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "OTHER/tokenizer.json").write_text("{}")
    (tmp_path / "CHECKPOINT/tokenizer").mkdir(parents=True)
    words = [str(tmp_path / w) if w.startswith(("OTHER", "CHECK")) else w for w in TAKE_A_MODEL[command]]
    assert main([*words, "-o", str(tmp_path / "out")]) == 3
    error = capsys.readouterr().err
    assert says in error and "pass the model that it was" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["calibrate", "reference", "quantize", "edgellm-export", "convert"])
def test_what_is_no_directory(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [command, str(tmp_path / "absent"), *(["--format", "fp8"] if command == "quantize" else [])]
    assert main([*words, "-o", str(tmp_path / "out")]) == 3
    assert "no such directory" in capsys.readouterr().err


def test_a_model_in_a_checkpoints_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(rewrite(tmp_path / "model", lambda tensors: tensors))
    for words in (
        ["verify-checkpoint", model],
        ["build", model, "--kind", "reference", "--model", model, "-o", str(tmp_path / "out")],
    ):
        assert main(words) == 3
        assert "a Hugging Face model, not a TensorRT-LLM checkpoint" in capsys.readouterr().err
