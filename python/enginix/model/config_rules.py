"""What the readers of ``config.json`` refuse alike, whatever the architecture."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from enginix.errors import ModelError
from enginix.model.family_rows import list_family_rows
from enginix.model.jsonfile import read_architecture
from enginix.model.model_errors import LLMAPI_FIX
from enginix.model.safetensors import INDEX, SINGLE
from enginix.tables import load_table

MOST_LAYERS = 10_000  # bound on the loops that run before a header is read
CONFIG_DTYPES = ("bfloat16", "float16", "float32")


def read_config_dtype(raw: Mapping[str, Any], where: str) -> str | None:
    value = raw.get("dtype", raw.get("torch_dtype"))
    if value is None or value == "auto":
        return None
    name = value.removeprefix("torch.") if isinstance(value, str) else value
    if name not in CONFIG_DTYPES:
        raise ModelError(f"dtype is {value!r}", where=where, fix=f"known: {', '.join(CONFIG_DTYPES)}")
    return str(name)


def explain_other_class(architecture: Any, model_type: Any) -> tuple[str, str] | None:
    """Return how a model_type contradicts an architecture that conversion reads, and how to fix it.

    AutoModelForCausalLM loads a model by its model_type.
    """
    rows = {**load_table("architectures")["architectures"], **list_family_rows()}
    row = rows.get(architecture) if isinstance(architecture, str) else None
    if row is None or model_type is None or model_type in row["modelTypes"]:
        return None
    others = [other for other in rows if model_type in rows[other]["modelTypes"]]
    return (
        f"architectures is {architecture} and model_type is {model_type!r}: transformers loads a model by "
        f"its model_type, {f'as {others[-1]}' if others else 'as another class'}",
        f"correct the one that is wrong: {architecture} has model_type {' or '.join(row['modelTypes'])}"
        + (f", {model_type} is {others[-1]}" if others else ""),
    )


def explain_other_weights(raw: Mapping[str, Any], names: Collection[str]) -> tuple[str, str] | None:
    """Return that transformers_weights names other weights than those that are read, and how to fix it.

    Args:
        names: of the model's files.
    """
    value = raw.get("transformers_weights")
    stored = SINGLE if SINGLE in names else INDEX
    if value is None or value == stored:
        return None
    name = INDEX if str(value).endswith(".index.json") else SINGLE
    return (
        f"transformers_weights is {value!r}: transformers loads that file, and not {SINGLE} or {INDEX}",
        f"if its weights are meant, remove other {SINGLE} and {INDEX}, rename {value} to {name} and "
        "remove the key; if not, remove the key",
    )


def explain_contradictions(raw: Mapping[str, Any], names: Collection[str]) -> list[tuple[str, str]]:
    """Return how a parsed ``config.json`` names another class or other weights, and how to fix it.

    Args:
        names: of the model's files.
    """
    other_class = explain_other_class(read_architecture(raw), raw.get("model_type"))
    contradictions = (explain_other_weights(raw, names), other_class)
    return [contradiction for contradiction in contradictions if contradiction is not None]


def advise_other_converter(architecture: str, then: str = "") -> str:
    """Return what to do with a model whose architecture a converter does not take."""
    converters = load_table("converters")
    if others := [k for k, v in converters["converters"].items() if architecture in v["architectures"]]:
        return f"--converter {' or '.join(others)}{then}"
    reason = converters["refused"].get(architecture)
    return LLMAPI_FIX + (f": {reason}" if reason else "")


def note_unread_keys(raw: Mapping[str, Any], read: Collection[str]) -> list[str]:
    """Return a note about the keys of a ``config.json`` that enginix ignores."""
    configuration = load_table("architectures")["configuration"]
    known = {*read, *configuration["harmless"], *configuration["changes"]}
    unread = sorted(key for key in raw if key not in known and key.isprintable())
    return [f"config.json's {', '.join(unread)}: ignored by enginix"] if unread else []


def make_unimplemented_error(key: str, value: Any, name: str, where: str) -> ModelError:
    """Return the error of a key that changes the function and that a class does not read."""
    if key in load_table("architectures")["configuration"]["everyClass"]:
        return ModelError(
            f"{key} is {value!r}: transformers reads it for every class, and a TensorRT-LLM "
            f"checkpoint of {name} cannot express it",
            where=where,
            fix="remove it if the model was trained without it; if not, no engine computes it: "
            "serve it with transformers",
        )
    return ModelError(
        f"{key} is {value!r}, which the model code of {name} does not implement",
        where=where,
        fix="remove it if the model was trained without it; if not, "
        "its architectures or model_type are wrong: serve it with the llmapi kind",
    )
