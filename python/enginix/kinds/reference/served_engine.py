"""Properties of a served engine that a repository needs: limits, end tokens, tokenizer."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginix import manifest
from enginix.errors import RepositoryError
from enginix.manifest import Manifest
from enginix.model.context_length import read_checkpoint_context
from enginix.model.end_tokens import END_TOKENS_KEY, read_end_tokens
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

    @property
    def tokenizer(self) -> Path:
        """Return the directory of the tokenizer."""
        return self.directory / "tokenizer"


def read_reference_engine(directory: Path) -> ServedEngine:
    """Read an engine's manifest, limits and tokenizer settings.

    Raises:
        ManifestError: the directory is not an engine.
        RepositoryError: the engine's checkpoint or tokenizer is missing.
    """
    directory = Path(os.path.abspath(directory))
    engine_manifest = manifest.read_manifest(directory, "engine")
    load_tokenizer(directory / "tokenizer")
    checkpoint = _read_json_object(directory / "checkpoint" / "config.json")
    limits = engine_manifest.options.get("limits")
    limits = limits if isinstance(limits, dict) else {}
    return ServedEngine(
        directory=directory,
        manifest=engine_manifest,
        executed=directory / "checkpoint",
        max_batch_size=_read_limit(limits, "max_batch_size"),
        max_seq_len=_read_limit(limits, "max_seq_len") or read_checkpoint_context(checkpoint) or 0,
        end_ids=read_engine_end_ids(engine_manifest, directory / "tokenizer"),
    )


def read_engine_end_ids(engine_manifest: Manifest, tokenizer: Path) -> tuple[int, ...]:
    """Return the end tokens that the engine was built with, by its manifest."""
    ends, where = engine_manifest.model.get(END_TOKENS_KEY), str(tokenizer.parent / "enginix.json")
    if not isinstance(ends, list) or any(isinstance(e, bool) or not isinstance(e, int) for e in ends):
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


def _read_json_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as e:
        raise RepositoryError("missing", where=str(path), fix="build the engine again: enginix build") from e
    except (OSError, ValueError, RecursionError) as e:
        raise RepositoryError(f"unreadable: {e}", where=str(path), fix="build the engine again") from e
    if not isinstance(content, dict):
        raise RepositoryError("not a JSON object", where=str(path), fix="build the engine again")
    return content


def _read_limit(limits: dict[str, Any], key: str) -> int | None:
    value = limits.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
