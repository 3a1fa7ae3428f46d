"""A checkpoint's ``config.json``: parsed once, with the loader's own defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping as MappingType
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from enginix.checkpoint.mapping import CheckpointMapping, default_gpus_per_node
from enginix.errors import CheckpointError, ModelError
from enginix.model.context_length import read_checkpoint_context
from enginix.model.jsonfile import read_object
from enginix.model.other_layouts import explain_other_config
from enginix.tables import load_table

FILE = "config.json"
QUANT_FILE = "quant_cfg.json"
DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}


@dataclass(frozen=True)
class CheckpointMoe:
    """A mixture of experts in the checkpoint's terms; ``num_experts`` is 0 for a dense model.

    Attributes:
        normalization_mode: 1 scales the chosen experts' weights to a sum of one, 0 and None do not.
        intermediate_size: width of one expert.
        shared_intermediate_size: width of the shared expert; 0 without one.
    """

    num_experts: int
    top_k: int
    normalization_mode: int | None
    intermediate_size: int
    shared_intermediate_size: int


@dataclass(frozen=True)
class CheckpointQuantization:
    """The ``quantization`` object, and ``quant_cfg.json`` where the algorithm is ``MIXED_PRECISION``.

    Attributes:
        quant_algo: None for unquantized weights.
        exclude_modules: None means the loader's default patterns.
        layers: module (layers numbered within their rank) → algorithm, for ``MIXED_PRECISION``.
    """

    quant_algo: str | None = None
    kv_cache_quant_algo: str | None = None
    group_size: int = 128
    pre_quant_scale: bool = False
    exclude_modules: tuple[str, ...] | None = None
    layers: MappingType[str, str] = field(default_factory=dict)

    def algorithm(self, module: str) -> str | None:
        """Return the algorithm of a module, for instance of ``transformer.layers.0.attention.qkv``."""
        patterns = self.exclude_modules
        if patterns is None:
            patterns = tuple(load_table("number_formats")["defaultExclude"])
        if any(fnmatchcase(module, p) for p in patterns):
            return None
        return self.layers.get(module) if self.quant_algo == "MIXED_PRECISION" else self.quant_algo


@dataclass(frozen=True)
class CheckpointConfig:
    """A TensorRT-LLM checkpoint's configuration; sizes are those of the whole model, not of a rank.

    Attributes:
        architecture: Hugging Face name, for instance ``Qwen3ForCausalLM``.
        dtype: ``float16``, ``bfloat16`` or ``float32`` of everything that is not quantized.
        rotary_scaling: as the loader reads it, with the type under ``rope_type`` and the loader's defaults
            for absent parameters; None without scaling.
        longrope_short, longrope_long: factors of each rotated pair, for ``long_rope``.
        attn_bias: ``attention.qkv`` has a bias (and ``attention.dense``, where ``dense_bias``).
        raw: the parsed ``config.json``.
    """

    architecture: str
    dtype: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_size: int
    intermediate_size: int
    hidden_act: str
    norm_epsilon: float
    max_position_embeddings: int
    position_embedding_type: str
    rotary_base: float
    rotary_scaling: MappingType[str, Any] | None
    rotary_embedding_dim: int
    original_max_position_embeddings: int | None
    longrope_short: tuple[float, ...] | None
    longrope_long: tuple[float, ...] | None
    attn_bias: bool
    dense_bias: bool
    mlp_bias: bool
    tie_word_embeddings: bool
    moe: CheckpointMoe
    use_parallel_embedding: bool
    embedding_sharding_dim: int
    mapping: CheckpointMapping
    quantization: CheckpointQuantization
    raw: MappingType[str, Any] = field(repr=False)

    @property
    def context(self) -> int:
        """The longest sequence that the positions are made for, as rope scaling extends them."""
        return read_checkpoint_context(self.raw) or self.max_position_embeddings

    @classmethod
    def read(cls, directory: Path) -> CheckpointConfig:
        """Read ``config.json`` and, for ``MIXED_PRECISION``, ``quant_cfg.json``.

        Raises:
            CheckpointError: missing, malformed, or a required key absent.
        """
        try:
            raw = read_object(directory / FILE)
            if other := explain_other_config(raw, "checkpoint"):
                raise CheckpointError(other[0], where=str(directory), fix=other[1])
            mixed = (raw.get("quantization") or {}).get("quant_algo") == "MIXED_PRECISION"
            return parse_checkpoint_config(
                raw, str(directory / FILE), read_object(directory / QUANT_FILE) if mixed else None
            )
        except (ModelError, AttributeError) as e:
            what, where = (e.what, e.where) if isinstance(e, ModelError) else (str(e), str(directory / FILE))
            raise CheckpointError(what, where=where, fix="convert the model again") from e


class _CheckpointConfigReader:
    """Typed access to one JSON object, with errors that name the key."""

    def __init__(self, raw: MappingType[str, Any], where: str) -> None:
        self.raw, self.where = raw, where

    def _bad(self, key: str, value: Any, kind: str) -> CheckpointError:
        return CheckpointError(
            f"{key} is {value!r}, not {kind}", where=self.where, fix="convert the model again"
        )

    def integer(self, key: str, default: int | None = None, least: int = 0) -> int:
        value = self.raw.get(key)
        value = default if value is None else value
        if type(value) is not int or not least <= value < 2**31:
            raise self._bad(key, value, f"an integer of at least {least}")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.raw.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self._bad(key, value, "a number")
        return float(value)

    def boolean(self, key: str, default: bool = False) -> bool:
        value = self.raw.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self._bad(key, value, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self.raw.get(key, default)
        if not isinstance(value, str):
            raise self._bad(key, value, "a string")
        return value

    def child(self, key: str) -> _CheckpointConfigReader:
        value = self.raw.get(key) or {}
        if not isinstance(value, dict):
            raise self._bad(key, value, "an object")
        return _CheckpointConfigReader(value, f"{self.where}: {key}")

    def factors(self, key: str) -> tuple[float, ...] | None:
        value = self.raw.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(
            isinstance(v, (int, float)) and not isinstance(v, bool) for v in value
        ):
            raise self._bad(key, value, "a list of numbers")
        return tuple(map(float, value))


def _parse_checkpoint_mapping(r: _CheckpointConfigReader) -> CheckpointMapping:
    tp, pp = r.integer("tp_size", 1, 1), r.integer("pp_size", 1, 1)
    ep_raw = r.raw.get("moe_ep_size", 1)
    ep = 1 if ep_raw == -1 else r.integer("moe_ep_size", 1, 1)  # -1: the loader derives it
    world = r.integer("world_size", tp * pp, 1)
    if r.integer("cp_size", 1, 1) != 1 or world != tp * pp or tp % ep:
        raise CheckpointError(
            f"world_size {world}, tp_size {tp}, pp_size {pp}, moe_ep_size {ep}, cp_size do not agree",
            where=r.where,
            fix="convert the model again",
        )
    return CheckpointMapping(tp, pp, ep, r.integer("gpus_per_node", default_gpus_per_node(), 1))


def _parse_checkpoint_quantization(
    r: _CheckpointConfigReader, mixed: MappingType[str, Any] | None
) -> CheckpointQuantization:
    exclude = r.raw.get("exclude_modules")
    if exclude is not None and (
        not isinstance(exclude, list) or not all(isinstance(e, str) for e in exclude)
    ):
        raise CheckpointError("exclude_modules is not a list of names", where=r.where, fix="convert again")
    layers = (mixed or {}).get("quantized_layers", {})
    if not isinstance(layers, dict) or not all(
        isinstance(v, dict) and isinstance(v.get("quant_algo"), str) for v in layers.values()
    ):
        raise CheckpointError("quantized_layers without algorithms", where=QUANT_FILE, fix="convert again")
    algorithm = r.raw.get("quant_algo")
    if algorithm is not None and algorithm not in load_table("number_formats")["algorithms"]:
        raise CheckpointError(f"quant_algo {algorithm!r} is unknown", where=r.where, fix="convert again")
    return CheckpointQuantization(
        None if algorithm == "NO_QUANT" else algorithm,
        r.raw.get("kv_cache_quant_algo"),
        r.integer("group_size", 128, 1),
        r.boolean("pre_quant_scale"),
        None if exclude is None else tuple(exclude),
        {name: entry["quant_algo"] for name, entry in layers.items()},
    )


def _complete_rotary_scaling(raw: MappingType[str, Any] | None) -> MappingType[str, Any] | None:
    if raw is None:
        return None
    kind = raw.get("type", raw.get("rope_type"))
    types = load_table("architectures")["rope"]["types"]
    defaults = types[kind]["loader"] if isinstance(kind, str) and kind in types else {}
    return {"rope_type": kind, **{key: raw.get(key, default) for key, default in defaults.items()}}


def parse_checkpoint_config(
    raw: MappingType[str, Any], where: str, mixed: MappingType[str, Any] | None = None
) -> CheckpointConfig:
    """Parse a checkpoint's ``config.json``; absent optional keys take the loader's defaults.

    Args:
        mixed: the parsed ``quant_cfg.json``, for ``MIXED_PRECISION``.

    Raises:
        CheckpointError: a key is missing or invalid; the error names it.
    """
    r = _CheckpointConfigReader(raw, where)
    architecture_row = load_table("architectures")["architectures"].get(raw.get("architecture"), {})
    heads, hidden = r.integer("num_attention_heads", None, 1), r.integer("hidden_size", None, 1)
    head_size = r.integer("head_size", hidden // heads, 1)
    intermediate_size = r.integer("intermediate_size", 4 * hidden, 1)
    dtype = r.text("dtype")
    if dtype not in DTYPES:
        raise CheckpointError(f"dtype {dtype!r} is unknown", where=where, fix=f"known: {', '.join(DTYPES)}")
    moe = r.child("moe")
    # The DeepSeek-V2 class has these keys at the top, by names of its own.
    expert_width = r.integer("moe_intermediate_size", 0) or r.integer("moe_inter_size", 0)
    attn_bias = r.boolean(
        "attn_bias", bool(raw.get("bias")) or architecture_row.get("bias", {}).get("qkv") is True
    )
    scaling = raw.get("rotary_scaling")
    if scaling is not None and not isinstance(scaling, dict):
        raise CheckpointError("rotary_scaling is not an object", where=where, fix="convert the model again")
    return CheckpointConfig(
        architecture=r.text("architecture"),
        dtype=dtype,
        vocab_size=r.integer("vocab_size", None, 1),
        hidden_size=hidden,
        num_hidden_layers=r.integer("num_hidden_layers", None, 1),
        num_attention_heads=heads,
        num_key_value_heads=r.integer("num_key_value_heads", heads, 1),
        head_size=head_size,
        intermediate_size=intermediate_size,
        hidden_act=r.text("hidden_act", "gelu"),
        norm_epsilon=r.number("norm_epsilon", 1e-5),
        max_position_embeddings=r.integer("max_position_embeddings", 0),
        position_embedding_type=r.text("position_embedding_type", "learned_absolute"),
        rotary_base=r.number("rotary_base", 10000.0),
        rotary_scaling=_complete_rotary_scaling(scaling),
        rotary_embedding_dim=r.integer("rotary_embedding_dim", int(head_size * r.number("rotary_pct", 1.0))),
        original_max_position_embeddings=raw.get("original_max_position_embeddings"),
        longrope_short=r.factors("longrope_scaling_short_factors"),
        longrope_long=r.factors("longrope_scaling_long_factors"),
        attn_bias=attn_bias,
        dense_bias=attn_bias and architecture_row.get("bias", {}).get("dense") is not False,
        mlp_bias=r.boolean("mlp_bias"),
        tie_word_embeddings=r.boolean("tie_word_embeddings", bool(raw.get("share_embedding_table"))),
        moe=CheckpointMoe(
            moe.integer("num_experts", 0) or r.integer("moe_num_experts", 0),
            moe.integer("top_k", 0) or r.integer("moe_top_k", 0),
            moe.raw.get("normalization_mode", raw.get("moe_renorm_mode")),
            expert_width or intermediate_size,
            moe.integer("shared_expert_intermediate_size", 0)
            or r.integer("moe_shared_expert_intermediate_size", 0)
            or r.integer("moe_num_shared_experts", 0) * expert_width,
        ),
        use_parallel_embedding=r.boolean("use_parallel_embedding"),
        embedding_sharding_dim=r.integer("embedding_sharding_dim", 0),
        mapping=_parse_checkpoint_mapping(r.child("mapping")),
        quantization=_parse_checkpoint_quantization(r.child("quantization"), mixed),
        raw=raw,
    )
