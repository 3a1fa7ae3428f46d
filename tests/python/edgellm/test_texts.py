"""Tokenizers, chat templates and end tokens that an export cannot carry are refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from enginix.kinds.edgellm.source import read_export_source

from .conftest import change, refuse


def test_end_tokens_beyond_the_vocabulary(model: Path) -> None:
    change(model / "config.json", eos_token_id=999999)
    refuse(model, "eos_token_id 999999", "2048 tokens")
    change(model / "config.json", eos_token_id=2)
    change(model / "generation_config.json", eos_token_id=[2, 2048])
    refuse(model, "eos_token_id 2048", "generation_config.json")


def test_a_model_without_end_tokens_is_noted(model: Path) -> None:
    change(model / "config.json", eos_token_id=None)
    (model / "generation_config.json").unlink(missing_ok=True)
    assert "no end token" in read_export_source(model).notes[0]


def test_a_tokenizer_of_more_tokens_than_the_model(model: Path) -> None:
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["one more"] = 2048
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    refuse(model, "largest token is 2048", "2048 tokens")


def test_an_added_token_beyond_the_model_is_noted_unless_prompts_have_it(model: Path) -> None:
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({"id": 2048, "content": "[PAD]", "special": True})
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "'[PAD]' (2048)" in read_export_source(model).texts.notes[0]
    template = model / "chat_template.jinja"
    template.write_text(template.read_text() + "[PAD]")
    refuse(model, "'[PAD]'", "token 2048")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}{{ m.content }", "broken at line 1"),
        ("{{ messages | nothing }}", "nothing"),
        ("{{ raise_exception('never') }}", "refuses one question of a user: never"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "leaves a user's question out"),
        ("\ufeff{% for m in messages %}{{ m.content }}{% endfor %}", "byte order mark"),
        ("   ", "no chat template"),
    ],
)
def test_chat_templates_that_make_no_prompt(template: str, words: str, model: Path) -> None:
    (model / "chat_template.jinja").write_text(template)
    refuse(model, words)


def test_two_embedded_templates_that_differ(model: Path) -> None:
    text = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").unlink()
    (model / "chat_template.json").write_text(json.dumps({"chat_template": text}))
    assert read_export_source(model).texts.template == text
    change(model / "tokenizer_config.json", chat_template=text + "x")
    refuse(model, "chat_template.json and tokenizer_config.json have different chat templates")


def test_directories_that_are_no_models(model: Path, tmp_path: Path) -> None:
    (model / "tokenizer.json").rename(model / "tokenizer.model")
    refuse(model, "tokenizer.model alone is not read", "save_pretrained")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    refuse(adapter, "a LoRA adapter", "merge")
