"""Read ``config.json`` of a TensorRT-LLM checkpoint, as far as execution depends on it.

This package reads checkpoints by its own description of them (here and in ``layout``) and does not use the
converter's in ``enginix.checkpoint``, so that the judge of a conversion does not share its mistakes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from enginix import manifest
from enginix.errors import CheckpointError
from enginix.files import read_json_object
from enginix.model.engine_classes import explain_no_engine_class
from enginix.model.llmapi_advice import limited_llmapi_advice
from enginix.model.other_layouts import explain_other_config
from enginix.reference import quantization as number_formats
from enginix.reference.decoder_form import FORMS, DecoderForm, find_form
from enginix.reference.executor_config import (
    ExecutorConfig,
    ExecutorConfigReader,
    ExecutorMapping,
    ExpertsConfig,
    Family,
)
from enginix.reference.quantization import REBUILD, ExecutorQuantization
from enginix.reference.rotary_scaling import parse_rotary_scaling

# Architecture → (family of attention, is a mixture of experts); the names are the Hugging Face model's.
ARCHITECTURES: dict[str, tuple[Family, bool]] = {
    "LlamaForCausalLM": ("llama", False),
    "MistralForCausalLM": ("llama", False),
    "MixtralForCausalLM": ("llama", True),
    "Qwen2ForCausalLM": ("qwen2", False),
    "Qwen2MoeForCausalLM": ("qwen2", True),
    "Qwen3ForCausalLM": ("qwen3", False),
    "Qwen3MoeForCausalLM": ("qwen3", True),
    "Phi3ForCausalLM": ("phi3", False),
    **dict.fromkeys(FORMS, ("form", False)),
}
ALIBI_POSITIONS = 2048
DTYPES = ("float32", "float16", "bfloat16")
# Most layers, and most ranks in one direction: bounds on the loops that run before any file is opened.
MAX_LAYERS_OR_RANKS = 10_000


def _parse_executor_mapping(reader: ExecutorConfigReader, experts: ExpertsConfig | None) -> ExecutorMapping:
    block = reader.part("mapping")
    tp, pp, ep = (
        block.integer(key, 1, most=MAX_LAYERS_OR_RANKS) for key in ("tp_size", "pp_size", "moe_ep_size")
    )
    world = block.integer("world_size", tp * pp)
    if block.raw.get("cp_size", 1) != 1:
        raise block.fail("cp_size is not 1, and context parallelism is not supported")
    if world != tp * pp:
        raise block.fail(f"world_size is {world}, but tp_size × pp_size is {tp * pp}")
    if experts is None:
        return ExecutorMapping(tp, pp)
    if tp % ep or experts.count % ep:
        raise block.fail(f"moe_ep_size {ep} does not divide tp_size {tp} and {experts.count} experts")
    if block.integer("moe_tp_size", tp // ep) * ep != tp:
        raise block.fail(f"moe_tp_size × moe_ep_size is not tp_size {tp}")
    return ExecutorMapping(tp, pp, ep)


def _propose_other_kinds(architecture: str) -> str:
    """Return which kinds to use, by the tables that ``enginix plan`` refuses by."""
    served = "serve the model with the llmapi kind"  # where it has no class, limited_llmapi_advice says so
    if explain_no_engine_class(architecture) is not None:
        return served
    return f"build an engine of kind tensorrt, or {served}"


# Keys of TensorRT-LLM's LLaMA class (for Granite) that the executor does not implement.
_MULTIPLIERS = (
    "embedding_multiplier",
    "attention_multiplier",
    "residual_multiplier",
    "output_multiplier_scale",
)


def _refuse_unsupported_keys(reader: ExecutorConfigReader) -> None:
    """Refuse keys that an engine implements and the executor does not.

    Raises:
        CheckpointError: a key is not supported; the error names it.
    """
    if reader.raw.get("architecture") in FORMS:
        keys = ["qk_layernorm", "residual_mlp", "fc_after_embed", "clip_qkv"]
        for key in keys + ["inter_layernorms"] * (reader.raw["architecture"] != "Gemma2ForCausalLM"):
            if reader.raw.get(key, False) not in (False, None):
                with limited_llmapi_advice(reader.raw["architecture"]):
                    raise CheckpointError(
                        f"{key} is {reader.raw[key]!r}, which the reference executor does not compute",
                        where=reader.where,
                        fix=_propose_other_kinds(reader.raw["architecture"]),
                    )
        return
    activation = reader.raw.get("hidden_act", "gelu")
    if activation not in ("silu", "swiglu"):
        raise reader.fail(f"hidden_act is {activation!r} (the loader's default is gelu), not silu or swiglu")
    for key in _MULTIPLIERS:
        if reader.raw.get(key, 1.0) != 1.0:
            raise reader.fail(f"{key} is {reader.raw[key]!r}, and only 1.0 is supported")
    for key in ("qk_layernorm", "residual_mlp", "use_logn_attn", "fc_after_embed"):
        if reader.raw.get(key, False) is not False:
            raise reader.fail(f"{key} is {reader.raw[key]!r}, and only false is supported")


def _parse_experts(reader: ExecutorConfigReader, is_moe: bool, intermediate: int) -> ExpertsConfig | None:
    if not is_moe:
        return None
    block = reader.part("moe")
    # The mode of an absent key depends on TensorRT-LLM's class.
    mode = block.integer("normalization_mode", least=0)
    if mode > 1:
        raise block.fail(f"normalization_mode is {mode}, known are 0 (none) and 1 (renormalize)")
    count, top_k = block.integer("num_experts"), block.integer("top_k")
    if top_k > count:
        raise block.fail(f"top_k is {top_k}, more than {count} experts")
    # Mixtral's experts have the model's intermediate size; Qwen's have their own.
    size = reader.integer("moe_intermediate_size", 0, least=0) or intermediate
    shared = reader.integer("moe_shared_expert_intermediate_size", 0, least=0)
    shared = shared or block.integer("shared_expert_intermediate_size", 0, least=0)
    return ExpertsConfig(count, top_k, size, shared, mode == 1)


def parse_executor_config(raw: Any, where: str) -> ExecutorConfig:
    """Return a checked :class:`ExecutorConfig` from parsed JSON.

    Raises:
        CheckpointError: an unknown architecture, a missing or impossible value.
    """
    if not isinstance(raw, dict):
        raise CheckpointError("not a JSON object", where=where, fix=REBUILD)
    reader = ExecutorConfigReader(raw, where)
    architecture = reader.text("architecture") or ""
    if architecture not in ARCHITECTURES:
        with limited_llmapi_advice(architecture):
            raise CheckpointError(
                f"architecture {architecture!r} is unknown to the reference executor; known: "
                f"{', '.join(sorted(ARCHITECTURES))}",
                where=where,
                fix=_propose_other_kinds(architecture),
            )
    family, is_moe = ARCHITECTURES[architecture]
    dtype = reader.text("dtype") or ""
    if dtype not in DTYPES:
        raise reader.fail(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    hidden, heads = reader.integer("hidden_size"), reader.integer("num_attention_heads")
    kv_heads = reader.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise reader.fail(f"{heads} attention heads do not divide into {kv_heads} key-value heads")
    head_size = reader.integer("head_size", hidden // heads)
    # The loader computes it from rotary_pct and ignores rotary_embedding_dim; GPT-J's class has rotary_dim.
    rotary_dim = int(head_size * reader.number("rotary_pct", 1.0, least=1e-6, most=1.0))
    rotary_dim = reader.integer("rotary_dim", rotary_dim, most=head_size)
    if rotary_dim % 2 or rotary_dim < 1:
        raise reader.fail(f"{rotary_dim} of {head_size} elements of a head are rotated, not an even number")
    if family != "form" and reader.integer("rotary_embedding_dim", rotary_dim) != rotary_dim:
        raise reader.fail(
            f"rotary_embedding_dim is {reader.raw['rotary_embedding_dim']}, and the loader rotates "
            f"{rotary_dim}: head_size times rotary_pct"
        )
    # ALiBi has no longest sequence, and NVIDIA's checkpoints of Bloom and MPT name none.
    is_alibi = reader.raw.get("position_embedding_type") == "alibi"
    positions = reader.integer("max_position_embeddings", ALIBI_POSITIONS if is_alibi else None)
    _refuse_unsupported_keys(reader)
    intermediate = reader.integer("intermediate_size", 4 * hidden if family == "form" else None)
    experts = _parse_experts(reader, is_moe, intermediate)
    mapping = _parse_executor_mapping(reader, experts)
    for size, divided_size in (
        (heads, "attention heads"),
        (intermediate if not experts else 0, "intermediate_size"),
    ):
        if size % mapping.tp:
            raise reader.fail(f"tp_size {mapping.tp} does not divide {size} {divided_size}")
    if kv_heads % mapping.tp and mapping.tp % kv_heads:
        raise reader.fail(
            f"{kv_heads} key-value heads neither divide nor are divided by tp_size {mapping.tp}"
        )
    layers = reader.integer("num_hidden_layers", most=MAX_LAYERS_OR_RANKS)
    if mapping.pp > layers:
        raise reader.fail(f"pp_size {mapping.pp} is more than {layers} layers")
    quantization = reader.part("quantization")
    algorithm, exclude = quantization.text("quant_algo"), quantization.raw.get("exclude_modules")
    if exclude is not None and not (
        isinstance(exclude, list) and all(isinstance(pattern, str) for pattern in exclude)
    ):
        raise quantization.fail(f"exclude_modules is {exclude!r}, expected a list of names or null")
    try:
        form = find_form(architecture, raw, hidden, head_size) if family == "form" else DecoderForm()
    except ValueError as e:
        with limited_llmapi_advice(architecture):
            raise CheckpointError(
                f"the reference executor does not compute {e}",
                where=where,
                fix=_propose_other_kinds(architecture),
            ) from e
    parallel_embedding = reader.flag("use_parallel_embedding") and mapping.tp > 1
    return ExecutorConfig(
        architecture=architecture,
        family=family,
        dtype=dtype,
        vocab_size=reader.integer("vocab_size"),
        hidden_size=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        intermediate_size=intermediate,
        max_position_embeddings=positions,
        norm_epsilon=reader.number("norm_epsilon", 1e-5),
        rotary_base=reader.number("rotary_base", reader.number("rotary_emb_base", 10000.0)),
        rotary_dim=rotary_dim,
        rotary_scaling=parse_rotary_scaling(reader, family, rotary_dim),
        # QWenConfig's default is true, LLaMAConfig's false.
        attention_bias=form.qkv_bias or reader.flag("attn_bias", family in ("qwen2", "qwen3")),
        mlp_bias=form.mlp_bias or reader.flag("mlp_bias"),
        form=form,
        experts=experts,
        embedding_shard_dim=reader.integer("embedding_sharding_dim", 0, least=0)
        if parallel_embedding
        else None,
        mapping=mapping,
        quantization=ExecutorQuantization(
            algorithm=None if algorithm == "NO_QUANT" else algorithm,
            kv_cache=quantization.text("kv_cache_quant_algo"),
            group_size=quantization.integer("group_size", 128),
            exclude=None if exclude is None else tuple(exclude),
        ),
    )


def _read_checkpoint_json(path: Path) -> dict[str, Any]:
    missing = CheckpointError(
        f"no {path.name}" if path.parent.is_dir() else "no such directory",
        where=str(path.parent),
        fix="pass a checkpoint directory: the output of enginix convert",
    )
    return read_json_object(path, CheckpointError, REBUILD, missing)


def read_executor_config(checkpoint: Path) -> ExecutorConfig:
    """Read ``config.json`` of a checkpoint directory, and ``quant_cfg.json`` for mixed precision.

    Raises:
        CheckpointError: missing, unreadable, or refused by :func:`parse_executor_config`.
    """
    path = checkpoint / "config.json"
    raw = _read_checkpoint_json(path)
    if other := explain_other_config(raw, "checkpoint"):
        raise CheckpointError(other[0], where=str(checkpoint), fix=other[1])
    config = parse_executor_config(raw, str(path))
    quantization = config.quantization
    if quantization.algorithm == number_formats.MIXED:
        path = checkpoint / "quant_cfg.json"
        quantization = replace(
            quantization, layers=number_formats.parse_quantized_layers(_read_checkpoint_json(path), str(path))
        )
    if "NVFP4" in quantization.algorithms:
        quantization = replace(
            quantization, own_nvfp4=number_formats.has_own_nvfp4_form(checkpoint, config.world_size)
        )
    return replace(config, quantization=quantization, window=_read_attention_window(checkpoint))


def _read_attention_window(checkpoint: Path) -> int | None:
    if not (checkpoint / manifest.MANIFEST_FILE).exists():
        return None
    windows = manifest.read_manifest(checkpoint).model.get("attentionWindow")
    if windows is None:
        return None
    if isinstance(windows, list) and windows and all(type(w) is int and w > 0 for w in windows):
        return int(min(windows))
    where = str(checkpoint / manifest.MANIFEST_FILE)
    raise CheckpointError(f"model.attentionWindow is {windows!r}", where=where, fix=REBUILD)
