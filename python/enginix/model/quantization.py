"""A model's own description of its quantization: ``hf_quant_config.json``, or ``quantization_config``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from enginix.errors import ModelError
from enginix.model.jsonfile import read_object
from enginix.model.number_formats import describe_remedy, read_algorithms
from enginix.tables import load_table

SIDECAR = "hf_quant_config.json"


@dataclass(frozen=True)
class ModelQuantization:
    """A model's quantization, in TensorRT-LLM's words and the model's module names.

    Attributes:
        algorithm: name in number_formats.json, for instance ``FP8`` or ``MIXED_PRECISION``.
        kv_cache: ``FP8`` or None.
        group_size: elements that share a scale, where the format has groups.
        exclude: patterns (fnmatch) of modules that stay unquantized.
        layers: for ``MIXED_PRECISION``: module → algorithm.
    """

    algorithm: str
    kv_cache: str | None = None
    group_size: int | None = None
    exclude: tuple[str, ...] = ()
    layers: Mapping[str, str] = field(default_factory=dict)

    def excludes(self, module: str) -> bool:
        """Return whether a name or pattern of ``exclude`` matches ``module`` or one of its parents."""
        return any(fnmatchcase(module, p) or module.startswith(p + ".") for p in self.exclude)


def canonical_algorithm(name: str) -> str:
    """Return TensorRT-LLM's name of an algorithm in whatever case or alias; upper case for an unknown one."""
    for known, row in read_algorithms().items():
        if name.upper() in (known, *(alias.upper() for alias in row["aliases"])):
            return str(known)
    return name.upper()


def _require_algorithm(name: Any, where: str) -> str:
    rows = read_algorithms()
    known = canonical_algorithm(name) if isinstance(name, str) else None
    if known is not None and known in rows:
        row = rows[known]
        if not row["convert"]:
            raise ModelError(
                f"quantization {known} cannot become a TensorRT-LLM checkpoint: {row['why']}",
                where=where,
                fix=describe_remedy(row),
            )
        return known
    usable = ", ".join(k for k, row in rows.items() if row["convert"])
    raise ModelError(
        f"quantization algorithm {name!r} is unknown",
        where=where,
        fix=f"quantize with ModelOpt to one of: {usable}; or serve this one with the llmapi kind",
    )


def _parse_kv_cache(name: Any, where: str) -> str | None:
    if name is None:
        return None
    if isinstance(name, str) and name.upper() == "FP8":
        return "FP8"
    raise ModelError(
        f"KV cache quantization {name!r} has no place in a checkpoint from a Hugging Face model",
        where=where,
        fix="quantize the KV cache to FP8, or not at all",
    )


def _parse_strings(value: Any, what: str, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise ModelError(f"{what} is not a list of names", where=where, fix="export the model again")
    return tuple(value)


def _parse_group_size(value: Any, where: str) -> int | None:
    if value is None or (type(value) is int and value > 0):
        return value
    raise ModelError(f"group_size is {value!r}", where=where, fix="export the model again")


def _parse_layers(raw: Any, where: str) -> dict[str, str]:
    if not isinstance(raw, dict) or not all(isinstance(v, dict) for v in raw.values()):
        raise ModelError(
            "MIXED_PRECISION without quantized_layers", where=where, fix="export the model again"
        )
    return {
        name: _require_algorithm(entry.get("quant_algo"), f"{where}: {name}") for name, entry in raw.items()
    }


def _parse_sidecar(raw: Mapping[str, Any], where: str) -> ModelQuantization | None:
    entry = raw.get("quantization")
    if not isinstance(entry, dict):
        raise ModelError("no quantization object", where=where, fix="export the model again with ModelOpt")
    kv_cache = _parse_kv_cache(entry.get("kv_cache_quant_algo"), where)
    if entry.get("quant_algo") in (None, "NO_QUANT"):
        return ModelQuantization("NO_QUANT", kv_cache) if kv_cache else None
    algorithm = _require_algorithm(entry["quant_algo"], where)
    layers = _parse_layers(entry.get("quantized_layers"), where) if algorithm == "MIXED_PRECISION" else {}
    sizes = {e.get("group_size") for e in (entry.get("quantized_layers") or {}).values()} if layers else set()
    group_size = entry.get("group_size", next(iter(sizes - {None}), None))
    return ModelQuantization(
        algorithm,
        kv_cache,
        _parse_group_size(group_size, where),
        _parse_strings(entry.get("exclude_modules"), "exclude_modules", where),
        layers,
    )


def read_inline_kv_cache(entry: Mapping[str, Any]) -> Any:
    """Return the KV cache's format in config.json's ``quantization_config``; None if it names none."""
    scheme = entry.get("kv_cache_scheme")
    kv_cache = entry.get("kv_cache_quant_algo")
    if kv_cache is None and isinstance(scheme, str):
        return scheme
    if kv_cache is None and isinstance(scheme, dict):
        bits, kind = scheme.get("num_bits"), str(scheme.get("type"))
        return {"8float": "FP8", "8int": "INT8"}.get(f"{bits}{kind}", f"{bits}-bit {kind}")
    return kv_cache


def find_quantization_method(entry: Mapping[str, Any]) -> Any:
    """Return ``quant_method`` of config.json's ``quantization_config``; releases of ModelOpt left it out."""
    method, producer = entry.get("quant_method"), entry.get("producer")
    is_modelopt = isinstance(producer, dict) and producer.get("name") == "modelopt"
    method = method.lower() if isinstance(method, str) else method
    return "modelopt" if method is None and is_modelopt and entry.get("quant_algo") else method


def _parse_inline(entry: Mapping[str, Any], where: str) -> ModelQuantization | None:
    """Parse config.json's ``quantization_config``, of which only ModelOpt's own kind can be converted."""
    method = find_quantization_method(entry)
    if method != "modelopt":
        name = f"{method}-block" if method == "fp8" and entry.get("weight_block_size") else method
        rows = load_table("number_formats")["methods"]
        row = rows.get(name, rows["*"])
        raise ModelError(
            f"quantization method {method!r} cannot become a TensorRT-LLM checkpoint: {row['why']}",
            where=where,
            fix=row["instead"],
        )
    stated = {"kv_cache_quant_algo": read_inline_kv_cache(entry), "exclude_modules": _find_excluded(entry)}
    return _parse_sidecar({"quantization": {**entry, **stated}}, where)


def _find_excluded(entry: Mapping[str, Any]) -> Any:
    """Return the unquantized modules that config.json's ``quantization_config`` names."""
    excluded = entry.get("exclude_modules")
    return entry.get("ignore") if excluded is None else excluded


def find_contradiction(sidecar: Mapping[str, Any], inline: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return how ModelOpt's file and config.json's ``quantization_config`` differ, and how to fix it."""
    entry = sidecar.get("quantization")
    entry = entry if isinstance(entry, dict) else {}
    inline_algorithm, algorithm = inline.get("quant_algo"), entry.get("quant_algo")
    names = [
        canonical_algorithm(n) if isinstance(n, str) else "NO_QUANT" for n in (algorithm, inline_algorithm)
    ]
    if isinstance(inline_algorithm, str) and names[0] != names[1]:
        return (
            f"its quant_algo is {algorithm}, and {inline_algorithm} in config.json's quantization_config",
            "make both match the weights, or export the model again with ModelOpt",
        )
    inline_format, sidecar_format = read_inline_kv_cache(inline), entry.get("kv_cache_quant_algo")
    if isinstance(inline_format, str) and inline_format.upper() != str(sidecar_format or "").upper():
        return (
            f"its KV cache is {sidecar_format or 'not quantized'}, "
            f"and {inline_format} in config.json's quantization_config",
            "make both match the weights: an FP8 KV cache has k_scale and v_scale",
        )
    return None


def find_exclusion_contradiction(
    sidecar: Mapping[str, Any], inline: Mapping[str, Any], modules: Iterable[str]
) -> tuple[str, str] | None:
    """Return how the two descriptions differ about unquantized modules, and how to fix it.

    Args:
        modules: the model's matrices; patterns that say the same of all of them do not differ.
    """
    entry = sidecar.get("quantization")
    stated = [
        entry.get("exclude_modules") if isinstance(entry, dict) else None,
        _find_excluded(inline),
    ]
    if not all(isinstance(patterns, list) for patterns in stated):
        return None
    listed, ignored = (ModelQuantization("", exclude=tuple(map(str, p or ()))) for p in stated)
    for module in modules:
        if listed.excludes(module) != ignored.excludes(module):
            names = (SIDECAR, "config.json's quantization_config")
            one, other = names if listed.excludes(module) else names[::-1]
            return (
                f"{module} is unquantized by {one}, and quantized by {other}",
                "make both match the weights, or export the model again with ModelOpt",
            )
    return None


def read_quantization(directory: Path, config: Mapping[str, Any]) -> ModelQuantization | None:
    """Return the quantization of a model directory; None for an unquantized model.

    Raises:
        ModelError: an algorithm or method that cannot be converted (named, with what to use instead), or a
            description that contradicts itself.
    """
    inline = config.get("quantization_config")
    if inline is not None and not isinstance(inline, dict):
        raise ModelError(
            "quantization_config is not an object", where=directory / "config.json", fix="export again"
        )
    if (directory / SIDECAR).exists():
        quantization = _parse_sidecar(read_object(directory / SIDECAR), str(directory / SIDECAR))
        if contradiction := find_contradiction(read_object(directory / SIDECAR), inline or {}):
            raise ModelError(contradiction[0], where=directory / SIDECAR, fix=contradiction[1])
        return quantization
    return _parse_inline(inline, str(directory / "config.json")) if inline else None
