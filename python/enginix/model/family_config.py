"""Read the ``config.json`` of an architecture of family_rows.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from enginix.errors import ModelError, UsageError
from enginix.model.config_rules import (
    MOST_LAYERS,
    make_unimplemented_error,
    note_unread_keys,
    read_config_dtype,
)
from enginix.model.family_rows import (
    describe_formats,
    evaluate_expression,
    list_family_rows,
    list_keys_read,
    read_model_values,
)
from enginix.model.model_config import ModelConfig, ModelExperts
from enginix.model.model_errors import make_unconvertible_error, make_value_error
from enginix.model.quantization import read_quantization
from enginix.model.rope import ModelRope, read_rope
from enginix.tables import load_table

_ROPE_KEYS = ("rope_scaling", "rope_parameters", "rope_theta", "partial_rotary_factor")
_KV_HEAD_KEYS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")


class _FamilyReader:
    """Values of one model's config.json, by the expressions of its row."""

    def __init__(
        self, raw: Mapping[str, Any], row: Mapping[str, Any], where: str, variant: str | None
    ) -> None:
        self.raw, self.row, self.where = raw, row, where
        self.values = read_model_values(raw, row)
        self.variant = self.values["variant"] = self._choose_variant(variant)

    def _choose_variant(self, requested: str | None) -> str | None:
        rule = self.row.get("variants")
        names = [] if rule is None else rule["names"]
        if requested is not None and requested not in names:
            raise UsageError(
                f"variant {requested!r} is unknown",
                where=self.where,
                fix=f"one of: {', '.join(names)}" if names else "leave it out: this architecture has none",
            )
        if rule is None or requested is not None:
            return requested
        chosen = self.evaluate(rule["default"])
        if chosen is None:
            raise ModelError(
                f"config.json does not tell which model of the family it is: {rule['why']}",
                where=self.where,
                fix=f"--variant one of {', '.join(names)} (mkCheckpoint: variant)",
            )
        return str(chosen)

    def evaluate(self, expression: Any) -> Any:
        return evaluate_expression(expression, self.values, self.where)

    def size(self, name: str, expression: Any) -> int:
        value = self.evaluate(expression)
        if isinstance(value, float) and value == int(value):
            value = int(value)
        if type(value) is not int or not 1 <= value < 2**31:
            source = ", ".join(sorted(list_keys_read(expression))) or name
            raise make_value_error(f"{source} is {value!r}, not a size", self.where)
        self.values[name] = value
        return value

    def number(self, name: str, expression: Any) -> float:
        value = self.evaluate(expression)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
            source = ", ".join(sorted(list_keys_read(expression))) or name
            raise make_value_error(f"{source} is {value!r}", self.where)
        self.values[name] = value
        return float(value)

    def _list_unaccepted(self, rules: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield what a key is and why that matters, with its rule, for each value that a rule rejects."""
        for rule in self.row.get(rules, ()):
            value = self.values.get(f"hf.{rule['key']}")
            accepted = [self.evaluate(entry) for entry in rule["accepts"]]
            if not any(type(value) is type(entry) and value == entry for entry in accepted):
                yield f"{rule['key']} is {value!r}: {rule['why']}", rule

    def notes(self) -> list[str]:
        """Return where a checkpoint does not compute what transformers' class does."""
        return [what for what, _ in self._list_unaccepted("notes")]

    def refuse_inexpressible(self) -> None:
        """Refuse what a checkpoint of the architecture cannot express."""
        for what, rule in self._list_unaccepted("refuse"):
            raise ModelError(what, where=self.where, fix=rule["fix"])
        for name, expression in self.row.get("fixed", {}).items():
            expected, value = self.evaluate(expression), self.values[name]
            if value != expected:
                raise make_unconvertible_error(
                    f"{name} is {value!r}, and {self.row['engineClass']} of TensorRT-LLM takes {expected!r}",
                    self.where,
                )

    def keys_read(self) -> set[str]:
        row = self.row
        names = ("sizes", "kvHeads", "headSize", "position", "rope", "experts", "window", "variants")
        expressions = [row[k] for k in names if k in row]
        keys = list_keys_read([*expressions, row["config"]["set"]]) | set(row["defaults"])
        keys |= set(row.get("aliases", ()))
        return keys | {rule["key"] for rule in row.get("refuse", ())} | {key.split(".")[0] for key in keys}

    def refuse_unimplemented(self, name: str) -> None:
        """Refuse keys that change what other architectures compute and that this row does not read."""
        known = load_table("architectures")["configuration"]["changes"]
        for key in sorted(set(self.raw) & set(known) - self.keys_read() - set(_ROPE_KEYS)):
            if self.raw[key] in known[key] or (key == "layer_types" and self._are_layers_as_built()):
                continue
            if key == "layer_types" and "window" in self.row:
                raise make_unconvertible_error(
                    f"layer_types is {self.raw[key]!r}: {self.row['engineClass']} of TensorRT-LLM alternates "
                    "layers with a sliding window and without one in its own order",
                    self.where,
                )
            raise make_unimplemented_error(key, self.raw[key], name, self.where)

    def _are_layers_as_built(self) -> bool:
        """Return whether layer_types is the alternation that the engine's class builds."""
        kinds, rule = self.raw["layer_types"], self.row.get("window")
        if not isinstance(kinds, list):
            return False
        slides = [False] if rule is None else rule["layers"]
        return all(
            kind == ("sliding_attention" if slides[i % len(slides)] else "full_attention")
            for i, kind in enumerate(kinds)
        )

    def activation(self) -> str:
        """Return the activation in TensorRT-LLM's word."""
        rule = self.row["activation"]
        names: Mapping[str, str] = rule["names"]
        if rule["key"] is None:
            return next(iter(names.values()))
        value = self.values.get(f"hf.{rule['key']}")
        value = rule.get("absent") if value is None else value
        if value not in names:
            raise make_unconvertible_error(
                f"{rule['key']} is {value!r}; checkpoints of this architecture support {', '.join(names)}",
                self.where,
            )
        return names[value]

    def rope(self, head_dim: int, positions: int) -> ModelRope:
        rule = self.row.get("rope")
        if rule is None:
            return ModelRope(10000.0, "default", None, 1.0)
        raw: dict[str, Any] = {
            "rope_theta": self.evaluate(rule["theta"]),
            "partial_rotary_factor": self.evaluate(rule["fraction"]),
            "max_position_embeddings": positions,
        }
        inner = self.raw.get("rope_scaling") or self.raw.get("rope_parameters")
        if isinstance(inner, dict) and inner:
            raw["rope_scaling"] = inner
            # transformers 5 keeps them there.
            if "partial_rotary_factor" in inner:
                del raw["partial_rotary_factor"]
            if "rope_theta" in inner and "rope_theta" not in self.raw:
                del raw["rope_theta"]
        row = {
            "defaults": {"rope_theta": self.row["defaults"].get("rope_theta", 10000.0)},
            "rope": {"types": rule["types"], "partial": True},
        }
        rope = read_rope(raw, self.where, row=row, head_dim=head_dim)
        if rope.type == "default" and not rule.get("plain", True):
            raise make_unconvertible_error(
                f"rope_scaling is absent, and {self.row['engineClass']} of TensorRT-LLM reads it", self.where
            )
        return rope

    def windows(self, layers: int) -> tuple[int | None, ...]:
        windows = read_family_windows(self.raw, self.row, layers)
        if windows is None:
            (key,) = list_keys_read(self.row["window"]["size"])
            value = self.values[f"hf.{key}"]
            raise make_value_error(f"{key} is {value!r}, not a size", self.where)
        return tuple(windows)


def read_family_sizes(raw: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, int]:
    """Return a model's sizes by the names of a checkpoint's config.json; what is not given is absent."""
    values, sizes = read_model_values(raw, row), dict[str, int]()
    rules = {**row["sizes"], "num_key_value_heads": row.get("kvHeads"), "head_size": row.get("headSize")}
    if "experts" in row:
        rules |= {"experts.count": row["experts"]["count"], "experts.top_k": row["experts"]["topK"]}
        rules |= {f"experts.{key}": row["experts"].get(key) for key in ("width", "shared")}
    for name, rule in rules.items():
        try:
            value = evaluate_expression(rule, values, "")
        except ModelError:
            continue
        value = int(value) if isinstance(value, float) and value == int(value) else value
        if type(value) is int and value > 0:
            sizes[name] = value
    heads, hidden = sizes.get("num_attention_heads"), sizes.get("hidden_size")
    if heads:
        sizes.setdefault("num_key_value_heads", heads)
        if hidden and hidden % heads == 0:
            sizes.setdefault("head_size", hidden // heads)
    return sizes


def read_family_windows(
    raw: Mapping[str, Any], row: Mapping[str, Any], layers: int
) -> list[int | None] | None:
    """Return each layer's sliding window by its row; None where the window is not a number of tokens."""
    rule = row.get("window")
    size = None if rule is None else evaluate_expression(rule["size"], read_model_values(raw, row), "")
    if rule is None or size is None:
        return [None] * layers
    if type(size) is not int or size < 1:
        return None
    return [size if rule["layers"][i % len(rule["layers"])] else None for i in range(layers)]


def name_family_sizes(raw: Mapping[str, Any], architecture: str | None) -> dict[str, Any]:
    """Return the sizes of an architecture of family_rows.json under the names that most models have.

    Empty for other architectures.
    """
    row = list_family_rows().get(architecture or "")
    if row is None:
        return {}
    sizes = read_family_sizes(raw, row)
    common: dict[str, Any] = {name: size for name, size in sizes.items() if "." not in name}
    for name, usual in (("head_size", "head_dim"), ("experts.count", "num_local_experts")):
        if name in sizes:
            common[usual] = sizes[name]
    if "experts.top_k" in sizes:
        common["num_experts_per_tok"] = sizes["experts.top_k"]
    tied = "tie_word_embeddings"
    return {tied: row["defaults"].get(tied), **common, **({tied: raw[tied]} if tied in raw else {})}


def find_kv_heads(config: Mapping[str, Any], architecture: str | None) -> int | None:
    """Return the KV heads that ``config.json`` names; None where it names none, or names them by layer.

    Multi-query classes say it by a flag: Falcon and GPT-BigCode (data/memory_plan/memory_constants.json).
    """
    row = load_table("memory_constants")["multiQuery"]["architectures"].get(architecture)
    if row is not None and not (row["unless"] and config.get(row["unless"])):
        if config.get(row["flag"], row["default"]):
            return 1
        heads = next(
            (config[k] for k in ("num_attention_heads", "n_head") if type(config.get(k)) is int), None
        )
        return heads
    if (family := list_family_rows().get(architecture or "")) is not None:
        return read_family_sizes(config, family).get("num_key_value_heads")
    return next((config[key] for key in _KV_HEAD_KEYS if type(config.get(key)) is int), None)


def parse_family_config(
    raw: Mapping[str, Any], row: Mapping[str, Any], directory: Path, where: str, variant: str | None
) -> ModelConfig:
    """Return the configuration of a model whose architecture is a row of family_rows.json.

    Raises:
        ModelError: a size is missing or invalid, a value has no place in a checkpoint, or quantized weights.
    """
    reader, name = _FamilyReader(raw, row, where, variant), str(raw["architectures"][0])
    name = row.get("writtenAs", name)
    reader.refuse_unimplemented(name)
    sizes = {key: reader.size(key, e) for key, e in row["sizes"].items() if key != "norm_epsilon"}
    epsilon = reader.number("norm_epsilon", row["sizes"]["norm_epsilon"])
    heads, hidden = sizes["num_attention_heads"], sizes["hidden_size"]
    kv_heads = reader.size("num_key_value_heads", _or_default(reader, row.get("kvHeads"), heads))
    head_dim = _or_default(reader, row.get("headSize"), None)
    if head_dim is None and hidden % heads:
        raise make_value_error(f"hidden_size {hidden} is not a multiple of {heads} heads", where)
    head_dim = reader.size("head_size", head_dim or hidden // heads)
    if heads % kv_heads:
        raise make_value_error(f"{heads} attention heads cannot share {kv_heads} KV heads", where)
    if sizes["num_hidden_layers"] > MOST_LAYERS:
        raise make_value_error(f"num_hidden_layers is {sizes['num_hidden_layers']}", where)
    reader.refuse_inexpressible()
    quantization = read_quantization(directory, raw)
    if quantization is not None:
        _require_format(quantization.algorithm, name, row, where)
    rope = reader.rope(sizes.get("rotated_size", head_dim), sizes["max_position_embeddings"])
    tied = reader.values["hf.tie_word_embeddings"]
    if not isinstance(tied, bool):
        raise make_value_error(f"tie_word_embeddings is {tied!r}, not true or false", where)
    experts = _read_family_experts(reader, sizes["intermediate_size"])
    return ModelConfig(
        directory=directory,
        architecture=name,
        model_type=str(raw.get("model_type", "")),
        dtype=read_config_dtype(raw, where),
        vocab_size=sizes["vocab_size"],
        hidden_size=hidden,
        num_layers=sizes["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=sizes["intermediate_size"],
        max_position_embeddings=sizes["max_position_embeddings"],
        hidden_act=reader.activation(),
        norm_epsilon=epsilon,
        rope=rope,
        tie_word_embeddings=tied,
        qkv_bias="qkv" in row["layout"]["biases"],
        dense_bias="dense" in row["layout"]["biases"],
        mlp_bias="mlp" in row["layout"]["biases"],
        windows=reader.windows(sizes["num_hidden_layers"]),
        experts=experts,
        quantization=quantization,
        notes=(
            *rope.notes,
            *reader.notes(),
            *note_unread_keys(raw, {*reader.keys_read(), *_ROPE_KEYS}),
        ),
        raw=raw,
        description=row,
        variant=reader.variant,
    )


def _require_format(algorithm: str, name: str, row: Mapping[str, Any], where: str) -> None:
    if algorithm != "NO_QUANT" and algorithm not in row.get("formats", ()):
        raise ModelError(
            f"the model is {algorithm}; converter 'enginix' converts {name} {describe_formats(row)} only",
            where=where,
            fix="pass the unquantized model, or serve this one with the llmapi kind",
        )


def _or_default(reader: _FamilyReader, expression: Any, default: int | None) -> Any:
    value = reader.evaluate(expression)
    return default if value is None else value


def _read_family_experts(reader: _FamilyReader, width: int) -> ModelExperts | None:
    rule = reader.row.get("experts")
    if rule is None:
        return None
    count, top_k = reader.size("experts.count", rule["count"]), reader.size("experts.top_k", rule["topK"])
    if top_k > count:
        raise make_value_error(f"{top_k} experts a token exceed {count}", reader.where)
    width = reader.size("experts.width", rule.get("width", width))
    shared = reader.size("experts.shared", rule["shared"]) if "shared" in rule else 0
    return ModelExperts(count, top_k, width, True, shared)
