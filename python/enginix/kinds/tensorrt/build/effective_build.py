"""Predict the limits and plug-in settings with which trtllm-build builds an engine, from a request.

TensorRT-LLM changes a request before it builds: it lengthens sequences by the draft, clips or raises the
tokens of a step, and turns options off with a warning. The order here is that of its own code
(``data/tensorrt/build_effects.json`` names the texts). tests/golden/requests.jsonl.xz has the results of that
code for 986 requests; the tests compare this module with them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from enginix.errors import UsageError
from enginix.kinds.tensorrt.build.build_subject import (
    BuildSubject,
    RequestRefused,
    make_build_subject,
    make_refusal,
)
from enginix.kinds.tensorrt.build.command_line import parse_arguments
from enginix.model.context_length import find_rotary_factor
from enginix.model.llmapi_advice import limited_llmapi_advice
from enginix.tables import load_table

# Settings whose names are spelled in another way in config.json.
RESPELLED_SETTINGS = ("kv_cache_type", "speculative_decoding_mode")
# Algorithms as QuantMode sees them (quantization/mode.py).
WEIGHT_ONLY = frozenset({"W8A16", "W4A16", "W4A16_AWQ", "W4A8_AWQ", "W8A16_GPTQ", "W4A16_GPTQ"})
ROWWISE = "FP8_PER_CHANNEL_PER_TOKEN"
# PluginConfig.validate(), on exactly this SM and on no other.
UNSUPPORTED_SM = 100
UNSUPPORTED = {
    "gemm_swiglu_plugin": "other",
    "fp8_rowwise_gemm_plugin": "fp8-rowwise-on-sm100",
    "low_latency_gemm_plugin": "other",
    "low_latency_gemm_swiglu_plugin": "other",
    "bert_context_fmha_fp32_acc": "bert-fp32-acc-on-sm100",
}
PER_GROUP = frozenset({"W4A16_AWQ", "W4A8_AWQ", "W8A16_GPTQ", "W4A16_GPTQ"})
FP8_CONTEXT = frozenset({"FP8", "W4A8_AWQ", "NVFP4"})
FUSED_REDUCTION = frozenset({"LlamaForCausalLM", "Gemma2ForCausalLM", "MedusaForCausalLM"})
PAGED_STATE = frozenset({"MambaForCausalLM", "RecurrentGemmaForCausalLM"})


@dataclass(frozen=True)
class EffectiveBuild:
    """An engine's settings when its network is constructed.

    Attributes:
        build_config, plugin_config: as config.json has them, without paths and without LoRA's own section.
        constructed: settings that construction of the network changes afterwards, with their values then.
    """

    build_config: dict[str, Any]
    plugin_config: dict[str, Any]
    constructed: dict[str, Any] = field(default_factory=dict)

    def limits(self) -> dict[str, int]:
        """Return the limits by enginix's names."""
        rows = load_table("build_options")["limits"]
        return {name: self.build_config[row["flag"][2:]] for name, row in rows.items()}

    def option(self, name: str, value: Any) -> Any:
        """Return an option's effective value, in the form of the request.

        Args:
            name: enginix's name of the option.
            value: requested value; returned unchanged if config.json has no such setting.
        """
        row = load_table("build_options")["options"][name]
        settings = {**self.build_config, **self.plugin_config}
        field_name = {"stripPlan": "use_strip_plan"}.get(name, row["flag"][2:])
        if field_name not in settings or field_name in RESPELLED_SETTINGS:
            return value
        return "disable" if settings[field_name] is None and row["type"] == "enum" else settings[field_name]


def predict_build(subject: BuildSubject, arguments: Sequence[str]) -> EffectiveBuild:
    """Predict the settings with which trtllm-build builds, for a command line.

    Args:
        arguments: words of the command line, without program and paths.

    Raises:
        RequestRefused: trtllm-build ends with an exception before it constructs a network.
    """
    given = parse_arguments(arguments)
    config, plugins = _make_configs(given)
    _check_options(given, plugins, subject)
    _check_engine_class(subject)
    config["use_strip_plan"] = config["use_strip_plan"] or subject.is_pruned
    plugins["manage_weights"] = bool(given.get("fast_build", False))
    if plugins["lora_plugin"] is None:
        given = {k: v for k, v in given.items() if not k.startswith("lora_")}
    plugins["dtype"] = subject.dtype
    config["use_mrope"] = subject.qwen_type == "qwen2_vl"
    _settle_kv_cache(config, plugins, subject, explicit="kv_cache_type" in given)
    _settle_lengths(config, plugins, subject)
    _settle_fusions(plugins, subject)
    _add_draft(config, subject)
    _settle_context_attention(plugins, subject)
    _check_blackwell(subject)
    _check_fused_mlp(plugins)
    _settle_eagle(config, plugins)
    _check_lora(given, plugins)
    if subject.quantization == "NVFP4" and given.get("gemm_plugin") != "disable":
        plugins["gemm_plugin"] = "nvfp4"
    return EffectiveBuild(config, plugins, _predict_construction(plugins, subject))


def _make_configs(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return BuildConfig and PluginConfig as the command line makes them."""
    effects = load_table("build_effects")
    plugins = dict(effects["pluginConfig"])
    for name in plugins.keys() & given.keys():
        # A disabled switch is false, a disabled plug-in null.
        is_switch = isinstance(plugins[name], bool) or name == "paged_kv_cache"
        spelled = {"enable": True, "disable": False if is_switch else None}
        plugins[name] = spelled.get(str(given[name]), given[name])
    config = {name: given.get(name, value) for name, value in effects["buildConfig"].items()}
    for name in ("gather_context_logits", "gather_generation_logits"):
        config[name] = bool(config[name] or given.get("gather_all_token_logits", False))
    config["use_strip_plan"] = bool(given.get("strip_plan", False))
    mode = given.get("speculative_decoding_mode")
    config["speculative_decoding_mode"] = effects["speculativeDecodingModes"].get(mode, 1)
    config["kv_cache_type"] = str(config["kv_cache_type"]).upper()
    return config, plugins


def _settle_kv_cache(
    config: dict[str, Any], plugins: dict[str, Any], subject: BuildSubject, *, explicit: bool
) -> None:
    """Apply BuildConfig.update_kv_cache_type, which sets the KV cache's type from one of two settings."""
    name = "paged_state" if subject.architecture in PAGED_STATE else "paged_kv_cache"
    paged = plugins[name]
    if paged is not None:
        # paged_state has a default; paged_kv_cache is deprecated, and has none.
        if explicit and paged != (config["kv_cache_type"] == "PAGED"):
            raise make_refusal("kvCacheTypes", setting=name, value=paged, kind=config["kv_cache_type"])
        if not explicit:
            config["kv_cache_type"] = "PAGED" if paged else "CONTINUOUS"
    paged = config["kv_cache_type"] == "PAGED"
    plugins["paged_state"] = plugins["paged_kv_cache"] = False
    plugins[name] = paged
    if subject.architecture == "RecurrentGemmaForCausalLM":
        plugins["paged_kv_cache"] = paged


def _settle_lengths(config: dict[str, Any], plugins: Mapping[str, Any], subject: BuildSubject) -> None:
    """Apply _init_max_seq_len and check_max_num_tokens."""
    if config["max_seq_len"] is None:
        config["max_seq_len"] = math.ceil(
            (subject.context or 2048) * find_rotary_factor(subject.rotary_scaling)
        )
    config["max_input_len"] = min(config["max_input_len"], config["max_seq_len"])
    tokens, optimal, batch = (config[n] for n in ("max_num_tokens", "opt_num_tokens", "max_batch_size"))
    most = batch * config["max_seq_len"]
    if not plugins["remove_input_padding"]:
        config["max_num_tokens"] = most
        return
    if optimal is None and not plugins["multiple_profiles"]:
        optimal = min(batch * config["max_beam_width"], tokens)
    least = plugins["tokens_per_block"] if plugins["context_fmha"] else config["max_input_len"]
    config["max_num_tokens"] = tokens = max(min(tokens, most), least)
    config["opt_num_tokens"] = None if optimal is None else min(optimal, tokens)


def _settle_fusions(plugins: dict[str, Any], subject: BuildSubject) -> None:
    """Apply build()'s changes of fusions, which it turns off by the architecture's name, with a warning."""
    if subject.tensor_parallel == 1 or subject.architecture not in FUSED_REDUCTION:
        plugins["reduce_fusion"] = False
    if not plugins["reduce_fusion"]:
        plugins["user_buffer"] = False
    is_nvfp4_llama = (subject.architecture, subject.quantization) == ("LlamaForCausalLM", "NVFP4")
    if plugins["reduce_fusion"] or not is_nvfp4_llama:
        plugins["norm_quant_fusion"] = False


def _add_draft(config: dict[str, Any], subject: BuildSubject) -> None:
    """Apply build()'s changes for drafts: draft tokens are added to a sequence's length and to a step."""
    modes = load_table("build_effects")["speculativeDecodingModes"]
    if config["max_draft_len"] == 0 and subject.max_draft_len is not None:
        config["max_draft_len"] = subject.max_draft_len
    if subject.redrafter_tokens is not None:
        config["max_draft_len"] = subject.redrafter_tokens
        config["speculative_decoding_mode"] = modes["explicit_draft_tokens"]
    if config["speculative_decoding_mode"] == 1:
        return
    config["max_seq_len"] += config["max_draft_len"]
    if config["speculative_decoding_mode"] == modes["eagle"]:
        if subject.num_eagle_layers is None:
            raise make_refusal("noEagleLayers")
        config["max_seq_len"] += subject.num_eagle_layers
    config["max_num_tokens"] = max(
        config["max_num_tokens"], config["max_batch_size"] * (config["max_draft_len"] + 1)
    )


def _settle_context_attention(plugins: dict[str, Any], subject: BuildSubject) -> None:
    """Apply build()'s changes of paged and FP8 context attention, by weights, KV cache and SM."""
    fp8_cache = subject.kv_cache == "FP8"
    if not plugins["context_fmha"]:
        plugins["use_fp8_context_fmha"] = plugins["use_paged_context_fmha"] = False
    elif subject.quantization not in FP8_CONTEXT or subject.sm < 89:
        plugins["use_fp8_context_fmha"] = False
        if fp8_cache:
            plugins["use_paged_context_fmha"] = False
    elif plugins["use_paged_context_fmha"]:
        plugins["use_fp8_context_fmha"] = fp8_cache
    if subject.kv_cache == "INT8":
        plugins["use_paged_context_fmha"] = False


def _settle_eagle(config: Mapping[str, Any], plugins: dict[str, Any]) -> None:
    modes = load_table("build_effects")["speculativeDecodingModes"]
    if config["speculative_decoding_mode"] != modes["eagle"]:
        return
    for name, most in (("max_batch_size", 512), ("max_draft_len", 256)):
        if config[name] > most:
            raise make_refusal("eagleLimit", setting=name, value=config[name], most=most)
    plugins["use_paged_context_fmha"] = True


def _predict_construction(plugins: Mapping[str, Any], subject: BuildSubject) -> dict[str, Any]:
    """Predict the settings of build()'s network construction, which golden requests do not reach."""
    algorithm, dtype = subject.quantization or "", subject.dtype
    settings: dict[str, Any] = {
        "nccl_plugin": dtype if subject.tensor_parallel * subject.pipeline_parallel > 1 else None
    }
    if algorithm in WEIGHT_ONLY:
        group = "groupwise_" if algorithm in PER_GROUP else ""
        settings[f"weight_only_{group}quant_matmul_plugin"] = dtype
    norms = {"rmsnorm_quantization_plugin": dtype, "quantize_per_token_plugin": True}
    if algorithm.startswith("W8A8_SQ") and algorithm.endswith("_PLUGIN"):
        settings |= norms | {"smooth_quant_gemm_plugin": dtype}
    if algorithm.startswith("W4A8_QSERVE"):
        settings |= norms | {"qserve_gemm_plugin": dtype}
    if algorithm == ROWWISE:
        settings |= norms | {"fp8_rowwise_gemm_plugin": dtype}
    if "smooth_quant_gemm_plugin" in settings or algorithm == ROWWISE:
        settings |= {"layernorm_quantization_plugin": dtype, "quantize_tensor_plugin": True}
    return {name: value for name, value in settings.items() if plugins[name] != value}


def _check_options(given: Mapping[str, Any], plugins: Mapping[str, Any], subject: BuildSubject) -> None:
    context = given.get("gather_context_logits") or given.get("gather_all_token_logits")
    if context and given.get("max_draft_len", 0) > 0:
        raise make_refusal("contextLogitsWithDraft")
    for name, about in UNSUPPORTED.items():
        if subject.sm == UNSUPPORTED_SM and plugins[name] not in (None, False):
            raise make_refusal("unsupportedOnSm", about, setting=name, sm=subject.sm)
    if plugins["multiple_profiles"] and given.get("opt_num_tokens") is not None:
        raise make_refusal("multipleProfilesWithOptNumTokens")
    if plugins["streamingllm"]:
        raise make_refusal("streamingllm")
    if plugins["pp_reduce_scatter"] and subject.architecture != "MixtralForCausalLM":
        raise make_refusal("ppReduceScatter", architecture=subject.architecture)


def _check_engine_class(subject: BuildSubject) -> None:
    engine_classes = load_table("engine_classes")["engine"]
    if subject.architecture not in engine_classes:
        with limited_llmapi_advice(subject.architecture):
            raise make_refusal("noEngineClass", architecture=subject.architecture)


def _check_blackwell(subject: BuildSubject) -> None:
    if not 100 <= subject.sm < 120:
        return
    algorithm = subject.quantization or ""
    for applies, about, formats in (
        (algorithm in WEIGHT_ONLY or subject.kv_cache == "INT8", "int8-int4-on-sm100", "INT8 and INT4"),
        (algorithm.startswith("W8A8_SQ"), "smoothquant-on-sm100", "SmoothQuant"),
        (algorithm == ROWWISE, "per-channel-or-token-on-sm100", "scales per channel or token"),
    ):
        if applies:
            raise make_refusal("formatsOnBlackwell", about, formats=formats, sm=subject.sm)


def _check_fused_mlp(plugins: Mapping[str, Any]) -> None:
    fused = plugins["gemm_swiglu_plugin"] or plugins["low_latency_gemm_swiglu_plugin"]
    if fused and not plugins["use_fused_mlp"]:
        raise make_refusal("fusedMlp")


def _check_lora(given: Mapping[str, Any], plugins: Mapping[str, Any]) -> None:
    has_modules = given.get("lora_dir") or given.get("lora_target_modules")
    if plugins["lora_plugin"] is not None and not has_modules:
        raise make_refusal("loraWithoutModules")


def predict_row(row: Any) -> dict[str, Any]:
    """Return the prediction for a request, in the shape of a row of tests/golden/requests.jsonl.xz.

    Args:
        row: an object with ``checkpoint``, ``sm`` and ``arguments``; other keys are ignored.

    Raises:
        UsageError: a key is missing, or its value has another type.
    """
    shape = {"arguments": list, "checkpoint": dict, "sm": int}
    if not isinstance(row, dict):
        raise UsageError(f"{row!r} is not a JSON object", fix="pass one object a line")
    for key, kind in shape.items():
        if not isinstance(row.get(key), kind) or isinstance(row[key], bool):
            raise UsageError(
                f"{key} is {row.get(key)!r}", fix="pass checkpoint (object), sm (number), arguments (list)"
            )
    if not all(isinstance(word, str) for word in row["arguments"]):
        raise UsageError(f"arguments are {row['arguments']!r}", fix="pass a list of texts")
    predicted: dict[str, Any] = {key: row[key] for key in shape}
    try:
        effective = predict_build(make_build_subject(row["checkpoint"], row["sm"]), row["arguments"])
    except RequestRefused as e:
        return predicted | {"result": "error", "error": {"about": e.about, "type": e.exception}}
    return predicted | {
        "result": "ok",
        "build_config": effective.build_config,
        "plugin_config": effective.plugin_config,
    }
