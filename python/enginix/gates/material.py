"""What the gates ask: prompts, evaluation text and questions, by one tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from enginix.errors import GateError
from enginix.files import dump_json
from enginix.gates import recall
from enginix.gates.prompts import Prompt, tokenize
from enginix.tables import table


class Tokenizer(Protocol):
    """What the gates need of a tokenizer; :class:`hf.Tokenizer` is one."""

    def encode(self, text: str) -> list[int]: ...
    def encode_question(self, question: str) -> list[int]: ...
    def decode(self, tokens: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class Question:
    """A question, its one right answer, and the tokens that ask it."""

    id: str
    text: str
    answer: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Material:
    """Everything that is asked.

    Attributes:
        sha256: of texts, questions and their token ids: two tokenizers that differ give two digests.
        prompts: to be continued.
        passages: evaluation text, at least two tokens each.
        questions: with exact answers.
        recalls: facts planted in long texts, asked for at their ends.
    """

    sha256: str
    prompts: tuple[Prompt, ...]
    passages: tuple[Prompt, ...]
    questions: tuple[Question, ...]
    recalls: tuple[Question, ...] = ()


def load(
    tokenizer: Tokenizer,
    vocab_size: int,
    max_length: int,
    *,
    text: Any = None,
    questions: Sequence[dict[str, str]] | None = None,
) -> Material:
    """The pinned material, or other text and questions in its place, by a tokenizer.

    Args:
        text: in the form of ``data/gate_text.json``.
        questions: objects with ``question`` and ``answer``.

    Raises:
        GateError: nothing to ask, or a tokenizer that is not the model's.
    """
    content = table("gate_text") if text is None else text
    asked = content["questions"] if questions is None else questions
    prompts = tokenize(tokenizer.encode, vocab_size, max_length)
    rows = {"prompts": content["text"], "maxTokens": content["maxTokens"], "golden": None}
    passages = tokenize(tokenizer.encode, vocab_size, max_length, rows).prompts
    found = []
    for number, row in enumerate(asked, 1):
        if not (
            isinstance(row.get("question"), str) and isinstance(row.get("answer"), str) and row["answer"]
        ):
            raise GateError(f"question {number} is {row!r}", fix='{"question": "…", "answer": "…"} a line')
        tokens = tuple(tokenizer.encode_question(row["question"]))
        if not tokens or max(tokens) >= vocab_size or len(tokens) >= max_length:
            raise GateError(
                f"question {row['question']!r} is {len(tokens)} tokens of which the model does not take all",
                fix="pass the model directory with its own tokenizer",
            )
        found.append(Question(row.get("id", str(number)), row["question"], row["answer"], tokens))
    if not found or not any(len(p.tokens) > 1 for p in passages):
        raise GateError("no questions, or no text of two tokens", fix="a gate needs something to ask")
    passages = tuple(p for p in passages if len(p.tokens) > 1)
    recalls = tuple(
        Question(of, asked, answer, tuple(tokenizer.encode_question(asked)))
        for of, asked, answer in recall.texts(
            lambda asked: len(tokenizer.encode_question(asked)), max_length, [p.text for p in passages]
        )
    )
    everything = [[list(p.tokens) for p in prompts.prompts], [list(p.tokens) for p in passages]]
    answers = [[list(q.tokens), q.answer] for q in (*found, *recalls)]
    digest = hashlib.sha256(dump_json([prompts.sha256, everything, answers]).encode()).hexdigest()
    return Material(digest, prompts.prompts, passages, tuple(found), recalls)


def same_tokens(tokenizer: Tokenizer, reference: Tokenizer, material: Material) -> None:
    """Refuses a tokenizer that reads or writes the material in another way than the reference's.

    Raises:
        GateError: naming the first text that differs.
    """
    for prompt in (*material.prompts, *material.passages):
        own = tuple(tokenizer.encode(prompt.text))[: len(prompt.tokens)]
        if own != prompt.tokens or tokenizer.decode(prompt.tokens) != reference.decode(prompt.tokens):
            raise GateError(
                f"the engine's tokenizer is not the model's: they disagree on text {prompt.id!r}",
                fix="build the engine again from the model's own tokenizer",
            )
    for question in material.questions:
        if tuple(tokenizer.encode_question(question.text)) != question.tokens:
            raise GateError(
                "the engine's chat template is not the model's",
                fix="build the engine again from the model's own tokenizer",
            )
