"""Refuse requests that trtllm-build ends with an exception."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from enginix.kinds.tensorrt.build.build_subject import BuildSubject, make_refusal
from enginix.model.llmapi_advice import limited_llmapi_advice
from enginix.tables import load_table

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


def check_options(given: Mapping[str, Any], plugins: Mapping[str, Any], subject: BuildSubject) -> None:
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


def check_engine_class(subject: BuildSubject) -> None:
    engine_classes = load_table("engine_classes")["engine"]
    if subject.architecture not in engine_classes:
        with limited_llmapi_advice(subject.architecture):
            raise make_refusal("noEngineClass", architecture=subject.architecture)


def check_blackwell(subject: BuildSubject) -> None:
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


def check_fused_mlp(plugins: Mapping[str, Any]) -> None:
    fused = plugins["gemm_swiglu_plugin"] or plugins["low_latency_gemm_swiglu_plugin"]
    if fused and not plugins["use_fused_mlp"]:
        raise make_refusal("fusedMlp")


def check_lora(given: Mapping[str, Any], plugins: Mapping[str, Any]) -> None:
    has_modules = given.get("lora_dir") or given.get("lora_target_modules")
    if plugins["lora_plugin"] is not None and not has_modules:
        raise make_refusal("loraWithoutModules")
