"""What the stand-in builder makes of its options, step by step as TensorRT-LLM's build.py and builder.py do.

It shares no code with enginix; tests/golden/requests.jsonl.xz, of TensorRT-LLM's own Python, judges both.
"""

import math

from .standin import contract

MODES = {
    None: 1,
    "draft_tokens_external": 2,
    "medusa": 4,
    "lookahead_decoding": 8,
    "explicit_draft_tokens": 16,
    "eagle": 32,
}
SWITCHES = {"enable": True, "disable": False}


def plugin_values(args):
    """PluginConfig.from_arguments: Booleans, names of types, or nothing; never "enable"."""
    values = {}
    for row in contract("plugin_config_fields")["fields"]:
        name = row["name"]
        value = getattr(args, name, row.get("default"))
        if value in ("enable", "disable"):
            value = SWITCHES[value] if row["type"].startswith("bool") else None
        values[name] = value
    if args.fast_build:
        values["manage_weights"] = True
    return values


def validate(plugins, sm):
    """PluginConfig.validate()."""
    if sm != 100:
        return
    for name in (
        "gemm_swiglu_plugin",
        "fp8_rowwise_gemm_plugin",
        "low_latency_gemm_plugin",
        "low_latency_gemm_swiglu_plugin",
        "bert_context_fmha_fp32_acc",
    ):
        if plugins[name] is not None and plugins[name] is not False:
            raise NotImplementedError(f"{name}={plugins[name]} is not supported on SM {sm}.")


def configure(args, sm):
    """main(): the options as BuildConfig and PluginConfig hold them, before anything is changed."""
    if args.gather_all_token_logits:
        args.gather_context_logits = args.gather_generation_logits = True
    if args.gather_context_logits and args.max_draft_len > 0:
        raise RuntimeError("Gather context logits is not support with draft len > 0.")
    plugins = plugin_values(args)
    validate(plugins, sm)
    if args.multiple_profiles == "enable" and args.opt_num_tokens is not None:
        raise RuntimeError("multiple_profiles is enabled, while opt_num_tokens is set.")
    config = {}
    for row in contract("build_config_fields")["fields"]:
        name = row["name"]
        if name not in ("plugin_config", "lora_config", "dry_run", "visualize_network"):
            config[name] = getattr(args, name, row.get("default"))
    config["use_strip_plan"] = args.strip_plan
    config["speculative_decoding_mode"] = MODES[args.speculative_decoding_mode]
    config["kv_cache_type"] = getattr(args, "kv_cache_type", "paged").upper()
    return config, plugins


def check_architecture(architecture, plugins):
    """build_model()."""
    assert not plugins["streamingllm"], "StreamingLLM is no longer supported"
    assert not plugins["pp_reduce_scatter"] or architecture == "MixtralForCausalLM", (
        "PP reduce scatter is only supported in the mixtral model."
    )


def check_max_num_tokens(config, plugins):
    """_common.check_max_num_tokens."""
    most = config["max_batch_size"] * config["max_seq_len"]
    if not plugins["remove_input_padding"]:
        config["max_num_tokens"] = most
        return
    if config["opt_num_tokens"] is None and not plugins["multiple_profiles"]:
        opt = config["max_batch_size"] * config["max_beam_width"]
        config["opt_num_tokens"] = min(opt, config["max_num_tokens"])
    if config["max_num_tokens"] > most:
        print(f"[W] max_num_tokens shouldn't be greater than {most}, specifying to it")
        config["max_num_tokens"] = most
    if config["max_num_tokens"] < config["max_input_len"] and not plugins["context_fmha"]:
        config["max_num_tokens"] = config["max_input_len"]
    elif config["max_num_tokens"] < plugins["tokens_per_block"] and plugins["context_fmha"]:
        config["max_num_tokens"] = plugins["tokens_per_block"]
    if config["opt_num_tokens"] is not None and config["opt_num_tokens"] > config["max_num_tokens"]:
        config["opt_num_tokens"] = config["max_num_tokens"]


def build(args, pretrained, config, plugins, sm):
    """build() up to the network: changes both configurations, or raises."""
    architecture, mapping = pretrained["architecture"], pretrained.get("mapping") or {}
    quantization = pretrained.get("quantization") or {}
    algorithm, cache = quantization.get("quant_algo"), quantization.get("kv_cache_quant_algo")
    plugins["dtype"] = pretrained.get("dtype", "bfloat16")
    plugins["paged_kv_cache"] = config["kv_cache_type"] == "PAGED"
    plugins["paged_state"] = False

    if config["max_seq_len"] is None:
        scaling = pretrained.get("rotary_scaling") or {}
        kind = scaling.get("type", scaling.get("rope_type"))
        factor = 1 if kind in ("su", "longrope", "llama3") else scaling.get("factor", 1)
        config["max_seq_len"] = math.ceil((pretrained.get("max_position_embeddings") or 2048) * factor)
    if config["max_input_len"] > config["max_seq_len"]:
        config["max_input_len"] = config["max_seq_len"]
    check_max_num_tokens(config, plugins)

    reduces = architecture in ("LlamaForCausalLM", "Gemma2ForCausalLM", "MedusaForCausalLM")
    if plugins["reduce_fusion"] and (mapping.get("tp_size", 1) == 1 or not reduces):
        print("[W] Overriding reduce_fusion to False")
        plugins["reduce_fusion"] = False
    if plugins["user_buffer"] and not plugins["reduce_fusion"]:
        print("[W] Overriding user_buffer to False")
        plugins["user_buffer"] = False
    if plugins["norm_quant_fusion"]:
        fits = architecture == "LlamaForCausalLM" and algorithm == "NVFP4"
        plugins["norm_quant_fusion"] = fits and not plugins["reduce_fusion"]

    if config["max_draft_len"] == 0:
        config["max_draft_len"] = pretrained.get("max_draft_len") or 0
    mode = config["speculative_decoding_mode"]
    if mode != MODES[None]:
        config["max_seq_len"] += config["max_draft_len"]
    if mode == MODES["eagle"]:
        assert "num_eagle_layers" in pretrained, "num_eagle_layers"
        config["max_seq_len"] += pretrained["num_eagle_layers"]
    if mode != MODES[None]:
        tokens = config["max_batch_size"] * (config["max_draft_len"] + 1)
        config["max_num_tokens"] = max(config["max_num_tokens"], tokens)

    if not plugins["context_fmha"]:
        plugins["use_fp8_context_fmha"] = False
        plugins["use_paged_context_fmha"] = False
    elif algorithm not in ("FP8", "W4A8_AWQ", "NVFP4") or sm < 89:
        plugins["use_fp8_context_fmha"] = False
        if cache == "FP8":
            plugins["use_paged_context_fmha"] = False
    elif plugins["use_paged_context_fmha"]:
        plugins["use_fp8_context_fmha"] = cache == "FP8"
    if cache == "INT8":
        plugins["use_paged_context_fmha"] = False

    if 100 <= sm < 120:
        integer = ("W8A16", "W4A16", "W4A8_AWQ")
        if cache == "INT8" or (algorithm or "").startswith(integer):
            raise RuntimeError("INT8/INT4 quantization is not supported on SM>=100.")
        if (algorithm or "").startswith("W8A8_SQ"):
            raise RuntimeError("SmoothQuant is not supported on SM>=100.")
        if algorithm == "FP8_PER_CHANNEL_PER_TOKEN":
            raise RuntimeError("Per-channel or per-token scaling is not supported on SM>=100.")

    swiglu = plugins["gemm_swiglu_plugin"] or plugins["low_latency_gemm_swiglu_plugin"]
    if swiglu and not plugins["use_fused_mlp"]:
        raise RuntimeError("GemmSwiGLU plugin requires --use_fused_mlp flag")
    if plugins["lora_plugin"] is not None and not (args.lora_dir or args.lora_target_modules):
        raise ValueError("lora_target_modules should not be empty")
    if algorithm == "NVFP4" and args.gemm_plugin != "disable":
        plugins["gemm_plugin"] = "nvfp4"
    if mode == MODES["eagle"]:
        assert config["max_batch_size"] <= 512, "Max batch size > 512 is not supported for EAGLE"
        assert config["max_draft_len"] <= 256, "Max draft len > 256 is not supported for EAGLE"
        plugins["use_paged_context_fmha"] = True


def construct(pretrained, plugins):
    """What build() sets while it makes the network; golden requests end before it."""
    mapping = pretrained.get("mapping") or {}
    dtype = pretrained.get("dtype", "bfloat16")
    algorithm = (pretrained.get("quantization") or {}).get("quant_algo")
    ranks = mapping.get("tp_size", 1) * mapping.get("pp_size", 1)
    plugins["nccl_plugin"] = dtype if ranks > 1 else None
    if algorithm in ("W4A16_AWQ", "W4A8_AWQ", "W4A16_GPTQ", "W8A16_GPTQ"):
        plugins["weight_only_groupwise_quant_matmul_plugin"] = dtype
    elif algorithm in ("W8A16", "W4A16"):
        plugins["weight_only_quant_matmul_plugin"] = dtype
    elif algorithm == "FP8_PER_CHANNEL_PER_TOKEN":
        for name in ("fp8_rowwise_gemm", "rmsnorm_quantization", "layernorm_quantization"):
            plugins[f"{name}_plugin"] = dtype
        plugins["quantize_per_token_plugin"] = plugins["quantize_tensor_plugin"] = True
