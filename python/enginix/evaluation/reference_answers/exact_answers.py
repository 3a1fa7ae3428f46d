"""Questions with exact answers: a user's own file of them, and which of them a model answers."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from enginix.errors import QuestionsError
from enginix.evaluation.reference_answers.material import GateQuestion, GateTokenizer
from enginix.files import refuse_damage

FORM = '{"question": "…", "answer": "…"}, one object a line'


def read_questions(path: Path | None) -> list[dict[str, str]] | None:
    """Read the user's own questions; ``None`` without a file.

    Raises:
        QuestionsError: unreadable, empty, or a line that is no question with its answer.
    """
    if path is None:
        return None
    if not path.exists():
        raise QuestionsError("no such file", where=str(path), fix="check the path")
    with refuse_damage(QuestionsError, path, FORM, what="unreadable questions"):
        # JSON may contain characters that splitlines takes for the end of a line, for instance U+2028.
        rows = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line.strip()]
        json.dumps(rows, ensure_ascii=False).encode()  # raises for half a surrogate pair
    if not rows:
        raise QuestionsError("no questions", where=str(path), fix=FORM)
    for number, row in enumerate(rows, 1):
        texts = [row.get(key) for key in ("question", "answer")] if isinstance(row, dict) else [None]
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise QuestionsError(f"question {number} is {ascii(row)[:120]}", where=str(path), fix=FORM)
    return rows


def contains_answer(reply: str, answer: str) -> bool:
    """Return whether ``reply`` contains ``answer`` as a separate word."""
    reply, answer = (unicodedata.normalize("NFKC", text).casefold() for text in (reply, answer))
    if not answer.isascii():  # scripts without spaces
        return answer in reply
    return re.search(rf"(?<![\w.]){re.escape(answer)}(?!\w)", reply) is not None


def count_answered(
    questions: Sequence[GateQuestion],
    replies: Sequence[Sequence[int]],
    ends: frozenset[int],
    tokenizer: GateTokenizer,
) -> int:
    """Return how many questions a model answers."""
    return sum(
        contains_answer(tokenizer.decode([t for t in reply if t not in ends]), question.answer)
        for question, reply in zip(questions, replies, strict=True)
    )


def require_answered(
    file: Path | None,
    questions: Sequence[GateQuestion],
    replies: Sequence[Sequence[int]],
    ends: frozenset[int],
    tokenizer: GateTokenizer,
) -> None:
    """Refuse a user's own questions of which the reference answers none: they can judge no engine of it.

    Args:
        file: the user's own questions; None for the pinned ones, whose gate is left out then.

    Raises:
        QuestionsError: names the first question and what the reference says to it.
    """
    if file is None or count_answered(questions, replies, ends, tokenizer):
        return
    reply = tokenizer.decode([t for t in replies[0] if t not in ends])
    raise QuestionsError(
        f"the model answers none of the {len(questions)}, so they judge no engine of it; "
        f"to {questions[0].text[:80]!r} it says {reply[:80]!r}, not {questions[0].answer[:80]!r}",
        where=str(file),
        fix="pass questions of which the model answers some, or leave --questions out",
    )
