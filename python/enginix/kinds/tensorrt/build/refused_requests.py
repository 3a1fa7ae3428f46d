"""Refuse requests that trtllm-build ends with an exception."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from enginix.kinds.tensorrt.build.build_subject import BuildSubject, RequestRefused
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
        raise RequestRefused(
            "RuntimeError",
            "context-logits-with-draft",
            "context logits are not gathered with draft tokens",
            fix="leave gatherContextLogits and gatherAllTokenLogits out, or maxDraftLen",
        )
    for name, about in UNSUPPORTED.items():
        if subject.sm == UNSUPPORTED_SM and plugins[name] not in (None, False):
            raise RequestRefused(
                "NotImplementedError",
                about,
                f"{name} is not supported on SM {subject.sm}",
                fix="leave it out",
            )
    if plugins["multiple_profiles"] and given.get("opt_num_tokens") is not None:
        raise RequestRefused(
            "RuntimeError",
            "multiple-profiles-with-opt-num-tokens",
            "opt_num_tokens is set together with multiple_profiles",
            fix="leave one of them out",
        )
    if plugins["streamingllm"]:
        raise RequestRefused(
            "AssertionError",
            "streamingllm-removed",
            "StreamingLLM is no longer supported",
            fix="leave it out",
        )
    if plugins["pp_reduce_scatter"] and subject.architecture != "MixtralForCausalLM":
        raise RequestRefused(
            "AssertionError",
            "pp-reduce-scatter-only-mixtral",
            f"pp_reduce_scatter is for MixtralForCausalLM, not {subject.architecture}",
            fix="leave it out",
        )


def check_engine_class(subject: BuildSubject) -> None:
    engine_classes = load_table("engine_classes")["engine"]
    if subject.architecture not in engine_classes:
        with limited_llmapi_advice(subject.architecture):
            raise RequestRefused(
                "AssertionError",
                "other",
                f"TensorRT-LLM has no engine class for architecture {subject.architecture}",
                fix="serve the model with the llmapi kind",
            )


def check_blackwell(subject: BuildSubject) -> None:
    if not 100 <= subject.sm < 120:
        return
    algorithm = subject.quantization or ""
    for applies, about, what in (
        (algorithm in WEIGHT_ONLY or subject.kv_cache == "INT8", "int8-int4-on-sm100", "INT8 and INT4"),
        (algorithm.startswith("W8A8_SQ"), "smoothquant-on-sm100", "SmoothQuant"),
        (algorithm == ROWWISE, "per-channel-or-token-on-sm100", "scales per channel or token"),
    ):
        if applies:
            raise RequestRefused(
                "RuntimeError",
                about,
                f"{what} are refused on SM {subject.sm}",
                fix="use FP8 or NVFP4, or a GPU below SM 100",
            )


def check_fused_mlp(plugins: Mapping[str, Any]) -> None:
    fused = plugins["gemm_swiglu_plugin"] or plugins["low_latency_gemm_swiglu_plugin"]
    if fused and not plugins["use_fused_mlp"]:
        raise RequestRefused(
            "RuntimeError", "other", "the GemmSwiGLU plug-ins need use_fused_mlp", fix="set useFusedMlp"
        )


def check_lora(given: Mapping[str, Any], plugins: Mapping[str, Any]) -> None:
    if plugins["lora_plugin"] is None:
        return
    if not given.get("lora_dir") and not given.get("lora_target_modules"):
        raise RequestRefused(
            "ValueError",
            "other",
            "lora_plugin is on, with neither lora_dir nor lora_target_modules",
            fix="name adapters (loraDir) or modules (loraTargetModules)",
        )
