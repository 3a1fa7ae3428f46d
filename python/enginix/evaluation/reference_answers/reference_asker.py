"""Ask a Hugging Face model all questions of the gates, for the reference answers.

No module of the judges is imported here: the answers are a separate derivation, which a changed bound or gate
must not rebuild (nix/mk-reference-answers.nix).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from enginix import __version__
from enginix.evaluation.reference_answers import answers as kept_answers
from enginix.evaluation.reference_answers import hf
from enginix.evaluation.reference_answers import material as materials
from enginix.evaluation.reference_answers.answers import ReferenceAnswers
from enginix.evaluation.reference_answers.exact_answers import read_questions, require_answered
from enginix.evaluation.reference_answers.material import Material
from enginix.evaluation.reference_answers.subject import TransformersSubject, require_finite_logits
from enginix.manifest import Manifest, read_artefact_name
from enginix.model.end_tokens import read_end_tokens
from enginix.model.identity import identify_model
from enginix.model.tokenizer_files import copy_tokenizer_files
from enginix.progress import track_step


def keep_reference_answers(
    model: Path, directory: Path, device: str = "cpu", questions: Path | None = None
) -> Material:
    """Ask a Hugging Face model all questions, and write its answers into ``directory``.

    Raises:
        QuestionsError, GateError: as :func:`ask_model`.
    """
    answers, material, subject = ask_model(model, device, questions)
    kept_answers.write_reference_answers(answers, directory)
    # The gate files compares engines with these; the weights stay where they are.
    copy_tokenizer_files(model, directory / kept_answers.MODEL_FILES)
    shutil.copyfile(model / "config.json", directory / kept_answers.MODEL_FILES / "config.json")
    logits = subject.logits([p.tokens for p in material.prompts])
    kept_answers.write_logits(
        (
            require_finite_logits(one, len(p.tokens), subject.vocab_size)
            for one, p in zip(logits, material.prompts, strict=True)
        ),
        directory,
    )
    Manifest(
        "answers",
        read_artefact_name(model),
        inputs={"model": answers.model},
        tools={"enginix": __version__},
        results={"material": material.sha256},
    ).write(directory)
    return material


def ask_model(
    model: Path,
    device: str = "cpu",
    questions: Path | None = None,
    draft: kept_answers.Generate | None = None,
) -> tuple[ReferenceAnswers, Material, TransformersSubject]:
    """Ask a Hugging Face model all questions; return its answers, the questions, and the model itself.

    Args:
        draft: gives an engine's answers; each that the model confirms is not computed.

    Raises:
        QuestionsError: ``questions`` cannot be read, or the model answers none of them.
        GateError: the model cannot be run, or gives answers that are not finite.
    """
    own_questions = read_questions(questions)
    tokenizer = hf.TransformersTokenizer(model)
    subject = TransformersSubject(model, device)
    material = materials.load_material(
        tokenizer, subject.vocab_size, subject.max_length, questions=own_questions
    )
    named, ends = identify_model(model)["model"], frozenset(read_end_tokens(model))

    def check_replies(replies: Sequence[Sequence[int]]) -> None:
        require_answered(questions, material.questions, replies, ends, tokenizer)

    def continue_prompts(
        prompts: Sequence[Sequence[int]], most: int, ends: frozenset[int]
    ) -> Sequence[Sequence[int]]:
        drafts = () if draft is None else draft(prompts, most, ends)
        return subject.generate(prompts, most, ends, drafts=drafts)

    with track_step("asking the model"):
        answers = kept_answers.ask_reference(
            subject, material, ends, named, tokenizer, check_replies, continue_prompts
        )
    return replace(answers, dtype=hf.read_stored_dtype(model)), material, subject
