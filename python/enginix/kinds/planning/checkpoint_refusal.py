"""Why a model's config.json cannot become an engine of a kind, or the checkpoint of one."""

from __future__ import annotations

from pathlib import Path

from enginix.checkpoint.describe import describe_checkpoint_config
from enginix.checkpoint.mapping import CheckpointMapping
from enginix.errors import EnginixError, ModelError
from enginix.kinds.registry import find_kind, load_hook
from enginix.kinds.registry.engine_kind import EngineKind
from enginix.model import ModelConfig
from enginix.model.config import read_model_config
from enginix.model.config_rules import explain_other_class
from enginix.reference.config import parse_executor_config
from enginix.reference.quantization import REBUILD

OTHER_KIND_FIX = "use a kind that enginix compare MODEL lists"


def describe_refusal(subject: str, refusal: EnginixError) -> str:
    """Return an error as one reason: what, and its fix."""
    return f"{subject}: {refusal.what}" + (f" (fix: {refusal.fix})" if refusal.fix else "")


def find_kind_refusal(kind: EngineKind, model: ModelConfig) -> EnginixError | None:
    """Return the error with which a kind does not compute the checkpoint of a model."""
    if kind.converted_as != "reference":
        return None
    try:
        # What the executor refuses is the model's, whatever the dtype.
        parse_executor_config(
            describe_checkpoint_config(model, "float16", CheckpointMapping(), {}), "config.json"
        )
    except EnginixError as e:
        # There is no checkpoint yet that could be made again.
        return ModelError(e.what, where=e.where, fix=OTHER_KIND_FIX) if e.fix == REBUILD else e
    return None


def explain_kind_refusal(kind: EngineKind, model: ModelConfig) -> str | None:
    """Return why a kind does not compute the checkpoint of a model; None where nothing tells against it."""
    refusal = find_kind_refusal(kind, model)
    return None if refusal is None else describe_refusal(f"no engine of kind {kind.name}", refusal)


def find_checkpoint_refusal(
    name: str, directory: Path, variant: str | None = None, quantize: str | None = None
) -> ModelError | None:
    """Return why no engine of a kind can be built of a model, by the reasons of ``enginix plan``.

    Args:
        name: of the kind that a conversion is for.
        variant, quantize: options of the conversion.

    Raises:
        ModelError: no checkpoint can be made of the model, of no kind.
    """
    kind, model = find_kind(name), read_model_config(directory, variant=variant)
    algorithm = quantize or (None if model.quantization is None else model.quantization.algorithm)
    verdict = kind.judge_model(model.architecture, algorithm)
    if verdict.takes is False:
        return ModelError("; ".join(verdict.why), where=directory, fix=OTHER_KIND_FIX)
    refusal = find_kind_refusal(kind, model)
    if refusal is None:
        return None
    what = f"no engine of kind {kind.name}: {refusal.what}"
    return ModelError(what, where=directory, fix=refusal.fix or OTHER_KIND_FIX)


def require_kind_support(name: str, directory: Path, variant: str | None, quantize: str | None) -> None:
    """Refuse a model that a kind does not take, as :func:`find_checkpoint_refusal` finds it."""
    if refusal := find_checkpoint_refusal(name, directory, variant, quantize):
        raise refusal


def is_checked(kind: EngineKind) -> bool:
    """Tell whether a kind's build refuses by config.json: its conversion, or a check of its own."""
    return kind.built_from == "checkpoint" or kind.model_check is not None


def explain_config_refusal(kind: EngineKind, directory: Path) -> str | None:
    """Return why config.json rules out a kind that has a check of it; None if nothing does."""
    if kind.model_check is not None:
        try:
            load_hook(kind.model_check).read_model_facts(directory)
        except EnginixError as e:
            return describe_refusal(f"no engine of kind {kind.name}", e)
        return None
    try:
        model = read_model_config(directory)
    except EnginixError as e:
        return describe_refusal("no checkpoint", e)
    return explain_kind_refusal(kind, model)


LOCK_LACKS_VALUES = (
    "by the lock alone, which does not have every value of config.json: conversion may still refuse one"
)


def explain_lock_refusal(kind: EngineKind, architecture: str | None, model_type: str | None) -> str | None:
    """Return why a lock's facts rule out a kind that has a check of config.json; None if nothing does."""
    other = explain_other_class(architecture, model_type)
    if other is None or not is_checked(kind):
        return None
    subject = "no checkpoint" if kind.model_check is None else f"no engine of kind {kind.name}"
    return describe_refusal(subject, ModelError(other[0], fix=other[1]))
