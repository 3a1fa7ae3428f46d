"""A Hugging Face model's ``config.json``, read once, checked, in one vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from enginix.errors import ModelError
from enginix.model.jsonfile import read_object
from enginix.model.quantization import ModelQuantization, read_quantization
from enginix.model.rope import Rope, read_rope
from enginix.tables import table

FILE = "config.json"
DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Experts:
    """A mixture of experts.

    Attributes:
        count: experts a layer.
        top_k: experts a token.
        width: intermediate size of one expert.
        renormalize: whether the chosen experts' weights are scaled to sum to one.
        shared_width: intermediate size of the shared expert; 0 without one.
    """

    count: int
    top_k: int
    width: int
    renormalize: bool
    shared_width: int


@dataclass(frozen=True)
class ModelConfig:
    """What a conversion, a plan or a report needs to know of a model; sizes in elements.

    Attributes:
        architecture: ``architectures[0]``.
        dtype: dtype that the config names; None where it names none.
        head_dim: size of one attention head.
        raw: the parsed ``config.json``.
        description: the architecture's row of architectures.json.
    """

    directory: Path
    architecture: str
    model_type: str
    dtype: str | None
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_position_embeddings: int
    hidden_act: str
    norm_epsilon: float
    rope: Rope
    tie_word_embeddings: bool
    qkv_bias: bool
    dense_bias: bool
    mlp_bias: bool
    sliding_window: int | None
    experts: Experts | None
    quantization: ModelQuantization | None
    raw: Mapping[str, Any] = field(repr=False)
    description: Mapping[str, Any] = field(repr=False)

    @classmethod
    def read(cls, directory: Path) -> ModelConfig:
        """Reads ``directory/config.json`` and, where it exists, ``hf_quant_config.json``.

        Raises:
            ModelError: missing or malformed, an unknown architecture (the known ones are listed), a
                combination that the architecture cannot express, or a quantization that cannot be converted.
        """
        if not directory.is_dir():
            raise ModelError("no such directory", where=str(directory), fix="pass a model directory")
        return parse(read_object(directory / FILE), directory)


def _integer(raw: Mapping[str, Any], key: str, where: str, default: int | None = None, least: int = 1) -> int:
    value = raw.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
        raise ModelError(f"{key} is {value!r}, not a size", where=where, fix="correct config.json")
    return value


def _boolean(raw: Mapping[str, Any], key: str, where: str, default: bool = False) -> bool:
    value = raw.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ModelError(f"{key} is {value!r}, not true or false", where=where, fix="correct config.json")
    return value


def architecture_row(name: Any, where: str) -> Mapping[str, Any]:
    """The row of architectures.json for a Hugging Face architecture.

    Raises:
        ModelError: not in the table; the message lists what is, and what other converters take.
    """
    rows = table("architectures")["architectures"]
    if isinstance(name, str) and name in rows:
        row: Mapping[str, Any] = rows[name]
        return row
    name = name if isinstance(name, str) else repr(name)
    other = [k for k, v in table("converters")["converters"].items() if name in v["architectures"]]
    raise ModelError(
        f"architecture {name!r} is unknown to converter 'enginix'; known: {', '.join(sorted(rows))}",
        where=where,
        fix=(
            f"--converter {' or '.join(other)} takes it"
            if other
            else table("converters")["refused"].get(name)
        )
        or "serve the model with the llmapi kind",
    )


def _dtype(raw: Mapping[str, Any], where: str) -> str | None:
    value = raw.get("dtype", raw.get("torch_dtype"))
    if value is None:
        return None
    name = value.removeprefix("torch.") if isinstance(value, str) else value
    if name not in DTYPES:
        raise ModelError(f"dtype is {value!r}", where=where, fix=f"known: {', '.join(DTYPES)}")
    return str(name)


def _experts(raw: Mapping[str, Any], row: Mapping[str, Any] | None, where: str) -> Experts | None:
    if row is None:
        return None
    renormalize = row["renormalize"]
    # transformers 5 saves some of these under another name than transformers 4 did.
    key = next((k for k in row["count"] if raw.get(k) is not None), row["count"][0])
    count = _integer(raw, key, where)
    top_k = _integer(raw, row["topK"], where)
    if top_k > count:
        raise ModelError(
            f"{row['topK']} {top_k} exceeds {key} {count}", where=where, fix="correct config.json"
        )
    return Experts(
        count,
        top_k,
        _integer(raw, row["width"], where),
        renormalize if isinstance(renormalize, bool) else _boolean(raw, renormalize, where),
        _integer(raw, row["shared"]["width"], where) if row["shared"] else 0,
    )


def _bias(raw: Mapping[str, Any], rule: bool | str, where: str) -> bool:
    if isinstance(rule, bool):
        return rule
    # Llama configs of early exporters say "bias" for attention_bias.
    return _boolean(
        raw, rule, where, default=_boolean(raw, "bias", where) if rule == "attention_bias" else False
    )


def parse(raw: Mapping[str, Any], directory: Path) -> ModelConfig:
    """Checks a parsed ``config.json``; ``ModelConfig.read`` says what is refused."""
    where = str(directory / FILE)
    names = raw.get("architectures")
    if not isinstance(names, list) or len(names) != 1:
        raise ModelError(f"architectures is {names!r}, not one name", where=where, fix="correct config.json")
    row = architecture_row(names[0], where)
    for rule in row["refuse"]:
        value = raw.get(rule["key"])
        if value is not None and value != rule["unless"]:
            raise ModelError(f"{rule['key']} is {value!r}: {rule['why']}", where=where, fix=rule["fix"])
    hidden_act = raw.get("hidden_act", "silu")
    if hidden_act not in ("silu", "swish"):
        raise ModelError(
            f"hidden_act is {hidden_act!r}; {names[0]} checkpoints carry silu alone", where=where,
            fix="serve the model with the llmapi kind",
        )  # fmt: skip
    hidden_size = _integer(raw, "hidden_size", where)
    num_heads = _integer(raw, "num_attention_heads", where)
    num_kv_heads = _integer(raw, "num_key_value_heads", where, default=num_heads)
    if num_heads % num_kv_heads:
        raise ModelError(
            f"{num_heads} attention heads cannot share {num_kv_heads} KV heads", where=where,
            fix="correct config.json",
        )  # fmt: skip
    if raw.get("head_dim") is None and hidden_size % num_heads:
        raise ModelError(
            f"hidden_size {hidden_size} is no multiple of {num_heads} heads and head_dim is absent",
            where=where,
            fix="correct config.json",
        )
    epsilon = raw.get("rms_norm_eps", 1e-6)
    if isinstance(epsilon, bool) or not isinstance(epsilon, (int, float)) or not 0 <= epsilon < 1:
        raise ModelError(f"rms_norm_eps is {epsilon!r}", where=where, fix="correct config.json")
    window = raw.get("sliding_window") if raw.get("use_sliding_window", True) else None
    return ModelConfig(
        directory=directory,
        architecture=names[0],
        model_type=str(raw.get("model_type", "")),
        dtype=_dtype(raw, where),
        vocab_size=_integer(raw, "vocab_size", where),
        hidden_size=hidden_size,
        num_layers=_integer(raw, "num_hidden_layers", where),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=_integer(raw, "head_dim", where, default=hidden_size // num_heads),
        intermediate_size=_integer(raw, "intermediate_size", where),
        max_position_embeddings=_integer(raw, "max_position_embeddings", where),
        hidden_act="silu",
        norm_epsilon=float(epsilon),
        rope=read_rope(raw, where, default_base=row["ropeBase"]),
        tie_word_embeddings=_boolean(raw, "tie_word_embeddings", where),
        qkv_bias=_bias(raw, row["bias"]["qkv"], where),
        dense_bias=_bias(raw, row["bias"]["dense"], where),
        mlp_bias=_bias(raw, row["bias"]["mlp"], where),
        sliding_window=window if isinstance(window, int) else None,
        experts=_experts(raw, row["experts"], where),
        quantization=read_quantization(directory, raw),
        raw=raw,
        description=row,
    )
