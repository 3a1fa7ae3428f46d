"""Files of a tokenizer that were changed are named: each change once passed the gates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from engine_damage import FILES, LACKING, PASSED_OVER, edit
from enginix.errors import GateError
from enginix.evaluation.judgement import model_files
from enginix.evaluation.reference_answers import hf
from enginix.model.tokenizer_files import copy_tokenizer_files
from enginix.triton.models.detokenizer import load_tokenizer


@pytest.fixture
def own_files(model: Path, tmp_path: Path) -> Path:
    copy_tokenizer_files(model, tmp_path / "files")
    return tmp_path / "files"


def test_the_models_own_files_pass(own_files: Path, model: Path) -> None:
    outcome = model_files.judge_files(own_files, model, (2, 0), {})
    assert outcome.passed and outcome.detail["writtenAnew"] == [], outcome.summary


def test_files_that_a_tool_wrote_anew_pass(own_files: Path, model: Path, tmp_path: Path) -> None:
    """As quantization tools do it: by save_pretrained, with another order and other keys."""
    import transformers

    transformers.AutoTokenizer.from_pretrained(model).save_pretrained(own_files)
    edit(own_files / "generation_config.json", lambda raw: raw.update(transformers_version="9.9"))
    # As earlier releases of transformers do: the template in a list, defaults written out, every added token.
    template = (model / "chat_template.jinja").read_text()
    edit(
        own_files / "tokenizer_config.json",
        lambda raw: raw.update(
            chat_template=[{"name": "default", "template": template}], add_prefix_space=False
        ),
    )
    added = json.loads((model / "tokenizer.json").read_text())["added_tokens"]
    (own_files / "added_tokens.json").write_text(json.dumps({row["content"]: row["id"] for row in added}))
    outcome = model_files.judge_files(own_files, model, None, {})
    assert outcome.passed and outcome.detail["writtenAnew"], outcome.summary


@pytest.mark.parametrize("name", [*FILES, *PASSED_OVER])
def test_changed_files_fail(own_files: Path, model: Path, name: str) -> None:
    change, says = (FILES | PASSED_OVER)[name]
    change(own_files)
    outcome = model_files.judge_files(own_files, model, (2, 0), {})
    assert not outcome.passed and says in "\n".join(outcome.detail["faults"]), outcome.detail["faults"]


@pytest.mark.parametrize("name", LACKING)
def test_files_that_lack_what_the_model_has_fail(
    own_files: Path, model: Path, tmp_path: Path, name: str
) -> None:
    change, says = LACKING[name]
    change(copied := shutil.copytree(model, tmp_path / "model"))
    outcome = model_files.judge_files(own_files, copied, (2, 0), {})
    assert not outcome.passed and says in "\n".join(outcome.detail["faults"]), outcome.detail["faults"]


def test_truncation_and_padding_change_no_text_that_is_read(own_files: Path, model: Path) -> None:
    """A tool that cut its calibration text leaves them in tokenizer.json; each reader sets its own."""
    pieces = Tokenizer.from_file(str(own_files / "tokenizer.json"))
    pieces.enable_truncation(8)
    pieces.enable_padding(length=4096)
    pieces.save(str(own_files / "tokenizer.json"))
    text = "The quick brown fox jumps over the lazy dog. " * 20
    expected = Tokenizer.from_file(str(model / "tokenizer.json")).encode(text).ids
    assert len(pieces.encode(text).ids) == 4096 and 8 < len(expected) < 4096
    assert load_tokenizer(own_files).encode(text).ids == expected
    read = hf.TransformersTokenizer(own_files)
    assert read.encode(text) == expected
    question = hf.TransformersTokenizer(model).encode_question(text)
    assert len(question) > len(expected) and read.encode_question(text) == question
    assert model_files.judge_files(own_files, model, None, {}).passed


def test_end_tokens_of_the_manifest_are_compared(own_files: Path, model: Path) -> None:
    outcome = model_files.judge_files(own_files, model, (0, 2), {})
    assert not outcome.passed and "end tokens of the manifest: [0, 2]" in outcome.summary


def test_a_directory_without_tokenizer_fails(model: Path, tmp_path: Path) -> None:
    with pytest.raises(GateError, match="no tokenizer"):
        model_files.judge_files(tmp_path, model, None, {})
