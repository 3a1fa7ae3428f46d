"""The tokens that end an answer; the engine's manifest carries them to repository and server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginix.errors import ModelError
from enginix.model.jsonfile import read_object

if TYPE_CHECKING:
    from enginix.manifest import Manifest

# Read in this order, as transformers' generate does; the first that names an end token counts. (If
# generation_config.json exists without one, transformers has no end token; enginix then reads config.json.)
END_TOKEN_FILES = ("generation_config.json", "config.json")
END_TOKENS_KEY = "endTokens"


def read_end_tokens(model: Path) -> tuple[int, ...]:
    """Return ``eos_token_id`` of a model directory, the default first; empty if no file names one.

    Raises:
        ModelError: a file is unreadable, or its ``eos_token_id`` has values that are not token ids.
    """
    for name in END_TOKEN_FILES:
        if not (model / name).is_file():
            continue
        raw = read_object(model / name)
        text = raw.get("text_config")
        value = raw.get("eos_token_id")
        if value is None and isinstance(text, dict):
            value = text.get("eos_token_id")
        if ids := _parse_token_ids(value, str(model / name)):
            return ids
    return ()


def read_manifest_end_tokens(engine_manifest: Manifest) -> tuple[int, ...] | None:
    """Return the end tokens of an engine's manifest; None where it names none, or no token ids.

    Raises:
        ModelError: values that are not token ids.
    """
    value = engine_manifest.model.get(END_TOKENS_KEY)
    return None if value is None else _parse_token_ids(value, "the engine's manifest")


def _parse_token_ids(value: Any, where: str) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < 2**31:
            raise ModelError(
                f"eos_token_id: {token!r} is not a token id", where=where, fix="correct eos_token_id there"
            )
    return tuple(dict.fromkeys(ids))
