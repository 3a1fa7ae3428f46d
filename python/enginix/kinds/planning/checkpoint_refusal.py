"""Why a model's config.json cannot become the checkpoint of a kind, or one that the kind computes."""

from __future__ import annotations

from pathlib import Path

from enginix.checkpoint.describe import describe_checkpoint_config
from enginix.checkpoint.mapping import CheckpointMapping
from enginix.errors import EnginixError, ModelError
from enginix.kinds.registry.engine_kind import EngineKind
from enginix.model import ModelConfig
from enginix.model.config import read_model_config
from enginix.model.config_rules import explain_other_class
from enginix.reference.config import parse_executor_config


def describe_refusal(subject: str, refusal: EnginixError) -> str:
    """Return an error as one reason: what, and its fix."""
    return f"{subject}: {refusal.what}" + (f" (fix: {refusal.fix})" if refusal.fix else "")


def explain_kind_refusal(kind: EngineKind, model: ModelConfig) -> str | None:
    """Return why a kind does not compute the checkpoint of a model; None where nothing tells against it."""
    if kind.converted_as != "reference":
        return None
    try:
        # What the executor refuses is the model's, whatever the dtype.
        parse_executor_config(
            describe_checkpoint_config(model, "float16", CheckpointMapping(), {}), "config.json"
        )
    except EnginixError as e:
        return describe_refusal(f"no engine of kind {kind.name}", e)
    return None


def explain_config_refusal(kind: EngineKind, directory: Path) -> str | None:
    """Return why config.json rules out a kind that is built from a checkpoint; None if nothing does."""
    try:
        model = read_model_config(directory)
    except EnginixError as e:
        return describe_refusal("no checkpoint", e)
    return explain_kind_refusal(kind, model)


LOCK_LACKS_VALUES = (
    "by the lock alone, which does not have every value of config.json: conversion may still refuse one"
)


def explain_lock_refusal(kind: EngineKind, architecture: str | None, model_type: str | None) -> str | None:
    """Return why a lock's facts rule out a kind that is built from a checkpoint; None if nothing does."""
    other = explain_other_class(architecture, model_type)
    if other is None or kind.built_from != "checkpoint":
        return None
    return describe_refusal("no checkpoint", ModelError(other[0], fix=other[1]))
