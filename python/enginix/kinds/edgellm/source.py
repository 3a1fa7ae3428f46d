"""Read a model to export, and refuse what cannot be exported.

Every refusal comes before the exporter, which takes seconds to start and minutes to run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginix.errors import ModelError
from enginix.kinds.edgellm.expected_tensors import (
    HEAD,
    TABLE,
    list_model_tensors,
    require_float16_values,
    require_model_tensors,
)
from enginix.kinds.edgellm.tokenizer_texts import ModelTexts, read_model_texts
from enginix.kinds.edgellm.unsupported_models import note_head_size, parse_export_config
from enginix.model import ModelConfig, ModelWeights, open_weights
from enginix.model.end_tokens import list_named_end_tokens
from enginix.model.jsonfile import read_object
from enginix.model.number_formats import read_algorithms, read_edgellm_formats
from enginix.model.quantization import canonical_algorithm, find_contradiction, find_exclusion_contradiction

SIDECAR = "hf_quant_config.json"


@dataclass(frozen=True)
class ModelFacts:
    """What files of an export or an engine say of a model.

    Attributes:
        model: its configuration, as transformers means it.
        kv_cache: ``FP8`` or None.
        end_tokens: union of config.json and generation_config.json.
    """

    model: ModelConfig
    kv_cache: str | None
    end_tokens: tuple[int, ...]


@dataclass(frozen=True)
class ExportSource(ModelFacts):
    """A model to export.

    Attributes:
        quantization: ``quant_algo`` of hf_quant_config.json, a key of edgellm.json's formats; None without.
        texts: chat template and tokens that end an answer.
    """

    directory: Path
    weights: ModelWeights
    quantization: str | None
    texts: ModelTexts

    @property
    def notes(self) -> list[str]:
        """What is unusual, and no reason to refuse."""
        size = note_head_size(self.model)
        return [*self.texts.notes, *([size] if size else [])]


def _read_export_quantization(model: Path, config: ModelConfig) -> tuple[str | None, str | None]:
    path = model / SIDECAR
    if not path.exists():
        _refuse_inline_quantization(config.raw, model)
        return None, None
    sidecar, inline = read_object(path), config.raw.get("quantization_config")
    section = sidecar.get("quantization")
    if not isinstance(section, dict):
        raise ModelError("no section quantization", where=path, fix="quantize the model again")
    algorithm, kv = section.get("quant_algo"), section.get("kv_cache_quant_algo")
    # In whatever case, as conversion and locks read it.
    algorithm = canonical_algorithm(algorithm) if isinstance(algorithm, str) else algorithm
    algorithm = None if algorithm == "NO_QUANT" else algorithm
    kv = kv.upper() if isinstance(kv, str) else kv
    formats = read_edgellm_formats()
    if algorithm is not None and algorithm not in formats:
        raise ModelError(
            f"format {algorithm!r} is not supported for TensorRT Edge-LLM export",
            where=path,
            fix=f"quantize with ModelOpt to one of: {', '.join(formats)}",
        )
    if kv not in (None, "FP8"):
        raise ModelError(f"KV cache format {kv!r}", where=path, fix="quantize the KV cache to FP8, or not")
    if refusal := find_kv_cache_refusal(algorithm, kv):
        raise ModelError(refusal[0], where=path, fix=refusal[1])
    if isinstance(inline, dict):
        matrices = [name for name, shape in list_model_tensors(config).items() if len(shape) == 2]
        modules = [name.removesuffix(".weight") for name in sorted({*matrices, HEAD} - {TABLE})]
        contradiction = find_contradiction(sidecar, inline) or find_exclusion_contradiction(
            sidecar, inline, modules
        )
        if contradiction:
            raise ModelError(contradiction[0], where=path, fix=contradiction[1])
    return algorithm, kv


def read_model_facts(model: Path) -> ModelFacts:
    """Read a model's configuration and texts without its weights.

    Raises:
        ModelError: the files are damaged, or an export cannot express them.
    """
    raw = read_object(model / "config.json")
    config = parse_export_config(raw, model)
    return ModelFacts(config, _read_export_quantization(model, config)[1], list_named_end_tokens(model))


def find_kv_cache_refusal(algorithm: str | None, kv_cache: str | None) -> tuple[str, str] | None:
    """Return why an export has no such KV cache beside a format, and what to do; None if it has.

    Args:
        algorithm: a row of number_formats.json.
        kv_cache: ``FP8`` or None.
    """
    row = read_algorithms().get(algorithm or "", {}).get("edgellm")
    if kv_cache is None or not row or row["kvCache"]:
        return None
    return (
        f"NVIDIA's exporter ignores the {kv_cache} KV cache of a model in {algorithm}",
        "quantize again without --kv-cache (mkQuantized: without kvCache)",
    )


def _refuse_inline_quantization(config: Mapping[str, Any], model: Path) -> None:
    inline = config.get("quantization_config")
    if not inline:
        return
    method = inline.get("quant_method") if isinstance(inline, dict) else None
    fix = (
        "take the model that it was made from, and quantize that: enginix quantize, or mkQuantized; formats: "
        + ", ".join(read_edgellm_formats())
    )
    if method == "modelopt":
        raise ModelError(
            f"quantized by ModelOpt, and {SIDECAR} is missing",
            where=model / "config.json",
            fix=f"fetch {SIDECAR}",
        )
    bits = inline.get("bits") if isinstance(inline, dict) else None
    raise ModelError(
        f"quantized by {method or 'an unnamed method'}{f' to {bits} bits' if bits else ''}, and exports are "
        "checked for models that NVIDIA ModelOpt quantized alone",
        where=model / "config.json",
        fix=fix,
    )


def _require_kv_scales(weights: ModelWeights, layers: int) -> None:
    """Refuse an FP8 KV cache without scales, which is what the exporter knows it by."""
    for index in range(layers):
        for part in ("k", "v"):
            name = f"model.layers.{index}.self_attn.{part}_proj.{part}_scale"
            if name not in weights.tensors:
                raise ModelError(
                    f"{SIDECAR} says an FP8 KV cache, and {name} is missing",
                    where=weights.directory,
                    fix="quantize the model again",
                )


def _require_model_directory(model: Path) -> None:
    if not model.is_dir():
        raise ModelError("no such directory", where=model, fix="pass a model's directory")
    if not (model / "config.json").is_file() and (model / "adapter_config.json").is_file():
        raise ModelError(
            "a LoRA adapter, not a model",
            where=model,
            fix="merge it into its base model (PEFT: merge_and_unload), and export that",
        )


def read_export_source(model: Path) -> ExportSource:
    """Read a model directory.

    Raises:
        ModelError: the model is incomplete or damaged, or an export cannot express it.
    """
    _require_model_directory(model)
    raw = read_object(model / "config.json")
    config = parse_export_config(raw, model)
    quantization, kv_cache = _read_export_quantization(model, config)
    texts = read_model_texts(model, raw, config.vocab_size)
    weights = open_weights(model)
    require_model_tensors(weights, config, quantized=(model / SIDECAR).exists())
    if kv_cache is not None:
        _require_kv_scales(weights, config.num_layers)
    require_float16_values(weights)
    return ExportSource(config, kv_cache, texts.end_tokens, model, weights, quantization, texts)
