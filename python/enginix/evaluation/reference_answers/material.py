"""The material of the gates: prompts, evaluation text and questions, by one tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from enginix.errors import GateError, QuestionsError
from enginix.evaluation.reference_answers import recall
from enginix.evaluation.reference_answers.prompts import Prompt, tokenize_prompts
from enginix.files import sha256_json
from enginix.tables import load_table

POSITIONS_AN_OCTAVE = 48  # of the long text, scored between each power of two and the next
FIRST_OCTAVE = 64


class GateTokenizer(Protocol):
    """The part of a tokenizer that the gates use; :class:`hf.TransformersTokenizer` has it."""

    def encode(self, text: str) -> list[int]: ...
    def encode_question(self, question: str) -> list[int]: ...
    def decode(self, tokens: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class GateQuestion:
    """A question, its one right answer, and the tokens that ask it."""

    id: str
    text: str
    answer: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Material:
    """All prompts, texts and questions of the gates.

    Attributes:
        sha256: of texts, questions and their token ids: two tokenizers that differ give two digests.
        prompts: to be continued.
        passages: evaluation text, at least two tokens each.
        questions: with exact answers.
        recalls: facts planted in long texts, asked for at their ends.
        long: one text of all tokens that the model accepts, up to ``longest`` of
            ``data/questions/gate_text.json``; scored at :func:`sample_positions`.
    """

    sha256: str
    prompts: tuple[Prompt, ...]
    passages: tuple[Prompt, ...]
    questions: tuple[GateQuestion, ...]
    recalls: tuple[GateQuestion, ...] = ()
    long: tuple[int, ...] = ()

    def describe(self) -> dict[str, Any]:
        """Digest and counts, as evidence names them."""
        return {
            "sha256": self.sha256,
            "passages": len(self.passages),
            "prompts": len(self.prompts),
            "questions": len(self.questions),
            "tokens": sum(len(p.tokens) for p in self.passages),
        }


def load_material(
    tokenizer: GateTokenizer,
    vocab_size: int,
    max_length: int,
    *,
    questions: Sequence[dict[str, str]] | None = None,
) -> Material:
    """Return the pinned material, or with other questions, by a tokenizer.

    Args:
        questions: the user's own, as :func:`exact_answers.read_questions` returns them.

    Raises:
        QuestionsError: one of the user's own is longer than the model takes.
        GateError: no questions or texts, or a tokenizer that is not the model's.
    """
    content = load_table("gate_text")
    question_rows = content["questions"] if questions is None else questions
    prompts = tokenize_prompts(tokenizer.encode, vocab_size, max_length)
    rows = {"prompts": content["text"], "maxTokens": content["maxTokens"], "golden": None}
    passages = tokenize_prompts(tokenizer.encode, vocab_size, max_length, rows).prompts
    parsed_questions = []
    for number, row in enumerate(question_rows, 1):
        tokens = tuple(tokenizer.encode_question(row["question"]))
        if questions is not None and len(tokens) >= max_length:
            raise QuestionsError(
                f"question {number} is {len(tokens)} tokens; the model takes {max_length} with the answer",
                where="--questions",
                fix="shorten it",
            )
        if not tokens or max(tokens) >= vocab_size or len(tokens) >= max_length:
            raise GateError(
                f"question {row['question']!r} is {len(tokens)} tokens, not all of which the model accepts",
                fix="pass the model directory with its own tokenizer",
            )
        parsed_questions.append(
            GateQuestion(row.get("id", str(number)), row["question"], row["answer"], tokens)
        )
    if not parsed_questions or not any(len(p.tokens) > 1 for p in passages):
        raise GateError("no questions, or no text of two tokens", fix="pass at least one of each")
    passages = tuple(p for p in passages if len(p.tokens) > 1)
    recalls = tuple(
        GateQuestion(name, question, answer, tuple(tokenizer.encode_question(question)))
        for name, question, answer in recall.build_recall_texts(
            lambda question: len(tokenizer.encode_question(question)),
            max_length,
            [p.text for p in passages],
        )
    )
    long = repeat_passages(passages, min(max_length, content.get("longest", max_length)))
    token_lists = [[list(p.tokens) for p in prompts.prompts], [list(p.tokens) for p in passages]]
    answers = [[list(q.tokens), q.answer] for q in (*parsed_questions, *recalls)]
    digest = sha256_json([prompts.sha256, token_lists, answers, len(long)])
    return Material(digest, prompts.prompts, passages, tuple(parsed_questions), recalls, long)


def repeat_passages(passages: Sequence[Prompt], length: int) -> tuple[int, ...]:
    """Return the tokens of all passages one after another, again and again, up to a length."""
    tokens = [token for passage in passages for token in passage.tokens]
    return tuple(tokens[n % len(tokens)] for n in range(length))


def sample_positions(length: int) -> list[list[int]]:
    """Return the positions of a text that are scored, one list an octave; a position needs a next token."""
    octaves, start, end = [], 0, FIRST_OCTAVE
    while start < length - 1:
        last = min(end, length - 1)
        count = min(POSITIONS_AN_OCTAVE, last - start)
        # The last position of each octave is among them.
        octaves.append([last - 1 - (n * (last - start)) // count for n in range(count)][::-1])
        start, end = end, 2 * end
    return octaves


def require_same_tokens(tokenizer: GateTokenizer, reference: GateTokenizer, material: Material) -> None:
    """Refuse a tokenizer that encodes or decodes the material differently than the reference's.

    Raises:
        GateError: a text differs; the error names the first.
    """
    for prompt in (*material.prompts, *material.passages):
        own_tokens = tuple(tokenizer.encode(prompt.text))[: len(prompt.tokens)]
        if own_tokens != prompt.tokens or tokenizer.decode(prompt.tokens) != reference.decode(prompt.tokens):
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
