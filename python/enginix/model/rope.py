"""Rotary position embedding: base, scaling and rotated fraction of all versions of a config.

transformers 4 keeps ``rope_theta``, ``rope_scaling`` (type under ``type`` or ``rope_type``) and
``partial_rotary_factor`` at the top; transformers 5 keeps all of it in ``rope_parameters``, which wins over
a ``rope_theta`` at the top and is itself replaced by a ``rope_scaling`` (modeling_rope_utils.py,
RotaryEmbeddingConfigMixin.convert_rope_params_to_dict, transformers 5.14.1).

A parameter that transformers reads is translated or refused, never dropped; one that it ignores is noted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from enginix.errors import ModelError
from enginix.model.model_errors import LLMAPI_FIX, make_unconvertible_error, make_value_error
from enginix.tables import load_table

_NOT_SCALING = ("rope_theta", "partial_rotary_factor", "type")
_ORIGINAL = "original_max_position_embeddings"


@dataclass(frozen=True)
class ModelRope:
    """Rotary embedding as the model defines it.

    Attributes:
        base: theta.
        type: ``default``, ``linear``, ``dynamic``, ``yarn``, ``llama3`` or ``longrope``.
        scaling: the scaling's own parameters with ``rope_type``; None where the type is ``default``.
        fraction: part of each head that is rotated (``partial_rotary_factor``), 0 < fraction ≤ 1.
        original: positions that yarn, llama3 and longrope were made for; None for the other types.
        magnitude: factor on cosine and sine (``attention_factor``); 1.0 except for yarn and longrope.
        notes: parameters that transformers ignores.
    """

    base: float
    type: str
    scaling: Mapping[str, Any] | None
    fraction: float
    original: float | None = None
    magnitude: float = 1.0
    notes: tuple[str, ...] = ()


def _require_number(value: Any, what: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e300:
        raise make_value_error(f"{what} is {value!r}, not a positive number", where)
    return float(value)


@dataclass(frozen=True)
class _RopeScaling:
    """The parameters of one scaling, with errors that name the key."""

    raw: Mapping[str, Any]
    kind: str
    positions: float
    where: str

    def number(self, key: str) -> float:
        return _require_number(self.raw.get(key), f"{self.kind} rope scaling's {key}", self.where)

    def optional(self, key: str) -> float | None:
        return None if self.raw.get(key) is None else self.number(key)

    def refuse(self, what: str, fix: str = "correct config.json") -> ModelError:
        return ModelError(f"{self.kind} rope scaling: {what}", where=self.where, fix=fix)

    def magnitude(self, original: float) -> float:
        """Return transformers' factor on cosine and sine (_compute_yarn_parameters and similar)."""
        stated = self.optional("attention_factor")
        if stated is not None:
            return stated
        factor = self.optional("factor") or self.positions / original
        if factor <= 1:
            return 1.0
        if self.kind == "longrope":
            if original <= 1:
                raise self.refuse(f"{_ORIGINAL} is {original:g}, and the formula divides by its logarithm")
            return math.sqrt(1 + math.log(factor) / math.log(original))
        one, every = self.raw.get("mscale"), self.raw.get("mscale_all_dim")
        if one and every:
            one, every = self.number("mscale"), self.number("mscale_all_dim")
            return (0.1 * one * math.log(factor) + 1) / (0.1 * every * math.log(factor) + 1)
        return 0.1 * math.log(factor) + 1

    def check(self, rotated: int, base: float) -> None:
        """Refuse invalid values."""
        if self.kind in ("linear", "dynamic", "llama3"):
            self.number("factor")
        if self.kind == "dynamic" and rotated < 4:
            raise self.refuse(
                f"heads of {rotated} rotated elements are too small for its formula", LLMAPI_FIX
            )
        if self.kind == "llama3" and self.number("high_freq_factor") <= self.number("low_freq_factor"):
            raise self.refuse("high_freq_factor is not above low_freq_factor")
        if self.kind == "yarn":
            for key in ("beta_fast", "beta_slow"):
                if self.raw.get(key):
                    self.number(key)
            if base <= 1:
                raise self.refuse(f"rope_theta is {base:g}, and the formula divides by its logarithm")
        for key in ("short_factor", "long_factor") if self.kind == "longrope" else ():
            values = self.raw.get(key)
            if not isinstance(values, list) or len(values) != rotated // 2:
                raise self.refuse(f"{key} is not a list of {rotated // 2} numbers")
            for value in values:
                _require_number(value, f"longrope's {key}", self.where)

    def refuse_inexpressible(self) -> None:
        """Refuse parameters that TensorRT-LLM's reader has no key for, or reads otherwise."""
        if self.kind == "dynamic" and self.raw.get("alpha", 1.0) != 1.0:
            raise self.refuse(
                f"alpha {self.raw['alpha']!r}: TensorRT-LLM computes with it, transformers without, in "
                "this architecture",
                "if the model was trained with it, multiply rope_theta by alpha^(d/(d-2)), where d is "
                "the rotated size of a head, and remove alpha; if not, only remove it",
            )
        if self.kind == "yarn" and not self.raw.get("truncate", True):
            raise self.refuse(
                "truncate is false, and TensorRT-LLM always rounds the range of the ramp", LLMAPI_FIX
            )


def _find_parameters(raw: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    parameters = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(parameters, dict):
        raise make_value_error("rope parameters are not an object", where)
    if parameters and all(isinstance(v, dict) for v in parameters.values()):
        raise ModelError(
            f"rope parameters differ by kind of layer ({', '.join(sorted(parameters))})",
            where=where,
            fix=f"this converter does not support that for any architecture; {LLMAPI_FIX}",
        )
    return parameters


def _read_scaling_type(
    parameters: Mapping[str, Any], raw: Mapping[str, Any], known: list[str], where: str
) -> str:
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if raw.get("model_type") == "phi3" and kind in ("su", "yarn"):
        kind = "longrope"  # names of the first Phi-3 releases; transformers renames them for Phi-3 alone
    types = load_table("architectures")["rope"]["types"]
    if kind == "default" or (isinstance(kind, str) and kind in types and kind in known):
        return str(kind)
    if isinstance(kind, str) and kind in types:
        raise make_unconvertible_error(
            f"TensorRT-LLM's class of this architecture does not support rope scaling {kind!r}", where
        )
    raise ModelError(f"rope scaling {kind!r} is unknown", where=where, fix=f"known: {', '.join(known)}")


def _find_value(
    key: str, parameters: Mapping[str, Any], raw: Mapping[str, Any], where: str, default: float | None = None
) -> Any:
    """Return a value that stands in the rope parameters, or beside them; refuse two that differ.

    The class's default beside them is no contradiction: transformers writes both.
    """
    inside, top = parameters.get(key), raw.get(key)
    if inside is not None and top not in (None, inside, default):
        raise ModelError(
            f"{key} is {inside} in the rope parameters and {top} beside them",
            where=where,
            fix="correct config.json: keep one of the two",
        )
    return top if inside is None else inside


def _read_fraction(
    parameters: Mapping[str, Any], raw: Mapping[str, Any], kind: str, partial: bool, where: str
) -> tuple[float, list[str]]:
    """Return the rotated part of a head, and notes about it."""
    value = _find_value("partial_rotary_factor", parameters, raw, where)
    if value is None:
        return 1.0, []
    if _require_number(value, "partial_rotary_factor", where) > 1:
        raise make_value_error(f"partial_rotary_factor {value} is above 1", where)
    if partial or value == 1:
        return float(value), []
    if kind != "default":
        raise ModelError(
            f"partial_rotary_factor is {value}, which the model code of this architecture does not implement",
            where=where,
            fix="remove it if the model was trained with whole heads rotated",
        )
    return 1.0, [
        f"partial_rotary_factor {value} is ignored, as transformers does in this architecture: "
        "whole heads are rotated"
    ]


def _note_ignored_keys(scaling: Mapping[str, Any], kind: str, where: str) -> list[str]:
    """Return notes about parameters that transformers ignores; refuse unknown ones."""
    types, notes = load_table("architectures")["rope"]["types"], []
    reads = types[kind]["reads"] if kind != "default" else []
    known = {key for row in types.values() for key in row["reads"]} | set(
        load_table("architectures")["rope"]["unread"]
    )
    for key in sorted(set(scaling) - set(reads) - {"rope_type"}):
        if kind != "default" and key not in known:
            raise ModelError(
                f"{kind} rope scaling has the unknown parameter {key} {scaling[key]!r}",
                where=where,
                fix="remove it if the model was trained without it",
            )
        if (kind, key) != ("dynamic", "alpha") and scaling[key] is not None:
            notes.append(f"{key} is ignored in {kind} rope parameters, as transformers does")
    return notes


def read_rope(
    raw: Mapping[str, Any], where: str, *, row: Mapping[str, Any], head_dim: int, checkpoint: bool = True
) -> ModelRope:
    """Read the rotary embedding of a parsed ``config.json``.

    Args:
        row: of architectures.json: the configuration class's defaults and the keys of the model code.
        checkpoint: refuse what a TensorRT-LLM checkpoint cannot express.

    Raises:
        ModelError: an unknown scaling type or parameter, parameters that are missing or not numbers, one that
            TensorRT-LLM cannot express, or one set per kind of layer (which no architecture here has).
    """
    parameters = _find_parameters(raw, where)
    default = row["defaults"]["rope_theta"]
    base = _find_value("rope_theta", parameters, raw, where, default)
    base = _require_number(default if base is None else base, "rope_theta", where)
    every_type = ["default", *load_table("architectures")["rope"]["types"]]
    kind = _read_scaling_type(parameters, raw, row["rope"]["types"] if checkpoint else every_type, where)
    fraction, notes = _read_fraction(parameters, raw, kind, row["rope"]["partial"], where)
    rotated = int(head_dim * fraction)
    if rotated % 2 or rotated == 0:
        raise make_value_error(
            f"heads of {head_dim} with partial_rotary_factor {fraction:g} rotate {rotated} elements, "
            "which is not an even number",
            where,
        )
    scaling = {k: v for k, v in parameters.items() if k not in _NOT_SCALING}
    notes += _note_ignored_keys(scaling, kind, where)
    if kind == "default":
        return ModelRope(base, kind, None, fraction, notes=tuple(notes))
    scaling["rope_type"] = kind
    positions = raw.get("max_position_embeddings")
    rope_scaling = _RopeScaling(
        scaling, kind, _require_number(positions, "max_position_embeddings", where), where
    )
    rope_scaling.check(rotated, base)
    if checkpoint:
        rope_scaling.refuse_inexpressible()
    if kind not in ("yarn", "llama3", "longrope"):
        return ModelRope(base, kind, scaling, fraction, notes=tuple(notes))
    # One at the top, the class's own default included, wins over the one inside (standardize_rope_params).
    inside = scaling.get(_ORIGINAL, positions)
    original = _require_number(raw.get(_ORIGINAL, row["defaults"].get(_ORIGINAL, inside)), _ORIGINAL, where)
    magnitude = 1.0 if kind == "llama3" else rope_scaling.magnitude(original)
    return ModelRope(base, kind, scaling, fraction, original, magnitude, tuple(notes))
