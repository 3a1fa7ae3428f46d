"""A Hugging Face model's ``config.json``, read and checked once, with one name for each value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginix.errors import ModelError, UsageError
from enginix.model.config_rules import (
    MOST_LAYERS,
    advise_other_converter,
    explain_contradictions,
    make_unimplemented_error,
    note_unread_keys,
    read_config_dtype,
)
from enginix.model.family_config import parse_family_config
from enginix.model.family_rows import list_family_rows
from enginix.model.jsonfile import read_architecture, read_object
from enginix.model.llmapi_advice import limited_llmapi_advice
from enginix.model.model_config import ModelConfig, ModelExperts
from enginix.model.model_errors import make_unconvertible_error, make_value_error
from enginix.model.other_layouts import require_model_config
from enginix.model.quantization import read_quantization
from enginix.model.rope import read_rope
from enginix.model.safetensors import SINGLE
from enginix.tables import load_table

CONFIG_FILE = "config.json"


def read_model_config(directory: Path, *, variant: str | None = None) -> ModelConfig:
    """Read ``directory/config.json`` and, where it exists, ``hf_quant_config.json``.

    Args:
        variant: generation of a model whose config.json does not tell it (Baichuan, ChatGLM).

    Raises:
        ModelError: missing or malformed, an unknown architecture (the known ones are listed), a
            combination that the architecture cannot express, or a quantization that cannot be converted.
    """
    if not directory.is_dir():
        raise ModelError("no such directory", where=directory, fix="pass a model directory")
    return parse_config(read_object(directory / CONFIG_FILE), directory, variant=variant)


@dataclass(frozen=True)
class _ConfigReader:
    """Values of one ``config.json``; an absent size has the default of the architecture's class."""

    raw: Mapping[str, Any]
    row: Mapping[str, Any]
    where: str

    def integer(self, key: str, default: int | None = None, least: int = 1) -> int:
        value = self.raw.get(key)
        if value is None:
            value = default
        if type(value) is not int or not least <= value < 2**31:
            text = repr(value) if value is not None else "null" if key in self.raw else "absent"
            raise make_value_error(f"{key} is {text}, not a size", self.where)
        return value

    def size(self, key: str) -> int:
        return self.integer(key, None if key in self.raw else self.row["defaults"].get(key))

    def boolean(self, key: str, default: bool = False) -> bool:
        value = self.raw.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise make_value_error(f"{key} is {value!r}, not true or false", self.where)
        return value

    def bias(self, part: str) -> bool:
        rule: bool | str = self.row["bias"][part]
        if isinstance(rule, bool):
            return rule
        # Llama configs of early exporters say "bias" for attention_bias.
        return self.boolean(rule, self.boolean("bias") if rule == "attention_bias" else False)

    def experts(self) -> ModelExperts | None:
        rule = self.row["experts"]
        if rule is None:
            return None
        # transformers 5 saves some of these under another name than transformers 4 did.
        key = next((k for k in rule["count"] if self.raw.get(k) is not None), rule["count"][0])
        count, top_k = self.size(key), self.size(rule["topK"])
        if top_k > count:
            raise make_value_error(f"{rule['topK']} {top_k} exceeds {key} {count}", self.where)
        width, renormalize = self.size(rule["width"]), rule["renormalize"]
        renormalize = renormalize if isinstance(renormalize, bool) else self.boolean(renormalize)
        shared = self.size(rule["shared"]["width"]) if rule["shared"] else 0
        return ModelExperts(count, top_k, width, renormalize, shared)


def find_architecture_row(name: Any, where: str) -> Mapping[str, Any]:
    """Return the row of architectures.json for a Hugging Face architecture.

    Raises:
        ModelError: not in the table; the message lists the known ones, and other converters that take it.
    """
    rows = load_table("architectures")["architectures"]
    if isinstance(name, str) and name in rows:
        row: Mapping[str, Any] = rows[name]
        return row
    name = name if isinstance(name, str) else repr(name)
    raise ModelError(
        f"architecture {name!r} is unknown to converter 'enginix'; known: "
        f"{', '.join(sorted({*rows, *list_family_rows()}))}",
        where=where,
        fix=advise_other_converter(name, " takes it"),
    )


def _refuse_inexpressible(raw: Mapping[str, Any], row: Mapping[str, Any], where: str) -> None:
    """Refuse what a TensorRT-LLM checkpoint of the architecture cannot express."""
    for rule in row["refuse"]:
        value = raw.get(rule["key"])
        if value is not None and value != rule["unless"]:
            raise ModelError(f"{rule['key']} is {value!r}: {rule['why']}", where=where, fix=rule["fix"])


def _refuse_unimplemented(raw: Mapping[str, Any], row: Mapping[str, Any], name: str, where: str) -> None:
    """Refuse keys that transformers' model code of the architecture does not read."""
    known = load_table("architectures")["configuration"]["changes"]
    implemented = row.get("implements", {})
    for key in sorted(set(raw) & set(known) - set(row["defaults"])):
        neutral = [*known[key], *implemented.get(key, ())]
        if raw[key] not in neutral and not (
            (key == "layer_types" and _are_layer_types_read(raw, row))
            or (key == "sliding_window" and _is_window_unused(raw, row))
        ):
            raise make_unimplemented_error(key, raw[key], name, where)


def _are_layer_types_read(raw: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Return whether layer_types is absent, or read by this architecture's model code."""
    kinds = raw["layer_types"]
    return row["window"] in ("last", "alternate") or (
        isinstance(kinds, list) and all(kind == "full_attention" for kind in kinds)
    )


def _is_window_unused(raw: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Return whether a window is switched off, or reaches over the whole context.

    The masks of a class without windows do not read it; transformers' caches do, for every class.
    """
    window, context = raw["sliding_window"], raw.get("max_position_embeddings")
    context = row["defaults"]["max_position_embeddings"] if context is None else context
    return raw.get("use_sliding_window") is False or (
        isinstance(window, int) and isinstance(context, int) and window >= context
    )


def _list_keys_read(row: Mapping[str, Any]) -> set[str]:
    read = {*_READ, *row["defaults"], *(rule["key"] for rule in row["refuse"])}
    if (experts := row["experts"]) is not None:
        read |= {*experts["count"], experts["topK"], experts["width"]}
        read |= {experts["shared"]["width"]} if experts["shared"] else set()
    return read


def _note_head_size(row: Mapping[str, Any], head_dim: int, hidden_size: int, heads: int) -> list[str]:
    if row["family"] != "phi3" or head_dim * heads == hidden_size:
        return []
    return [
        f"head_dim is {head_dim}, and TensorRT-LLM's Phi-3 class builds heads of hidden_size / "
        f"num_attention_heads, {hidden_size // heads}: no engine of kind tensorrt can be built of it"
    ]


_READ = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings", "rope_scaling", "rope_parameters", "partial_rotary_factor", "bias",
    "original_max_position_embeddings", "layer_types", "transformers_weights",
)  # fmt: skip


def find_windows(raw: Mapping[str, Any], row: Mapping[str, Any], layers: int, where: str) -> list[int | None]:
    """Return each layer's sliding window, as transformers' configuration class and model code define it."""
    defaults, rule, reader = row["defaults"], row["window"], _ConfigReader(raw, row, where)
    window = raw.get("sliding_window", defaults.get("sliding_window"))
    if rule == "none" or window is None:
        return [None] * layers
    if "use_sliding_window" in defaults and not reader.boolean("use_sliding_window"):
        window = None
    elif type(window) is not int or window < 1:
        raise make_value_error(f"sliding_window is {window!r}", where)
    if rule == "all":
        return [window] * layers
    kinds = raw.get("layer_types")
    if kinds is None:
        edge = reader.integer("max_window_layers", defaults["max_window_layers"], least=0)
        slides = [i >= edge if rule == "last" else i % 2 == 0 and i < edge for i in range(layers)]
    else:
        if not isinstance(kinds, list) or len(kinds) != layers or not set(kinds) <= set(_KINDS):
            raise make_value_error(f"layer_types is not {layers} times one of {', '.join(_KINDS)}", where)
        slides = [kind == "sliding_attention" for kind in kinds]
        if window is None and any(slides):
            raise make_value_error("layer_types names sliding layers, and use_sliding_window is false", where)
    return [window if slide else None for slide in slides]


_KINDS = ("full_attention", "sliding_attention")


def parse_config(
    raw: Mapping[str, Any], directory: Path, *, checkpoint: bool = True, variant: str | None = None
) -> ModelConfig:
    """Check a parsed ``config.json``; ``read_model_config`` lists the errors.

    Args:
        variant: as of ``read_model_config``.
        checkpoint: refuse what a TensorRT-LLM checkpoint cannot express. Without it the result is what the
            model means, whatever serves it, and has no ``quantization``.
    """
    with limited_llmapi_advice(read_architecture(raw)):
        return _parse_config(raw, directory, checkpoint, variant)


def _parse_config(
    raw: Mapping[str, Any], directory: Path, checkpoint: bool, variant: str | None
) -> ModelConfig:
    where = str(directory / CONFIG_FILE)
    require_model_config(raw, where)
    names = raw.get("architectures")
    if not isinstance(names, list) or len(names) != 1:
        text = repr(names) if "architectures" in raw else "absent"
        raise ModelError(
            f"architectures is {text}, not one name",
            where=where,
            fix="name the model's class: save_pretrained of transformers writes it",
        )
    if checkpoint:
        for what, fix in explain_contradictions(raw, [SINGLE] if (directory / SINGLE).exists() else []):
            raise ModelError(what, where=where, fix=fix)
    if checkpoint and isinstance(names[0], str) and names[0] in list_family_rows():
        return parse_family_config(raw, list_family_rows()[names[0]], directory, where, variant)
    if variant is not None:
        raise UsageError(f"variant {variant!r}: {names[0]} has none", where=where, fix="leave it out")
    row = find_architecture_row(names[0], where)
    defaults, reader = row["defaults"], _ConfigReader(raw, row, where)
    if checkpoint:
        _refuse_inexpressible(raw, row, where)
    _refuse_unimplemented(raw, row, names[0], where)
    hidden_act = raw.get("hidden_act", defaults["hidden_act"])
    if hidden_act not in ("silu", "swish"):
        raise make_unconvertible_error(
            f"hidden_act is {hidden_act!r}; {names[0]} checkpoints support silu only", where
        )
    hidden_size = reader.size("hidden_size")
    num_heads = reader.size("num_attention_heads")
    # Absent is the class's default; null is as many as heads.
    kv_default = num_heads if "num_key_value_heads" in raw else defaults["num_key_value_heads"] or num_heads
    num_kv_heads = reader.integer("num_key_value_heads", kv_default)
    if num_heads % num_kv_heads:
        is_default = "num_key_value_heads" not in raw
        more = " (num_key_value_heads is absent: the class's default)" * is_default
        raise make_value_error(
            f"{num_heads} attention heads cannot share {num_kv_heads} KV heads{more}", where
        )
    head_default = None if "head_dim" in raw else defaults["head_dim"]
    if raw.get("head_dim") is None and head_default is None and hidden_size % num_heads:
        raise make_value_error(
            f"hidden_size {hidden_size} is not a multiple of {num_heads} heads, and head_dim is absent", where
        )
    head_dim = reader.integer("head_dim", head_default or hidden_size // num_heads)
    epsilon = raw.get("rms_norm_eps", defaults["rms_norm_eps"])
    if isinstance(epsilon, bool) or not isinstance(epsilon, (int, float)) or not 0 <= epsilon < 1:
        raise make_value_error(f"rms_norm_eps is {epsilon!r}", where)
    layers = reader.size("num_hidden_layers")
    if layers > MOST_LAYERS:
        raise make_value_error(f"num_hidden_layers is {layers}", where)
    rope = read_rope(raw, where, row=row, head_dim=head_dim, checkpoint=checkpoint)
    return ModelConfig(
        directory=directory,
        architecture=names[0],
        model_type=str(raw.get("model_type", "")),
        dtype=read_config_dtype(raw, where),
        vocab_size=reader.size("vocab_size"),
        hidden_size=hidden_size,
        num_layers=layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        intermediate_size=reader.size("intermediate_size"),
        max_position_embeddings=reader.size("max_position_embeddings"),
        hidden_act="silu",
        norm_epsilon=float(epsilon),
        rope=rope,
        tie_word_embeddings=reader.boolean("tie_word_embeddings"),
        qkv_bias=reader.bias("qkv"),
        dense_bias=reader.bias("dense"),
        mlp_bias=reader.bias("mlp"),
        windows=tuple(find_windows(raw, row, layers, where)),
        experts=reader.experts(),
        quantization=read_quantization(directory, raw) if checkpoint else None,
        notes=(
            *rope.notes,
            *note_unread_keys(raw, _list_keys_read(row)),
            *_note_head_size(row, head_dim, hidden_size, num_heads),
        ),
        raw=raw,
        description=row,
    )
