"""What a repository needs to know of an engine of kind ``reference``: limits, ends of texts, tokenizer."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginix import manifest
from enginix.errors import RepositoryError
from enginix.manifest import Manifest
from enginix.triton.models.detokenizer import load_tokenizer


@dataclass(frozen=True)
class EngineFacts:
    """What a repository needs to know of an engine of kind ``reference``.

    Attributes:
        max_batch_size: the engine's limit; ``None`` where it has none.
        max_seq_len: prompt and answer together, tokens; 0 is unknown.
        end_ids: what ends a text, the default first.
    """

    directory: Path
    manifest: Manifest
    max_batch_size: int | None
    max_seq_len: int
    end_ids: tuple[int, ...]

    @property
    def tokenizer(self) -> Path:
        """Directory of the tokenizer."""
        return self.directory / "tokenizer"

    @property
    def checkpoint(self) -> Path:
        """Directory of the checkpoint."""
        return self.directory / "checkpoint"


def read_engine(directory: Path) -> EngineFacts:
    """Reads an engine's manifest, limits and tokenizer settings.

    Raises:
        ManifestError: not an engine.
        RepositoryError: its checkpoint or tokenizer is missing.
    """
    directory = Path(os.path.abspath(directory))
    found = manifest.read(directory, "engine")
    tokenizer = load_tokenizer(directory / "tokenizer")
    checkpoint = _json(directory / "checkpoint" / "config.json")
    limits = found.options.get("limits")
    limits = limits if isinstance(limits, dict) else {}
    return EngineFacts(
        directory=directory,
        manifest=found,
        max_batch_size=_limit(limits, "max_batch_size"),
        max_seq_len=_limit(limits, "max_seq_len") or _limit(checkpoint, "max_position_embeddings") or 0,
        end_ids=_end_ids(directory / "tokenizer", tokenizer),
    )


def _end_ids(directory: Path, tokenizer: Any) -> tuple[int, ...]:
    """Of generation_config.json, as transformers' generate, else the tokenizer's own."""
    generation = _json(directory / "generation_config.json", optional=True)
    settings = _json(directory / "tokenizer_config.json", optional=True)
    end = generation.get("eos_token_id")
    ends = [end] if isinstance(end, int) else end if isinstance(end, list) else []
    if not ends and (named := _named(settings.get("eos_token"), tokenizer)) is not None:
        ends = [named]
    vocabulary = tokenizer.get_vocab_size()
    for token in ends:
        if isinstance(token, bool) or not isinstance(token, int) or token < 0:
            raise RepositoryError(
                f"eos_token_id: {token!r} is not a token id (the tokenizer has {vocabulary})",
                where=str(directory / "generation_config.json"),
            )
    return tuple(ends)


def _named(token: Any, tokenizer: Any) -> int | None:
    content = token.get("content") if isinstance(token, dict) else token
    found = tokenizer.token_to_id(content) if isinstance(content, str) else None
    return None if found is None else int(found)


def _json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as e:
        if optional:
            return {}
        raise RepositoryError("missing", where=str(path), fix="build the engine again: enginix build") from e
    except (OSError, ValueError, RecursionError) as e:
        raise RepositoryError(f"unreadable: {e}", where=str(path), fix="build the engine again") from e
    if not isinstance(found, dict):
        raise RepositoryError("not a JSON object", where=str(path), fix="build the engine again")
    return found


def _limit(limits: dict[str, Any], key: str) -> int | None:
    value = limits.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
