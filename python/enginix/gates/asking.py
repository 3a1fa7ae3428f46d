"""Asks a Hugging Face model everything that gates ask: the reference's answers.

Nothing of what judges is imported here: the answers are a derivation of their own, which a changed bound or
gate must not compute again (nix/mk-reference-answers.nix).
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from enginix.errors import GateError
from enginix.gates import answers as kept_answers
from enginix.gates import hf
from enginix.gates import material as materials
from enginix.gates.answers import Answers
from enginix.gates.material import Material
from enginix.gates.subject import OfTransformers, checked
from enginix.model import open_weights
from enginix.model.end_tokens import read_end_tokens
from enginix.model.identity import inputs as identity


def read_questions(path: Path | None) -> list[dict[str, str]] | None:
    """The user's own questions, or ``None``.

    Raises:
        GateError: unreadable, empty, or not an object a line.
    """
    if path is None:
        return None
    try:
        # JSON may hold what splitlines takes for the end of a line, U+2028 for one.
        rows = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line.strip()]
        json.dumps(rows, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (OSError, ValueError, RecursionError) as e:
        raise GateError(f"unreadable questions: {e}", where=str(path), fix="one JSON object a line") from e
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise GateError(
            "no questions", where=str(path), fix='{"question": "…", "answer": "…"}, one object a line'
        )
    return rows


def answers_of(model: Path, device: str = "cpu", questions: Path | None = None) -> tuple[Answers, Material]:
    """Asks a Hugging Face model everything.

    Raises:
        GateError: it cannot be run, or gives no finite answers.
    """
    found, material, _ = _asked(model, device, questions)
    return found, material


def keep(model: Path, directory: Path, device: str = "cpu", questions: Path | None = None) -> Material:
    """Asks a Hugging Face model everything, and writes its answers into ``directory``.

    Raises:
        GateError: it cannot be run, or gives no finite answers.
    """
    found, material, subject = _asked(model, device, questions)
    kept_answers.write(found, directory)
    logits = subject.logits([p.tokens for p in material.prompts])
    kept_answers.write_logits(
        (
            checked(one, len(p.tokens), subject.vocab_size)
            for one, p in zip(logits, material.prompts, strict=True)
        ),
        directory,
    )
    return material


def _asked(model: Path, device: str, questions: Path | None) -> tuple[Answers, Material, OfTransformers]:
    tokenizer = hf.Tokenizer(model)
    subject = OfTransformers(model, device)
    material = materials.load(
        tokenizer, subject.vocab_size, subject.max_length, questions=read_questions(questions)
    )
    named = identity(model, open_weights(model))["model"]
    found = kept_answers.ask(subject, material, frozenset(read_end_tokens(model)), named)
    return replace(found, dtype=hf.stored_dtype(model)), material, subject
