"""Build the questions to an engine in its own runtime, from the pinned material and its model's tokenizer.

This step depends on no threshold, so a changed threshold does not ask an engine again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from enginix.errors import GateError
from enginix.evaluation.engine_protocol.engine_questions import EngineQuestions, TokenizedText
from enginix.evaluation.reference_answers import hf
from enginix.evaluation.reference_answers import material as materials
from enginix.evaluation.reference_answers.answers import ANSWERED, CONTINUED, KEPT
from enginix.evaluation.reference_answers.exact_answers import read_questions
from enginix.evaluation.reference_answers.material import Material
from enginix.files import refuse_damage
from enginix.model.attention_window import read_context
from enginix.model.class_defaults import fill_absent_sizes
from enginix.model.context_length import read_model_context
from enginix.model.end_tokens import read_end_tokens
from enginix.tables import load_table

NEXT = 16  # most likely tokens kept of each generated position


def read_sizes(model: Path) -> tuple[int, int]:
    """Return ``vocab_size`` of a Hugging Face model, and its context, at most its sliding window.

    Raises:
        GateError: its config.json does not have them.
    """
    config_file = model / "config.json"
    fix = "pass the Hugging Face model that the engine was made of"
    with refuse_damage(GateError, config_file, fix, what="vocabulary and context are not known"):
        config = json.loads(config_file.read_text("utf-8"))
        config = fill_absent_sizes({**config, **(config.get("text_config") or {})})
        model_sizes = int(config["vocab_size"]), read_model_context(config) or int(config["n_positions"])
    if min(model_sizes) < 1:
        raise GateError(f"vocabulary {model_sizes[0]}, context {model_sizes[1]}", where=str(config_file))
    return model_sizes[0], read_context(model, model_sizes[1])


def load_model_material(
    model: Path, questions: Path | None = None
) -> tuple[Material, hf.TransformersTokenizer]:
    """Return the pinned material by a model's tokenizer, and that tokenizer.

    Raises:
        ModelError: no usable tokenizer.
        GateError: no questions or texts, or a tokenizer that is not the model's.
    """
    tokenizer = hf.TransformersTokenizer(model)
    vocab_size, context = read_sizes(model)
    return materials.load_material(
        tokenizer, vocab_size, context, questions=read_questions(questions)
    ), tokenizer


def build_engine_questions(model: Path, questions: Path | None = None) -> EngineQuestions:
    """Build all questions to an engine of ``model``.

    Raises:
        ModelError, GateError: as :func:`load_model_material`.
    """
    return convert_material(model, *load_model_material(model, questions))


def convert_material(model: Path, material: Material, tokenizer: hf.TransformersTokenizer) -> EngineQuestions:
    """Return the questions made from the material of :func:`load_model_material`."""
    plain: Any = tokenizer._tokenizer

    def tokenized_text(of: str, tokens: Sequence[int]) -> TokenizedText:
        written = str(plain.decode(list(tokens), skip_special_tokens=False))
        whole = [int(t) for t in plain(written, add_special_tokens=False).input_ids] == list(tokens)
        return TokenizedText(of, tuple(tokens), written if whole else None)

    golden = load_table("gate_prompts")["golden"]
    return EngineQuestions(
        material.sha256,
        read_sizes(model)[0],
        read_end_tokens(model),
        next((n for n, p in enumerate(material.prompts) if p.id == golden), 0),
        tuple(tokenized_text(p.id, p.tokens) for p in material.prompts),
        tuple(tokenized_text(q.id, q.tokens) for q in material.questions),
        tuple(tokenized_text(q.id, q.tokens) for q in material.recalls),
        tuple(tokenized_text(p.id, p.tokens) for p in material.passages),
        CONTINUED,
        ANSWERED,
        KEPT,
        NEXT,
    )
