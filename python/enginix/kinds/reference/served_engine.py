"""Properties of a served engine that a repository needs: limits, end tokens, tokenizer."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginix import manifest
from enginix.errors import RepositoryError
from enginix.files import read_json_object
from enginix.manifest import Manifest
from enginix.model.context_length import read_checkpoint_context
from enginix.model.end_tokens import END_TOKENS_KEY, read_end_tokens
from enginix.model.jsonfile import positive_or_none
from enginix.triton.models.detokenizer import load_tokenizer


@dataclass(frozen=True)
class ServedEngine:
    """Properties of an engine that enginix' own models serve.

    Attributes:
        executed: directory that the executor loads.
        max_batch_size: the engine's limit; ``None`` without a limit.
        max_seq_len: prompt and answer together, tokens; 0 is unknown.
        end_ids: end tokens of a text, the default first.
    """

    directory: Path
    manifest: Manifest
    executed: Path
    max_batch_size: int | None
    max_seq_len: int
    end_ids: tuple[int, ...]


def read_reference_engine(directory: Path) -> ServedEngine:
    """Read an engine's manifest, limits and tokenizer settings.

    Raises:
        ManifestError: the directory is not an engine.
        RepositoryError: the engine's checkpoint or tokenizer is missing.
    """
    directory = Path(os.path.abspath(directory))
    engine_manifest = manifest.read_manifest(directory, "engine")
    load_tokenizer(directory / "tokenizer")
    checkpoint = _read_checkpoint_config(directory / "checkpoint" / "config.json")
    limits = engine_manifest.options.get("limits")
    limits = limits if isinstance(limits, dict) else {}
    return ServedEngine(
        directory=directory,
        manifest=engine_manifest,
        executed=directory / "checkpoint",
        max_batch_size=positive_or_none(limits.get("max_batch_size")),
        max_seq_len=positive_or_none(limits.get("max_seq_len")) or read_checkpoint_context(checkpoint) or 0,
        end_ids=read_engine_end_ids(engine_manifest, directory / "tokenizer"),
    )


def read_engine_end_ids(engine_manifest: Manifest, tokenizer: Path) -> tuple[int, ...]:
    """Return the end tokens that the engine was built with, by its manifest."""
    ends, where = engine_manifest.model.get(END_TOKENS_KEY), str(tokenizer.parent / "enginix.json")
    if not isinstance(ends, list) or any(type(e) is not int for e in ends):
        raise RepositoryError(
            f"model.{END_TOKENS_KEY} is {ends!r}", where=where, fix="build the engine again"
        )
    beside = read_end_tokens(tokenizer)
    if beside and beside != tuple(ends):
        raise RepositoryError(
            f"model.{END_TOKENS_KEY} is {ends}, and generation_config.json beside the tokenizer says "
            f"{list(beside)}",
            where=where,
            fix="build the engine again",
        )
    return tuple(ends)


def _read_checkpoint_config(path: Path) -> dict[str, Any]:
    missing = RepositoryError("missing", where=str(path), fix="build the engine again: enginix build")
    return read_json_object(path, RepositoryError, "build the engine again", missing)
