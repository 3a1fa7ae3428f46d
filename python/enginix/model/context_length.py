"""How many tokens a model's positions reach: ``max_position_embeddings``, as its rope scaling extends it.

Sources: TensorRT-LLM 1.2 (builder.py, ``_init_max_seq_len``; PyTorch backend, ``infer_max_seq_len``), and
transformers 5.14.1 (``_compute_yarn_parameters``), whose yarn extends ``original_max_position_embeddings``
where it is given: ``max_position_embeddings`` is then the extended length already, or still the original.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from enginix.errors import ModelError
from enginix.model.class_defaults import fill_absent_sizes
from enginix.model.family_rows import evaluate_expression, list_family_rows, read_model_values
from enginix.model.jsonfile import read_architecture
from enginix.tables import load_table

# A lock's key, where this context differs from the model's.
PYTORCH_CONTEXT_KEY = "pytorchContext"

_POSITIONS = "max_position_embeddings"
_ORIGINAL = "original_max_position_embeddings"


def _read_positive(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number and 0 < value < 1 << 53 else None


def find_rotary_factor(scaling: Mapping[str, Any] | None) -> float:
    """Return what ``trtllm-build`` multiplies ``max_position_embeddings`` by, for its default max_seq_len."""
    parameters = scaling or {}
    if parameters.get("type", parameters.get("rope_type")) in ("su", "longrope", "llama3"):
        return 1
    return _read_positive(parameters.get("factor")) or 1


def scale_context(positions: int, scaling: Mapping[str, Any] | None, original: float | None = None) -> int:
    """Return the tokens of a model's context.

    Args:
        positions: ``max_position_embeddings``.
        scaling: rope parameters with their type; None without scaling.
        original: positions that yarn extends; None for those of ``scaling``, else ``positions``.
    """
    parameters = scaling or {}
    kind = parameters.get("rope_type", parameters.get("type"))
    if kind not in load_table("architectures")["rope"]["extending"]["types"]:
        return positions
    start: float = positions
    if kind == "yarn":
        start = original or _read_positive(parameters.get(_ORIGINAL)) or positions
    extended = math.ceil(start * find_rotary_factor(parameters))
    # Yarn without a factor, or of a model that goes on behind its extended length.
    return max(positions, extended) if kind == "yarn" else extended


def _read_positions(config: Mapping[str, Any]) -> int | None:
    if (row := list_family_rows().get(read_architecture(config) or "")) is not None:
        try:
            rule = row["sizes"][_POSITIONS]
            stated_positions = [evaluate_expression(rule, read_model_values(config, row), "")]
        except ModelError:
            return None
    else:
        config = fill_absent_sizes(config)
        stated_positions = [config.get(key) for key in (_POSITIONS, "n_positions", "seq_length")]
    return next((value for value in stated_positions if type(value) is int and 0 < value < 1 << 53), None)


def _find_extending(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the rope parameters of a configuration if its ``max_position_embeddings`` is without them."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters")
    if not isinstance(scaling, dict) or not isinstance(scaling.get("rope_type", scaling.get("type")), str):
        return None
    # Phi-3's first releases call longrope yarn (enginix.model.rope).
    extended = load_table("architectures")["rope"]["extending"]["notModelTypes"]
    return None if config.get("model_type") in extended else scaling


def read_model_context(config: Mapping[str, Any]) -> int | None:
    """Return the tokens of a parsed Hugging Face configuration's context; None where it does not say them.

    Args:
        config: of the language model: some models keep it one level down.
    """
    positions, scaling = _read_positions(config), _find_extending(config)
    return positions and scale_context(positions, scaling, _read_positive(config.get(_ORIGINAL)))


def read_pytorch_context(config: Mapping[str, Any]) -> int | None:
    """Return the context that TensorRT-LLM's PyTorch backend clips sequences to; None where it is not said.

    It takes yarn's ``max_position_embeddings`` to be the extended length.

    Args:
        config: as of :func:`read_model_context`.
    """
    scaling = _find_extending(config) or {}
    if scaling.get("rope_type", scaling.get("type")) == "yarn":
        return _read_positions(config)
    return read_model_context(config)


def explain_pytorch_context(clipped: int, context: int) -> str:
    """Return why the PyTorch backend takes fewer tokens than the model, and how it takes them all."""
    return (
        f"the PyTorch backend clips sequences of yarn models to {_POSITIONS}, {clipped}: for {context} "
        f'tokens write "{_POSITIONS}": {context} into config.json, and into its rope parameters '
        f'"{_ORIGINAL}": {clipped} if they have none'
    )


def read_checkpoint_context(config: Mapping[str, Any]) -> int | None:
    """Return the context of a TensorRT-LLM checkpoint's parsed ``config.json``; None where it is not said."""
    positions, scaling = _read_positions(config), config.get("rotary_scaling")
    if positions is None or not isinstance(scaling, dict):
        return positions
    loader = load_table("architectures")["rope"]["types"]["yarn"]["loader"]
    return scale_context(positions, {_ORIGINAL: loader[_ORIGINAL], **scaling})
