"""Makes what an engine in its own runtime is asked, of the pinned material, by its model's tokenizer.

A step of its own, with no threshold in it: who changes one asks no engine again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from enginix.errors import GateError
from enginix.gates import hf
from enginix.gates import material as materials
from enginix.gates.answers import ANSWERED, CONTINUED, KEPT
from enginix.gates.asking import read_questions
from enginix.gates.material import Material
from enginix.gates.outside_asked import Asked, Text
from enginix.model.attention_window import read_context
from enginix.model.end_tokens import read_end_tokens
from enginix.tables import table

NEXT = 16  # most likely tokens kept of each generated position


def sizes(model: Path) -> tuple[int, int]:
    """``vocab_size`` of a Hugging Face model, and the tokens that it takes, its sliding window at most.

    Raises:
        GateError: its config.json does not say.
    """
    where = model / "config.json"
    try:
        config = json.loads(where.read_text("utf-8"))
        config = {**config, **(config.get("text_config") or {})}
        found = int(config["vocab_size"]), int(config["max_position_embeddings"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        raise GateError(
            f"vocabulary and context are not known: {type(e).__name__}: {e}",
            where=str(where),
            fix="pass the Hugging Face model that the engine was made of",
        ) from e
    if min(found) < 1:
        raise GateError(f"vocabulary {found[0]}, context {found[1]}", where=str(where))
    return found[0], read_context(model, found[1])


def material_of(model: Path, questions: Path | None = None) -> tuple[Material, hf.Tokenizer]:
    """The pinned material by a model's tokenizer, and that tokenizer.

    Raises:
        ModelError: no usable tokenizer.
        GateError: nothing to ask, or a tokenizer that is not the model's.
    """
    tokenizer = hf.Tokenizer(model)
    vocab_size, context = sizes(model)
    return materials.load(tokenizer, vocab_size, context, questions=read_questions(questions)), tokenizer


def ask(model: Path, questions: Path | None = None) -> Asked:
    """Everything that an engine of ``model`` is asked.

    Raises:
        ModelError, GateError: as :func:`material_of`.
    """
    return ask_of(model, *material_of(model, questions))


def ask_of(model: Path, material: Material, tokenizer: hf.Tokenizer) -> Asked:
    """The same of the material that :func:`material_of` gave."""
    plain: Any = tokenizer._tokenizer

    def text(of: str, tokens: Sequence[int]) -> Text:
        written = str(plain.decode(list(tokens), skip_special_tokens=False))
        whole = [int(t) for t in plain(written, add_special_tokens=False).input_ids] == list(tokens)
        return Text(of, tuple(tokens), written if whole else None)

    golden = table("gate_prompts")["golden"]
    return Asked(
        material.sha256,
        sizes(model)[0],
        read_end_tokens(model),
        next((n for n, p in enumerate(material.prompts) if p.id == golden), 0),
        tuple(text(p.id, p.tokens) for p in material.prompts),
        tuple(text(q.id, q.tokens) for q in material.questions),
        tuple(text(q.id, q.tokens) for q in material.recalls),
        tuple(text(p.id, p.tokens) for p in material.passages),
        CONTINUED,
        ANSWERED,
        KEPT,
        NEXT,
    )
