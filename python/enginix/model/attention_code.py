"""Choose which of transformers' ways to compute attention is right for a model."""

from __future__ import annotations

from typing import Any


def choose_attention_code(config: Any) -> str | None:
    """Return ``attn_implementation`` for a transformers configuration; None for transformers' default.

    Its default, SDPA, leaves the soft-capping of attention scores out (Gemma 2) without a word.
    """
    capping = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    return None if capping is None else "eager"
