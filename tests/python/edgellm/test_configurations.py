"""What config.json says and an export cannot express is refused by name; neutral values are not."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers

from enginix.errors import ModelError
from enginix.kinds.edgellm.source import read_export_source
from enginix.kinds.edgellm.unsupported_models import (
    note_head_size,
    parse_export_config,
    require_covered_context,
)
from enginix.model.config import parse_config
from enginix.tables import load_table

from .conftest import TINY, change, refuse

ONES = [1.0] * 16


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"hidden_activation": "gelu"}, "hidden_activation"),
        ({"mlp_hidden_act": "gelu"}, "mlp_hidden_act"),
        ({"attention_scaling": 0.5}, "attention_scaling is 0.5"),
        ({"qk_scale": 1}, "qk_scale"),
        ({"embedding_scale": 4.0}, "embedding_scale"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"output_multiplier": 2.0}, "output_multiplier"),
        ({"skip_softmax_scale_factor": 0.1}, "skip_softmax_scale_factor"),
        ({"swa_window_size": 16}, "swa_window_size"),
        ({"num_experts": 4}, "num_experts"),
        ({"mtp_num_hidden_layers": 1}, "mtp_num_hidden_layers"),
        ({"text_config": {"hidden_size": 64}}, "text_config"),
        ({"vision_config": {"depth": 1}}, "vision_config"),
        ({"max_position_embeddings": None}, "max_position_embeddings is not in config.json"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 1.0}}, "factor 1 is plain rotary embedding"),
        ({"auto_map": {"AutoConfig": "configuration_own.OwnConfig"}}, "auto_map names code"),
        ({"layer_types": ["full_attention"]}, "layer_types has 1 entries for 4 layers"),
        ({"layer_types": ["linear_attention"] * 4}, "layer_types has 'linear_attention'"),
        ({"layer_types": ["sliding_attention"] * 4}, "layer_types names sliding layers"),
        ({"eagle_base": True}, "eagle_base"),
        ({"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 2}, "2 of 4 layers"),
        ({"rope_theta": 5e5}, "rope_theta is"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_scaling and rope_parameters differ"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"torch_dtype": "float16"}, "torch_dtype"),
        ({"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}}, "mrope_section"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "alpha": 1000.0}}, "alpha 1000.0"),
        ({"rope_parameters": {"rope_type": "longrope", "short_factor": ONES, "long_factor": ONES}},
         "rope scaling 'longrope'"),
        ({"head_dim": 64, "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "truncate": False,
                                              "original_max_position_embeddings": 512}}, "truncate"),
        ({"head_dim": 64, "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "beta_fast": None,
                                              "original_max_position_embeddings": 512}}, "beta_fast"),
        ({"head_dim": 64, "rope_parameters": {"rope_type": "yarn", "original_max_position_embeddings": 512}},
         "factor of the yarn"),
        ({"head_dim": 64, "rope_parameters": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0,
                                              "high_freq_factor": 4.0}},
         "original_max_position_embeddings of"),
        ({"head_dim": 64, "original_max_position_embeddings": 512,
          "rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "stands beside the rope parameters"),
        ({"head_dim": 64, "original_max_position_embeddings": 512,
          "rope_parameters": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0,
                              "high_freq_factor": 4.0}}, "stands beside the rope parameters"),
        ({"rope_parameters": {"rope_type": "default", "type": "yarn", "factor": 4.0}}, "type 'yarn'"),
        ({"head_dim": 64, "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "mscale": 2.0,
                                              "mscale_all_dim": 1.0,
                                              "original_max_position_embeddings": 512}},
         "attention_factor"),
    ],
)  # fmt: skip
def test_configurations_that_another_function_would_come_of(
    changes: dict[str, Any], words: str, model: Path
) -> None:
    change(model / "config.json", **changes)
    refuse(model, words)


STRANGE: tuple[Any, ...] = (None, True, 0, 64, 0.5, "text")


@pytest.mark.parametrize("row", load_table("edgellm")["architectures"].values(), ids=lambda r: r["modelType"])
def test_types_of_values_are_those_that_transformers_takes(row: dict[str, Any]) -> None:
    """Of every key whose type transformers' class declares as plain values, in the table or not."""
    kind = transformers.CONFIG_MAPPING[row["modelType"]]
    plain = kind().to_dict()
    # Text that nothing here reads; lists and objects, which have readers of their own.
    elsewhere = {"transformers_version", "problem_type", "dtype", "eos_token_id", "architectures"}
    elsewhere |= {"id2label", "label2id", "rope_parameters", "layer_types"}
    for key in sorted(set(plain) - elsewhere):
        for value in STRANGE:
            name = "null" if value is None else type(value).__name__
            is_taken = key not in row["valueTypes"] or name in row["valueTypes"][key].split("|")
            assert is_taken is not is_type_refused(kind, {**plain, key: value}), (key, value)


def is_type_refused(kind: Any, raw: dict[str, Any]) -> bool:
    try:
        kind.from_dict(raw)
    except Exception as e:
        return "expected" in str(e) and "got" in str(e)
    return False


@pytest.mark.parametrize(
    ("key", "value"), [("tie_word_embeddings", None), ("rms_norm_eps", 0), ("use_cache", 1)]
)
def test_values_of_a_type_that_transformers_refuses(key: str, value: Any, model: Path) -> None:
    change(model / "config.json", **{key: value})
    refuse(model, f"{key} is {json.dumps(value)}, and transformers' Qwen3ForCausalLM takes")


@pytest.mark.parametrize(
    ("listed", "inline", "words"),
    [
        (["lm_head", "model.layers.1*"], {"ignore": ["lm_head"]},
         "model.layers.1.mlp.down_proj is unquantized by hf_quant_config.json, and quantized by config.json"),
        ([], {"ignore": ["lm_head"]}, "lm_head is unquantized by config.json's quantization_config, and"),
        (["lm_head"], {"quant_algo": "NVFP4"}, "its quant_algo is FP8, and NVFP4"),
        (["lm_head"], {"kv_cache_scheme": {"num_bits": 8, "type": "float"}}, "its KV cache is not quantized"),
        (["lm_head*", "model.embed_tokens"], {"ignore": ["lm_head"]}, ""),
    ],
)  # fmt: skip
def test_two_descriptions_of_a_quantization_that_differ(
    listed: list[str], inline: dict[str, Any], words: str, model: Path
) -> None:
    section = {"quant_algo": "FP8", "exclude_modules": listed}
    (model / "hf_quant_config.json").write_text(json.dumps({"quantization": section}))
    change(
        model / "config.json",
        quantization_config={"quant_method": "modelopt", "quant_algo": "FP8", **inline},
    )
    if not words:  # the two say the same, with other patterns
        assert read_export_source(model).quantization == "FP8"
        return
    refuse(model, words)


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_scaling": None, "num_experts": 0, "final_logit_softcapping": None, "text_config": {}},
        {"sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 2},
        {"sliding_window": 4096, "use_sliding_window": True, "max_window_layers": 2},  # beyond the context
        {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 0},
        {"rope_scaling": None, "torch_dtype": None, "rope_theta": 10000.0},
        {"partial_rotary_factor": 1.0, "unknown_note": "of a trainer"},
        {"hidden_act": "swish", "pretraining_tp": 1},
    ],
)
def test_neutral_values_are_no_reason(changes: dict[str, Any], model: Path) -> None:
    change(model / "config.json", **changes)
    assert read_export_source(model)


def list_keys(path: Path) -> set[str]:
    """Keys that a module of the wheel reads of a configuration: by ``get``, by index, in loops over keys."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        key: Any = None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            key = node.args[0] if node.args else None
            base: ast.AST = node.func.value
        elif isinstance(node, ast.Subscript):
            key, base = node.slice, node.value
        elif isinstance(node, ast.For) and isinstance(node.iter, ast.Tuple):
            names |= {
                e.value for e in node.iter.elts if isinstance(e, ast.Constant) and isinstance(e.value, str)
            }
        known = {"llm_dict", "llm", "root", "config", "raw", "root_dict", "gen_config", "draft", "selected"}
        is_name = isinstance(key, ast.Constant) and isinstance(key.value, str)
        if is_name and isinstance(base, ast.Name) and base.id in known:
            names.add(key.value)
    return names


def test_every_key_that_nvidias_readers_take_is_known(edge: Path) -> None:
    """The judge is the wheel: a key that it reads, and that is in no list, may change an export."""
    packages = next((edge.parent.parent / "lib").glob("python3*")) / "site-packages"
    files = [
        "tensorrt_edgellm/config.py", "tensorrt_edgellm/checkpoint/checkpoint_utils.py",
        "experimental/builder/core/config.py", "experimental/builder/core/dspark_config.py",
    ]  # fmt: skip
    read = set().union(*(list_keys(packages / file) for file in files))
    assert len(read) > 150
    architectures = load_table("architectures")
    known = {*architectures["configuration"]["harmless"], *architectures["configuration"]["changes"]}
    for name in load_table("edgellm")["architectures"]:
        known |= set(architectures["architectures"][name]["defaults"])
    table = load_table("edgellm")["configKeys"]
    assert not set(table["refused"]) & set(table["harmless"])
    known |= {*table["refused"], *table["harmless"]}
    known |= {
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
        "max_position_embeddings", "rope_scaling", "rope_parameters", "partial_rotary_factor",
        "original_max_position_embeddings", "sliding_window", "use_sliding_window", "attention_bias",
    }  # fmt: skip
    # Not configurations: parts of rope parameters, of files that the exporter writes, and of quantization.
    known |= {
        "full_attention", "sliding_attention", "type", "rope_type", "mrope_section", "rank", "quant_algo",
        "attention_layer_types", "kv_layer_configs", "recurrent_state_num_heads", "conv_dim",
        "sampler_config",
        "confidence_threshold", "entropy_threshold", "stability_threshold", "stability_window",
        "t_max", "t_min",
    }  # fmt: skip
    assert read - known == set()
    # None of the lists names a key that is read nowhere.
    sources = [p for name in ("tensorrt_edgellm", "experimental") for p in (packages / name).rglob("*.py")]
    everywhere = "".join(path.read_text(errors="replace") for path in sources)
    assert [key for key in (*table["refused"], *table["harmless"]) if f'"{key}"' not in everywhere] == []


@pytest.mark.parametrize(
    ("architecture", "size", "is_noted"),
    [
        ("LlamaForCausalLM", 20, True), ("LlamaForCausalLM", 100, True), ("LlamaForCausalLM", 64, False),
        ("Qwen3ForCausalLM", 32, True), ("Qwen3ForCausalLM", 128, False), ("Qwen3ForCausalLM", 256, False),
        ("LlamaForCausalLM", 512, False), ("Qwen3ForCausalLM", 512, True),
    ],
)  # fmt: skip
def test_heads_that_the_runtime_has_no_kernel_for_are_noted(
    architecture: str, size: int, is_noted: bool
) -> None:
    config = replace(read_export_source(TINY).model, architecture=architecture, head_dim=size)
    note = note_head_size(config)
    assert (note is not None) == is_noted and (note is None or f"heads of {size}" in note)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"quant_method": "awq", "bits": 4}, "quantized by awq to 4 bits"),
        ({"quant_method": "gptq", "bits": 8}, "quantized by gptq to 8 bits"),
        ({"quant_method": "compressed-tensors"}, "quantized by compressed-tensors"),
        ({"quant_method": "fp8"}, "quantized by fp8"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "hf_quant_config.json is missing"),
    ],
)
def test_other_quantizers_are_named(section: dict[str, Any], words: str, model: Path) -> None:
    change(model / "config.json", quantization_config=section)
    refuse(model, words)


def test_a_kv_cache_that_the_exporter_ignores_is_refused_before(model: Path) -> None:
    sidecar = {"quantization": {"quant_algo": "W4A16_AWQ", "kv_cache_quant_algo": "FP8", "group_size": 128}}
    (model / "hf_quant_config.json").write_text(json.dumps(sidecar))
    refuse(model, "ignores the FP8 KV cache", "without --kv-cache")
    sidecar["quantization"]["quant_algo"] = "FP8"
    (model / "hf_quant_config.json").write_text(json.dumps(sidecar))
    refuse(model, "k_proj.k_scale is missing")


def test_the_shared_reader_still_refuses_for_checkpoints(tmp_path: Path) -> None:
    """Reading for an export drops TensorRT-LLM's own refusals, and only there."""
    raw = json.loads((TINY / "config.json").read_text()) | {"attention_bias": True}
    assert parse_config(raw, tmp_path, checkpoint=False).architecture == "Qwen3ForCausalLM"
    with pytest.raises(ModelError, match="TensorRT-LLM's Qwen class"):
        parse_config(raw, tmp_path)


def test_a_dynamic_embedding_ends_with_the_context(tmp_path: Path) -> None:
    raw = json.loads((TINY / "config.json").read_text())
    raw |= {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}
    config = parse_export_config(raw, tmp_path)
    require_covered_context(config, 2048)
    with pytest.raises(ModelError, match="maxKvCacheCapacity 2049"):
        require_covered_context(config, 2049)
    require_covered_context(
        parse_export_config(json.loads((TINY / "config.json").read_text()), tmp_path), 4096
    )
