"""The questions to an engine in its own runtime: a file that is read without any library."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from enginix.errors import GateError
from enginix.files import dump_json, refuse_damage, write_text

FORMAT = 1
FILE = "asked.json"


@dataclass(frozen=True)
class TokenizedText:
    """A text to send to an engine.

    Attributes:
        tokens: its tokens by the model's tokenizer.
        text: the text for servers that accept text only, which tokenizes to those tokens. ``None`` if no
            text does.
    """

    id: str
    tokens: tuple[int, ...]
    text: str | None


@dataclass(frozen=True)
class EngineQuestions:
    """All questions to an engine.

    Attributes:
        material: digest of texts, questions and token ids, as the reference's answers hold it.
        vocab_size: of the model; engines may pad theirs.
        ends: tokens that end an answer.
        golden: the prompt whose answer servers compare before they report readiness.
        prompts: to be continued by ``continued`` tokens.
        questions: to be answered by ``answered`` tokens.
        recalls: facts planted in long texts, to be answered by ``answered`` tokens.
        passages: to be scored, ``kept`` most likely tokens a position.
        next: most likely tokens kept of each generated position.
    """

    material: str
    vocab_size: int
    ends: tuple[int, ...]
    golden: int
    prompts: tuple[TokenizedText, ...]
    questions: tuple[TokenizedText, ...]
    recalls: tuple[TokenizedText, ...]
    passages: tuple[TokenizedText, ...]
    continued: int
    answered: int
    kept: int
    next: int


def write_engine_questions(question_set: EngineQuestions, directory: Path) -> None:
    """Write ``asked.json``."""
    write_text(directory / FILE, dump_json({"format": FORMAT, **asdict(question_set)}))


def read_engine_questions(path: Path) -> EngineQuestions:
    """Read what :func:`write_engine_questions` wrote: the file, or its directory.

    Raises:
        GateError: missing, damaged, or of another format.
    """
    path = path / FILE if path.is_dir() else path
    with refuse_damage(GateError, path, "make it again from the model", what="the questions cannot be read"):
        raw = json.loads(path.read_text("utf-8"))
        if raw.pop("format") != FORMAT:
            raise ValueError(f"not of format {FORMAT}")
        for name in ("prompts", "questions", "recalls", "passages"):
            raw[name] = tuple(
                TokenizedText(t["id"], tuple(map(int, t["tokens"])), t["text"]) for t in raw[name]
            )
        question_set = EngineQuestions(**{**raw, "ends": tuple(map(int, raw["ends"]))})
        if not (
            question_set.prompts
            and question_set.questions
            and 0 <= question_set.golden < len(question_set.prompts)
        ):
            raise ValueError("it has no questions")
    return question_set
