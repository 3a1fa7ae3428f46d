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
from enginix.model.context_length import find_rotary_factor
from enginix.model.llmapi_advice import limited_llmapi_advice
from enginix.tables import load_table

# Other names of two options; and options that replace the whole request by a file.
ALIASES = {
    "--max_decoder_seq_len": "--max_seq_len",
    "--max_multimodal_len": "--max_prompt_embedding_table_size",
}
WHOLE_REQUEST_FLAGS = ("--build_config", "--model_config", "--model_cls_file", "--model_cls_name")
# Settings whose names are spelled in another way in config.json.
RESPELLED_SETTINGS = ("kv_cache_type", "speculative_decoding_mode")
# Algorithms as QuantMode sees them (quantization/mode.py).
WEIGHT_ONLY = frozenset({"W8A16", "W4A16", "W4A16_AWQ", "W4A8_AWQ", "W8A16_GPTQ", "W4A16_GPTQ"})
PER_GROUP = frozenset({"W4A16_AWQ", "W4A8_AWQ", "W8A16_GPTQ", "W4A16_GPTQ"})
ROWWISE = "FP8_PER_CHANNEL_PER_TOKEN"
FP8_CONTEXT = frozenset({"FP8", "W4A8_AWQ", "NVFP4"})
FUSED_REDUCTION = frozenset({"LlamaForCausalLM", "Gemma2ForCausalLM", "MedusaForCausalLM"})
PAGED_STATE = frozenset({"MambaForCausalLM", "RecurrentGemmaForCausalLM"})
# PluginConfig.validate(), on exactly this SM and on no other.
UNSUPPORTED_SM = 100
UNSUPPORTED = {
    "gemm_swiglu_plugin": "other",
    "fp8_rowwise_gemm_plugin": "fp8-rowwise-on-sm100",
    "low_latency_gemm_plugin": "other",
    "low_latency_gemm_swiglu_plugin": "other",
    "bert_context_fmha_fp32_acc": "bert-fp32-acc-on-sm100",
}


class RequestRefused(UsageError):
    """trtllm-build ends this request with an exception.

    Attributes:
        exception: the exception's class.
        about: the exception's subject, in the terms of tests/golden/requests.jsonl.xz.
    """

    def __init__(self, exception: str, about: str, what: str, *, fix: str | None = None) -> None:
        self.exception = exception
        self.about = about
        super().__init__(f"trtllm-build ends with {exception}: {what}", fix=fix)


@dataclass(frozen=True)
class BuildSubject:
    """The checkpoint's configuration and the GPU of a request.

    Attributes:
        quantization, kv_cache: ``quant_algo`` and ``kv_cache_quant_algo``.
        max_draft_len, num_eagle_layers: sizes of a checkpoint with a draft model of its own.
        redrafter_tokens: ``redrafter_num_beams`` × ``redrafter_draft_len_per_beam``.
        rotary_scaling: as the checkpoint has it.
        is_pruned: whether the checkpoint has no weights; its plan is stripped.
    """

    architecture: str | None
    sm: int
    quantization: str | None = None
    kv_cache: str | None = None
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    context: int | None = None
    dtype: str = "bfloat16"
    max_draft_len: int | None = None
    num_eagle_layers: int | None = None
    redrafter_tokens: int | None = None
    rotary_scaling: Mapping[str, Any] | None = None
    qwen_type: str | None = None
    is_pruned: bool = False


@dataclass(frozen=True)
class EffectiveBuild:
    """An engine's settings when its network is constructed.

    Attributes:
        build_config, plugin_config: as config.json has them, without paths and without LoRA's own section.
        constructed: settings that construction of the network changes afterwards, with their values then.
        changes: setting → requested value, effective value.
    """

    build_config: dict[str, Any]
    plugin_config: dict[str, Any]
    constructed: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, tuple[Any, Any]] = field(default_factory=dict)

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
    requested = {**config, **plugins}
    _check_command_line(given, plugins, subject)
    _check_architecture(subject)
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
    effective = {**config, **plugins}
    changes = {
        k: (requested[k], v)
        for k, v in effective.items()
        if requested[k] != v and k not in ("dtype", "paged_kv_cache")
    }
    return EffectiveBuild(config, plugins, _predict_construction(plugins, subject), changes)


def parse_arguments(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the options of a command line of trtllm-build: name → value, flags as ``True``.

    Raises:
        RequestRefused: an option is unknown, lacks its value, or has one that argparse refuses.
        UsageError: an option names a file with a whole request.
    """
    rows = _collect_flag_rows()
    options: dict[str, Any] = {}
    words = list(arguments)
    while words:
        word, equals, inline = words.pop(0).partition("=")
        name = _complete_flag(word, [*rows, *WHOLE_REQUEST_FLAGS])
        row = rows.get(name)
        if name in WHOLE_REQUEST_FLAGS:
            raise UsageError(f"{name} is not predicted: it names a file with settings", fix="leave it out")
        if row is None:
            raise RequestRefused("SystemExit", "other", f"unrecognized arguments: {name}")
        end = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
        values = [inline] if equals else words[:end]
        words = words if equals else words[end:]
        options[row["flag"][2:]] = _parse_flag_values(name, row, values)
    return options


def _complete_flag(word: str, flags: Sequence[str]) -> str:
    """Return the flag that a word names or is the unambiguous beginning of, as argparse takes it."""
    if word in flags or not word.startswith("--"):
        return word
    matches = [flag for flag in flags if flag.startswith(word)]
    return matches[0] if len(matches) == 1 else word


def _collect_flag_rows() -> dict[str, Mapping[str, Any]]:
    tables = load_table("build_options")
    limits = {row["flag"]: {**row, "type": "int", "choices": None} for row in tables["limits"].values()}
    paths = {row["flag"]: {**row, "type": "string", "choices": None} for row in tables["own"].values()}
    paths["--dry_run"] = {**paths["--dry_run"], "type": "bool"}
    rows = {**limits, **paths, **{row["flag"]: row for row in tables["options"].values()}}
    return rows | {alias: rows[flag] for alias, flag in ALIASES.items()}


def _parse_flag_values(name: str, row: Mapping[str, Any], values: list[str]) -> Any:
    kind = row["type"]
    has_right_count = {"bool": len(values) == 0, "strings": len(values) > 0}.get(kind, len(values) == 1)
    choices = {"switch": ("enable", "disable")}.get(kind, row["choices"])
    words = [v.lower() for v in values] if name == "--kv_cache_type" else values
    is_allowed = choices is None or all(word in choices for word in words)
    if not has_right_count or not is_allowed or (kind == "int" and not _is_number(values[0])):
        raise RequestRefused("SystemExit", "other", f"argument {name}: {' '.join(values) or 'no value'}")
    if kind == "bool":
        return True
    return words if kind == "strings" else int(words[0]) if kind == "int" else words[0]


def _is_number(text: str) -> bool:
    try:
        int(text)
    except ValueError:
        return False
    return True


def _make_configs(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return BuildConfig and PluginConfig as the command line makes them."""
    effects = load_table("build_effects")
    plugins = {
        name: {"enable": True, "disable": _spell_disabled(name, value)}.get(str(given[name]), given[name])
        if name in given
        else value
        for name, value in effects["pluginConfig"].items()
    }
    config = {name: given.get(name, value) for name, value in effects["buildConfig"].items()}
    for name in ("gather_context_logits", "gather_generation_logits"):
        config[name] = bool(config[name] or given.get("gather_all_token_logits", False))
    config["use_strip_plan"] = bool(given.get("strip_plan", False))
    mode = given.get("speculative_decoding_mode")
    config["speculative_decoding_mode"] = effects["speculativeDecodingModes"].get(mode, 1)
    config["kv_cache_type"] = str(config["kv_cache_type"]).upper()
    return config, plugins


def _spell_disabled(name: str, default: Any) -> bool | None:
    """Return the value of a disabled setting: false for a switch, null for a plug-in."""
    return False if isinstance(default, bool) or name == "paged_kv_cache" else None


def _check_command_line(given: Mapping[str, Any], plugins: Mapping[str, Any], subject: BuildSubject) -> None:
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


def _check_architecture(subject: BuildSubject) -> None:
    engine_classes = load_table("engine_support")["architectures"]["engine"]
    if subject.architecture not in engine_classes:
        with limited_llmapi_advice(subject.architecture):
            raise RequestRefused(
                "AssertionError",
                "other",
                f"TensorRT-LLM has no engine class for architecture {subject.architecture}",
                fix="serve the model with the llmapi kind",
            )


def _settle_kv_cache(
    config: dict[str, Any], plugins: dict[str, Any], subject: BuildSubject, *, explicit: bool
) -> None:
    """Apply BuildConfig.update_kv_cache_type, which sets the KV cache's type from one of two settings."""
    name = "paged_state" if subject.architecture in PAGED_STATE else "paged_kv_cache"
    paged = plugins[name]
    if paged is not None:
        # paged_state has a default; paged_kv_cache is deprecated, and has none.
        if explicit and paged != (config["kv_cache_type"] == "PAGED"):
            raise RequestRefused(
                "AssertionError",
                "other",
                f"{name} is {paged}, kv_cache_type {config['kv_cache_type']}",
                fix="say what kvCacheType says, or leave one of them out",
            )
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
    config["max_num_tokens"], config["opt_num_tokens"] = compute_step_tokens(
        tokens=config["max_num_tokens"],
        optimal=config["opt_num_tokens"],
        batch=config["max_batch_size"],
        prompt=config["max_input_len"],
        sequence=config["max_seq_len"],
        beams=config["max_beam_width"],
        plugins=plugins,
    )


def compute_step_tokens(
    *,
    tokens: int,
    optimal: int | None,
    batch: int,
    prompt: int,
    sequence: int,
    beams: int,
    plugins: Mapping[str, Any],
) -> tuple[int, int | None]:
    """Return max_num_tokens and opt_num_tokens as check_max_num_tokens leaves them.

    Args:
        tokens, optimal: requested values.
        plugins: ``remove_input_padding``, ``context_fmha``, ``tokens_per_block``, ``multiple_profiles``.
    """
    most = batch * sequence
    if not plugins["remove_input_padding"]:
        return most, optimal
    if optimal is None and not plugins["multiple_profiles"]:
        optimal = min(batch * beams, tokens)
    tokens = min(tokens, most)
    tokens = max(tokens, plugins["tokens_per_block"] if plugins["context_fmha"] else prompt)
    return tokens, None if optimal is None else min(optimal, tokens)


def _settle_fusions(plugins: dict[str, Any], subject: BuildSubject) -> None:
    """Apply build()'s changes of fusions, which it turns off by the architecture's name, with a warning."""
    if subject.tensor_parallel == 1 or subject.architecture not in FUSED_REDUCTION:
        plugins["reduce_fusion"] = False
    if not plugins["reduce_fusion"]:
        plugins["user_buffer"] = False
    if (
        plugins["reduce_fusion"]
        or subject.architecture != "LlamaForCausalLM"
        or subject.quantization != "NVFP4"
    ):
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
            raise RequestRefused(
                "AssertionError",
                "other",
                "the checkpoint has no num_eagle_layers, which mode eagle reads",
                fix="convert the EAGLE model, or use another mode",
            )
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


def _check_blackwell(subject: BuildSubject) -> None:
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


def _check_fused_mlp(plugins: Mapping[str, Any]) -> None:
    fused = plugins["gemm_swiglu_plugin"] or plugins["low_latency_gemm_swiglu_plugin"]
    if fused and not plugins["use_fused_mlp"]:
        raise RequestRefused(
            "RuntimeError", "other", "the GemmSwiGLU plug-ins need use_fused_mlp", fix="set useFusedMlp"
        )


def _settle_eagle(config: Mapping[str, Any], plugins: dict[str, Any]) -> None:
    if (
        config["speculative_decoding_mode"]
        != load_table("build_effects")["speculativeDecodingModes"]["eagle"]
    ):
        return
    for name, most in (("max_batch_size", 512), ("max_draft_len", 256)):
        if config[name] > most:
            raise RequestRefused(
                "AssertionError",
                "other",
                f"{name} is {config[name]}; EAGLE takes at most {most}",
                fix=f"use at most {most}",
            )
    plugins["use_paged_context_fmha"] = True


def _check_lora(given: Mapping[str, Any], plugins: Mapping[str, Any]) -> None:
    if plugins["lora_plugin"] is None:
        return
    if not given.get("lora_dir") and not given.get("lora_target_modules"):
        raise RequestRefused(
            "ValueError",
            "other",
            "lora_plugin is on, with neither lora_dir nor lora_target_modules",
            fix="name adapters (loraDir) or modules (loraTargetModules)",
        )


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


def make_build_subject(checkpoint: Mapping[str, Any], sm: int) -> BuildSubject:
    """Return the build subject of a checkpoint's config.json, whole or with flat keys as in golden requests.

    Raises:
        UsageError: a value has another type.
    """

    def read(group: str | None, key: str, kind: type) -> Any:
        inner = checkpoint.get(group) if group else None
        value = (inner if isinstance(inner, dict) else checkpoint).get(key)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise UsageError(f"{key} is {value!r}", where="checkpoint", fix="convert the model again")
        return value

    beams, length = (read(None, f"redrafter_{n}", int) for n in ("num_beams", "draft_len_per_beam"))
    return BuildSubject(
        architecture=read(None, "architecture", str),
        sm=sm,
        quantization=read("quantization", "quant_algo", str),
        kv_cache=read("quantization", "kv_cache_quant_algo", str),
        tensor_parallel=read("mapping", "tp_size", int) or 1,
        pipeline_parallel=read("mapping", "pp_size", int) or 1,
        context=read(None, "max_position_embeddings", int),
        dtype=read(None, "dtype", str) or "bfloat16",
        max_draft_len=read(None, "max_draft_len", int),
        num_eagle_layers=read(None, "num_eagle_layers", int),
        redrafter_tokens=None if beams is None or length is None else beams * length,
        rotary_scaling=read(None, "rotary_scaling", dict),
        qwen_type=read(None, "qwen_type", str),
        is_pruned=checkpoint.get("is_pruned") is True,
    )
