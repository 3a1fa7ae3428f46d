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
    return next((ids for name in END_TOKEN_FILES if (ids := _read_file(model / name))), ())


def list_named_end_tokens(model: Path) -> tuple[int, ...]:
    """Return every ``eos_token_id`` that a file names, config.json's first, as Edge-LLM's exporter does.

    Raises:
        ModelError: as :func:`read_end_tokens`.
    """
    return tuple(
        dict.fromkeys(token for name in reversed(END_TOKEN_FILES) for token in _read_file(model / name))
    )


def _read_file(path: Path) -> tuple[int, ...]:
    if not path.is_file():
        return ()
    raw = read_object(path)
    text = raw.get("text_config")
    value = raw.get("eos_token_id")
    if value is None and isinstance(text, dict):
        value = text.get("eos_token_id")
    return _parse_token_ids(value, str(path))


def read_manifest_end_tokens(engine_manifest: Manifest) -> tuple[int, ...] | None:
    """Return the end tokens of an engine's manifest; None where it names none, or no token ids.

    Raises:
        ModelError: values that are not token ids.
    """
    value = engine_manifest.model.get(END_TOKENS_KEY)
    return None if value is None else _parse_token_ids(value, "the engine's manifest")


def _parse_token_ids(value: Any, where: str) -> tuple[int, ...]:
    """Return the ids of an ``eos_token_id``: one, a list, or none.

    Raises:
        ModelError: a value is not a token id.
    """
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for token in ids:
        if type(token) is not int or not 0 <= token < 2**31:
            raise ModelError(
                f"eos_token_id: {token!r} is not a token id", where=where, fix="correct eos_token_id there"
            )
    return tuple(dict.fromkeys(ids))
