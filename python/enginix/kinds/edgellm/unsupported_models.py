"""Refuse models that an export, or an engine of it, would compute as another function; read no weights.

NVIDIA's exporter takes any configuration and ends with status 0. Three things are refused here by name: what
it leaves out (windows, activations), what its runtime does not compute (scalings of the rotary embedding),
and what its readers understand otherwise than transformers does (keys of other families, contradictions).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from enginix.errors import ModelError
from enginix.model import ModelConfig, ModelRope
from enginix.model.config import parse_config
from enginix.model.other_layouts import require_model_config
from enginix.tables import load_table

# What is wrong, and how to fix it.
Refusal = tuple[str, str]
OTHER_KINDS = 'serve this model by kind "tensorrt" or "llmapi"'
_CORRECT = "correct config.json: keep the value that the model was trained with"
_ORIGINAL = "original_max_position_embeddings"
# Values of equal meaning that a JSON file writes in several ways differ by less.
_SAME = 1e-6


def parse_export_config(raw: Mapping[str, Any], model: Any) -> ModelConfig:
    """Read a configuration by the shared reader, and refuse what an export cannot express.

    Args:
        raw: the parsed ``config.json``.
        model: the model's directory.

    Raises:
        ModelError: an architecture that is not in the table, an invalid value, or a model that an export
            cannot express.
    """
    where = str(model / "config.json")
    require_model_config(raw, str(model))
    _refuse_first(_find_unreadable_values(raw), where)
    config = parse_config(raw, model, checkpoint=False)
    _refuse_first(_find_inexpressible_values(raw, config), where)
    return config


def _refuse_first(refusals: Iterable[Refusal], where: str) -> None:
    for what, fix in refusals:
        raise ModelError(what, where=where, fix=fix)


def _find_unreadable_values(raw: Mapping[str, Any]) -> Iterator[Refusal]:
    """Yield what the shared reader takes, and NVIDIA's readers take otherwise or not at all."""
    rows: Mapping[str, Mapping[str, Any]] = load_table("edgellm")["architectures"]
    names = raw.get("architectures")
    architecture = names[0] if isinstance(names, list) and names else None
    if not isinstance(architecture, str) or architecture not in rows:
        yield (
            f"architecture {architecture!r} is not supported for TensorRT Edge-LLM export",
            f"known: {', '.join(rows)}. The exporter itself accepts any name and answers with status 0",
        )
        return
    model_type = rows[architecture]["modelType"]
    if raw.get("model_type") != model_type:
        what = f"model_type is {raw.get('model_type')!r}, but {architecture} has {model_type!r}"
        yield what, "fetch the model again"
    yield from _find_contradictions(raw)
    activation = raw.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        what = f"hidden_act is {activation!r}: NVIDIA's exporter writes SiLU into every graph"
        yield what, 'serve this model by kind "llmapi"'
    if raw.get("auto_map"):  # the exporter reads configurations with ``trust_remote_code``
        code = ", ".join(map(str, raw["auto_map"]))
        yield (
            f"auto_map names code of the model's own ({code}), which NVIDIA's exporter would run",
            f"remove auto_map if transformers' own {architecture} is the same model",
        )
    if raw.get("max_position_embeddings") is None:
        yield (
            "max_position_embeddings is not in config.json: the context would be a default of transformers'",
            'write "max_position_embeddings" into config.json: the context that it was trained with',
        )


def _find_contradictions(raw: Mapping[str, Any]) -> Iterator[Refusal]:
    """Yield values that a configuration has twice, as each reader takes another one."""
    parameters = [raw[key] for key in ("rope_scaling", "rope_parameters") if isinstance(raw.get(key), dict)]
    stated = [p for p in parameters if p]
    if len(stated) == 2 and _list_scaling(stated[0]) != _list_scaling(stated[1]):
        yield "rope_scaling and rope_parameters differ", _CORRECT
    for key in ("rope_theta", _ORIGINAL, "partial_rotary_factor"):
        values = [v for v in (raw.get(key), *(p.get(key) for p in stated)) if v is not None]
        if any(value != values[0] for value in values):
            texts = " and ".join(str(v) for v in values)
            yield f"{key} is {texts}, beside the rope parameters and in them", _CORRECT
    for given in stated:
        kinds = [given[key] for key in ("rope_type", "type") if given.get(key) is not None]
        if len(kinds) == 2 and kinds[0] != kinds[1]:
            yield (
                f"rope_type is {kinds[0]!r} and type {kinds[1]!r} in the rope parameters: transformers takes "
                "the first, NVIDIA's runtime the second",
                "remove type, or the one of the two that the model was not trained with",
            )
    names = [raw[key] for key in ("dtype", "torch_dtype") if raw.get(key) is not None]
    if len({str(name).removeprefix("torch.") for name in names}) > 1:
        yield f"dtype is {names[0]!r}, and torch_dtype {names[1]!r}", _CORRECT


def _list_scaling(parameters: Mapping[str, Any]) -> dict[str, Any]:
    scaling = {k: v for k, v in parameters.items() if k not in ("type", "rope_type", "rope_theta")}
    return {**scaling, "rope_type": parameters.get("rope_type", parameters.get("type", "default"))}


def _find_inexpressible_values(raw: Mapping[str, Any], config: ModelConfig) -> Iterator[Refusal]:
    edge = load_table("edgellm")
    types: Mapping[str, str] = edge["architectures"][config.architecture]["valueTypes"]
    for key in sorted(set(types) & set(raw)):  # transformers' class, which the exporter reads by, refuses it
        name = "null" if raw[key] is None else type(raw[key]).__name__
        if name not in types[key].split("|"):
            yield (
                f"{key} is {json.dumps(raw[key])}, and transformers' {config.architecture} takes "
                f"{' or '.join(types[key].split('|'))} alone",
                "write the value that the model was trained with; without the key it is the class's default",
            )
    yield from _find_other_layers(config)
    yield from _find_rope_refusals(config)
    # Keys of other families, which NVIDIA's readers take for any model.
    refused: Mapping[str, list[Any]] = edge["configKeys"]["refused"]
    for key in sorted(set(raw) & set(refused) - set(config.description["defaults"])):
        value = raw[key]
        # 0 is False for Python, and is another value for a reader of JSON.
        neutrals = [n for n in refused[key] if isinstance(value, bool) == isinstance(n, bool)]
        if value is not None and value not in neutrals:
            yield (
                f"{key} is {value!r}: NVIDIA's exporter and builder compute with it, and transformers' "
                f"{config.architecture} does not read it",
                f"remove {key} if the model was trained without it",
            )


def _find_other_layers(config: ModelConfig) -> Iterator[Refusal]:
    """Yield kinds of layers that transformers refuses, and windows that no graph here has."""
    kinds, window = config.raw.get("layer_types"), config.sliding_window
    if isinstance(kinds, list):
        if len(kinds) != config.num_layers:
            yield f"layer_types has {len(kinds)} entries for {config.num_layers} layers", _CORRECT
        if strange := [kind for kind in kinds if kind not in ("full_attention", "sliding_attention")]:
            yield f"layer_types has {strange[0]!r}, which {config.architecture} does not have", _CORRECT
        if "sliding_attention" in kinds and window is config.raw.get("sliding_window") is None:
            yield "layer_types names sliding layers, and no sliding_window is in use", _CORRECT
    if window is None:
        return
    fix = (
        f"{OTHER_KINDS}; if its answers and prompts never exceed {window} tokens together, write "
        '"sliding_window": null into config.json, and it is the same model'
    )
    if load_table("edgellm")["architectures"][config.architecture]["window"] == "none":
        yield (
            f"sliding_window is {window}, and NVIDIA's exporter leaves it out of a {config.architecture}",
            fix,
        )
    if set(config.windows) != {window}:
        sliding = sum(w == window for w in config.windows)
        yield (
            f"sliding_window {window} is for {sliding} of {config.num_layers} layers, and NVIDIA's exporter "
            "writes it into all",
            fix,
        )


def _find_rope_refusals(config: ModelConfig) -> Iterator[Refusal]:
    rope, rows = config.rope, load_table("edgellm")["rope"]["types"]
    stated = config.raw.get("rope_scaling") or config.raw.get("rope_parameters")
    stated = stated if isinstance(stated, dict) else {}
    if rope.type == "linear" and stated.get("factor") == 1:
        yield (
            "rope scaling 'linear' with factor 1 is plain rotary embedding, and TensorRT Edge-LLM's runtime "
            "does not know the name",
            "remove the rope scaling from config.json, and keep rope_theta: it is the same model",
        )
    if rope.type not in rows:
        yield (
            f"rope scaling {rope.type!r}: TensorRT Edge-LLM's runtime does not know it, and would compute "
            "plain rotary embedding",
            f"{OTHER_KINDS}; an export can have: {', '.join(rows)}",
        )
    sizes = rows[rope.type]["rotarySizes"]
    if sizes is not None and config.head_dim not in sizes:
        yield (
            f"rope scaling {rope.type!r} with heads of {config.head_dim}: the runtime computes it for "
            f"{' or '.join(map(str, sizes))} rotated elements alone",
            OTHER_KINDS,
        )
    factor = stated.get("partial_rotary_factor", config.raw.get("partial_rotary_factor"))
    if factor is not None and factor != 1:
        yield (
            f"partial_rotary_factor is {factor}: the runtime rotates that part of a head, and transformers "
            "rotates whole heads in this architecture",
            "remove partial_rotary_factor if the model was trained with whole heads rotated",
        )
    # Parameters that the runtime reads and transformers ignores, or the other way round.
    if stated.get("mrope_section") is not None:
        yield (
            "mrope_section in the rope parameters: the runtime would compute a multimodal model's positions",
            "remove mrope_section, which transformers ignores in this architecture",
        )
    if rope.type == "dynamic" and stated.get("alpha") not in (None, 1):
        yield (
            f"alpha {stated['alpha']!r} of the dynamic rope scaling: the runtime computes with it, "
            "transformers without",
            "remove alpha if the model was trained without it",
        )
    yield from _find_missing_parameters(rope, stated, config.raw)
    if rope.type == "yarn":
        yield from _find_yarn_refusals(rope, stated)


def _find_missing_parameters(
    rope: ModelRope, stated: Mapping[str, Any], top: Mapping[str, Any]
) -> Iterator[Refusal]:
    required = {"llama3": [_ORIGINAL], "yarn": ["factor", _ORIGINAL]}.get(rope.type, [])
    for key in (*required, "beta_fast", "beta_slow"):
        if stated.get(key) is not None or (key not in stated and key not in required):
            continue
        if (beside := top.get(key)) is not None:
            yield (
                f"{key} of the {rope.type} rope scaling stands beside the rope parameters, where the runtime "
                "does not read it",
                f'write "{key}": {json.dumps(beside)} into the rope parameters: it says the same',
            )
        yield (
            f"{key} of the {rope.type} rope scaling is not stated, and the runtime needs it",
            f"write the model's {key} into the rope parameters",
        )


def _find_yarn_refusals(rope: ModelRope, stated: Mapping[str, Any]) -> Iterator[Refusal]:
    if not stated.get("truncate", True):
        yield (
            "truncate is false in the yarn rope scaling, and the runtime always rounds the range of the ramp",
            OTHER_KINDS,
        )
    computed = compute_yarn_magnitude(stated)
    if not math.isclose(computed, rope.magnitude, rel_tol=_SAME):
        keys = " and ".join(k for k in ("mscale", "mscale_all_dim", "attention_factor") if stated.get(k))
        yield (
            f"the yarn rope scaling multiplies by {rope.magnitude:g}, and the runtime, which does not read "
            f"{keys or 'its keys'}, by {computed:g}",
            f'write "attention_factor": {rope.magnitude!r} into the rope parameters: it says the same',
        )


def compute_yarn_magnitude(scaling: Mapping[str, Any]) -> float:
    """Compute the factor on cosine and sine as the runtime does (collectRopeConfig)."""
    stated = scaling.get("attention_factor")
    if stated is not None:
        return float(stated)
    factor = float(scaling["factor"])
    return 0.1 * math.log(factor) + 1 if factor > 1 else 1.0


def require_direct_reading(config: ModelConfig) -> None:
    """Refuse a model that NVIDIA's direct builder reads otherwise than transformers does.

    The exporter reads a configuration by transformers, with the defaults of its classes. The builder
    (experimental/builder/core/config.py) reads config.json alone, with defaults of its own.

    Raises:
        ModelError: names the key, and the value to write.
    """
    raw, where = config.raw, str(config.directory / "config.json")
    parameters = raw.get("rope_scaling")
    if not isinstance(parameters, dict):
        parameters = raw.get("rope_parameters") or {}
    theta = parameters.get("rope_theta", 10000.0) if raw.get("rope_theta") is None else raw["rope_theta"]
    # What the builder takes where a key is absent. Null is a value for it, which it cannot convert.
    readings: dict[str, tuple[Any, Any]] = {
        "head_dim": (raw.get("head_dim", config.hidden_size // config.num_heads), config.head_dim),
        "num_key_value_heads": (raw.get("num_key_value_heads", config.num_heads), config.num_kv_heads),
        "rms_norm_eps": (raw.get("rms_norm_eps", 1e-6), config.norm_epsilon),
        "rope_theta": (theta, config.rope.base),
        "rope_type": (parameters.get("rope_type", parameters.get("type", "default")), config.rope.type),
    }
    for key, (read, meant) in readings.items():
        if read != meant:
            raise ModelError(
                f"NVIDIA's builder reads {key} of config.json as {read}, and the model's is {meant}",
                where=where,
                fix=f'write "{key}": {json.dumps(meant)} into config.json, and export the model again',
            )


def note_head_size(config: ModelConfig) -> str | None:
    """Return what to say of a size of heads that the runtime has no kernel for to read prompts with.

    A note, no refusal: this is read from NVIDIA's sources, and no GPU said it here.
    """
    row = load_table("edgellm")["attention"]
    has_norms = load_table("edgellm")["architectures"][config.architecture]["qkNorm"]
    sizes = row["normedSizes" if has_norms else "prefillSizes"]
    if config.head_dim in sizes:
        return None
    return (
        f"by its sources, TensorRT Edge-LLM's attention cannot read prompts with heads of {config.head_dim}, "
        f"only of {', '.join(map(str, sizes))}: expect an engine of this export to fail on the GPU. "
        f"{OTHER_KINDS[0].upper()}{OTHER_KINDS[1:]}"
    )


def require_covered_context(config: ModelConfig, capacity: int) -> None:
    """Refuse a KV cache that the runtime does not start with.

    Raises:
        ModelError: the rotary embedding is dynamic, and the cache exceeds the context.
    """
    if config.rope.type == "dynamic" and capacity > config.max_position_embeddings:
        raise ModelError(
            f"maxKvCacheCapacity {capacity} is beyond max_position_embeddings "
            f"{config.max_position_embeddings}, "
            "which the runtime refuses with dynamic rope scaling",
            where=config.directory / "config.json",
            fix=f"lower maxKvCacheCapacity to {config.max_position_embeddings}",
        )
