"""Reference answers that are missing, damaged, or empty are no reference; others survive a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from checkpoint_judge import Judge
from enginix.errors import GateError, ManifestError
from enginix.evaluation.reference_answers import answers as kept_answers
from enginix.evaluation.reference_answers.subject import TransformersSubject
from enginix.manifest import Manifest
from manifests import age_manifest


def write_old_manifest(directory: Path) -> None:
    """Write a manifest of format 1, which has no digests."""
    Manifest(artefact="answers", name="m").write(directory)
    age_manifest(directory)


def test_a_missing_or_damaged_reference_fails(
    little_judge: Judge, checkpoint: Path, model: Path, tmp_path: Path
) -> None:
    answers = little_judge.answers
    with pytest.raises(GateError, match="reference model cannot be run"):
        TransformersSubject(tmp_path)
    with pytest.raises(ManifestError, match="no enginix"):
        kept_answers.read_reference_answers(tmp_path)
    kept_answers.write_reference_answers(answers, tmp_path)
    write_old_manifest(tmp_path)
    for damage in ("{}", "[]", "{", '{"format": 2}'):
        text = (tmp_path / kept_answers.FILE).read_text()
        (tmp_path / kept_answers.FILE).write_text(damage)
        with pytest.raises(GateError, match="answers cannot be read"):
            kept_answers.read_reference_answers(tmp_path)
        (tmp_path / kept_answers.FILE).write_text(text)
    (tmp_path / kept_answers.TENSORS).write_bytes((tmp_path / kept_answers.TENSORS).read_bytes()[:-9])
    with pytest.raises(GateError, match="answers cannot be read"):
        kept_answers.read_reference_answers(tmp_path)
    other = Judge(little_judge.tokenizer, little_judge.material, replace(answers, material="0" * 64))
    with pytest.raises(GateError, match="other questions"):
        other(checkpoint)


def test_answers_survive_a_file(little_judge: Judge, tmp_path: Path) -> None:
    answers = little_judge.answers
    kept_answers.write_reference_answers(answers, tmp_path)
    write_old_manifest(tmp_path)
    found = kept_answers.read_reference_answers(tmp_path)
    bare = {"passages": (), "hidden": (), "long": None}
    assert replace(found, **bare) == replace(answers, **bare)
    assert found.long is not None and answers.long is not None
    pairs = zip((*found.passages, found.long), (*answers.passages, answers.long), strict=True)
    for a, b in pairs:
        assert (
            torch.equal(a.ids, b.ids)
            and torch.equal(a.logs, b.logs)
            and torch.equal(a.text_logs, b.text_logs)
        )


def test_a_reference_that_answers_nothing_is_no_reference(little_judge: Judge, checkpoint: Path) -> None:
    answers = little_judge.answers
    mute = replace(answers, replies=tuple((2,) for _ in answers.replies))
    found = Judge(little_judge.tokenizer, little_judge.material, mute)(checkpoint, "task")
    assert not found["task"].passed and "answers none of the questions" in found["task"].summary
