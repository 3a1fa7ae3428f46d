"""Check a model by its headers and JSON files, before the exporter runs for minutes."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginix.errors import ModelError
from enginix.model import ModelWeights, open_weights
from enginix.model.jsonfile import read_object
from enginix.model.number_formats import read_edgellm_formats
from enginix.model.quantization import canonical_algorithm
from enginix.tables import load_table

_LAYER = re.compile(r"^(.*\blayers\.)(\d+)\.(.+)$")
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


@dataclass(frozen=True)
class ExportSource:
    """A model to export.

    Attributes:
        config: the parsed config.json.
        quantization: ``quant_algo`` of hf_quant_config.json, a key of edgellm.json's formats; None without.
        kv_cache: ``FP8`` or None.
        template: text of the chat template.
    """

    directory: Path
    config: Mapping[str, Any]
    weights: ModelWeights
    quantization: str | None
    kv_cache: str | None
    template: str

    @property
    def layers(self) -> int:
        return int(self.config["num_hidden_layers"])

    @property
    def tied(self) -> bool:
        return bool(self.config.get("tie_word_embeddings", False))


def _read_config(model: Path) -> dict[str, Any]:
    config = read_object(model / "config.json")
    where = str(model / "config.json")
    rows = load_table("edgellm")["architectures"]
    names = config.get("architectures")
    architecture = names[0] if isinstance(names, list) and names else None
    if architecture not in rows:
        raise ModelError(
            f"architecture {architecture!r} is not supported for TensorRT Edge-LLM export",
            where=where,
            fix=f"known: {', '.join(rows)}. The exporter itself accepts any name and answers with status 0",
        )
    model_type = rows[architecture]["modelType"]
    if config.get("model_type") != model_type:
        raise ModelError(
            f"model_type is {config.get('model_type')!r}, but {architecture} has {model_type!r}",
            where=where,
            fix="fetch the model again",
        )
    for key in _SIZES:
        value = config.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 31:
            raise ModelError(f"{key} is {value!r}, not a size", where=where, fix="fetch the model again")
    return config


def _read_export_quantization(model: Path, config: Mapping[str, Any]) -> tuple[str | None, str | None]:
    path = model / "hf_quant_config.json"
    if not path.exists():
        if config.get("quantization_config"):
            raise ModelError(
                "quantization_config without hf_quant_config.json",
                where=str(model / "config.json"),
                fix="export the quantized model with NVIDIA ModelOpt, whose checkpoints carry both",
            )
        return None, None
    section = read_object(path).get("quantization")
    if not isinstance(section, dict):
        raise ModelError("no section quantization", where=str(path), fix="quantize the model again")
    algorithm, kv = section.get("quant_algo"), section.get("kv_cache_quant_algo")
    # In whatever case, as conversion and locks read it.
    algorithm = canonical_algorithm(algorithm) if isinstance(algorithm, str) else algorithm
    algorithm = None if algorithm == "NO_QUANT" else algorithm
    kv = kv.upper() if isinstance(kv, str) else kv
    formats = read_edgellm_formats()
    if algorithm is not None and algorithm not in formats:
        raise ModelError(
            f"format {algorithm!r} is not supported for TensorRT Edge-LLM export",
            where=str(path),
            fix=f"quantize with ModelOpt to one of: {', '.join(formats)}",
        )
    if kv not in (None, "FP8"):
        raise ModelError(
            f"KV cache format {kv!r}", where=str(path), fix="quantize the KV cache to FP8, or not"
        )
    return algorithm, kv


def read_chat_template(model: Path) -> str:
    """Read the chat template; the exporter takes exactly one.

    Raises:
        ModelError: the model has no chat template, or several by name.
    """
    plain = model / "chat_template.jinja"
    try:
        template: Any = plain.read_text("utf-8") if plain.is_file() else None
    except (OSError, ValueError) as e:
        raise ModelError(f"unreadable: {e}", where=str(plain), fix="fetch the model again") from e
    for name in ("chat_template.json", "tokenizer_config.json"):
        if template is None and (model / name).is_file():
            template = read_object(model / name).get("chat_template")
    if isinstance(template, list):
        raise ModelError(
            "several chat templates by name, and TensorRT Edge-LLM takes one",
            where=str(model),
            fix="keep the one to serve as chat_template.jinja",
        )
    if not isinstance(template, str) or not template.strip():
        failure = load_table("edgellm")["failures"][0]
        raise ModelError(failure["what"], where=str(model), fix=failure["fix"])
    return template


def _require_all_tensors(weights: ModelWeights, config: Mapping[str, Any]) -> None:
    """Check that all layers have the same tensors, and that table, last norm and output layer exist."""
    layers: dict[int, set[str]] = defaultdict(set)
    prefix = "model.layers."
    for name in weights.tensors:
        match = _LAYER.match(name)
        if match:
            prefix = match[1]
            # Layers differ in scales if a format leaves some unquantized; the graph shows a missing scale.
            if not match[3].endswith("_scale") and not match[3].endswith("_scale_2"):
                layers[int(match[2])].add(match[3])
    where, fix = str(weights.directory), "fetch or quantize the model again"
    count = config["num_hidden_layers"]
    if sorted(layers) != list(range(count)):
        raise ModelError(
            f"config.json says {count} layers, the weights have {len(layers)}", where=where, fix=fix
        )
    every = set().union(*layers.values())
    for index in range(count):
        for part in sorted(every - layers[index]):
            raise ModelError(
                f"tensor {prefix}{index}.{part} is missing, other layers have it; the exporter would take its"
                " values from uninitialized memory and report success",
                where=where,
                fix=fix,
            )
    needed = ["model.embed_tokens.weight", "model.norm.weight"]
    if not config.get("tie_word_embeddings", False):
        needed.append("lm_head.weight")
    for name in needed:
        if name not in weights.tensors:
            raise ModelError(f"tensor {name} is missing", where=where, fix=fix)


def read_export_source(model: Path) -> ExportSource:
    """Read a model directory.

    Raises:
        ModelError: the model is incomplete, damaged, of another architecture or format, or lacks tokenizer
            or chat template.
    """
    if not model.is_dir():
        raise ModelError("no such directory", where=str(model), fix="pass a model's directory")
    config = _read_config(model)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if not (model / name).is_file():
            raise ModelError(f"no {name}", where=str(model), fix="fetch the whole model")
        read_object(model / name)
    quantization, kv_cache = _read_export_quantization(model, config)
    template = read_chat_template(model)
    weights = open_weights(model)
    _require_all_tensors(weights, config)
    return ExportSource(model, config, weights, quantization, kv_cache, template)
