"""End tokens and tokenizer files: one reading, one list, held to transformers."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, models

from enginix.errors import ModelError
from enginix.hub.selection import INCLUDE
from enginix.model.end_tokens import read_end_tokens
from enginix.model.tokenizer_files import TOKENIZER_FILES, copy_tokenizer_files
from enginix.quantize.run import CARRIED_FILES
from enginix.tables import load_table


def write(directory: Path, generation: Any, config: Any) -> Path:
    for name, value in (("generation_config.json", generation), ("config.json", config)):
        if value is not None:
            (directory / name).write_text(json.dumps(value))
    return directory


@pytest.mark.parametrize(
    ("generation", "config", "ends"),
    [
        ({"eos_token_id": [5, 2]}, {"eos_token_id": 7}, (5, 2)),
        ({"eos_token_id": 0}, {"eos_token_id": 7}, (0,)),
        (None, {"eos_token_id": 2}, (2,)),
        (None, {"eos_token_id": [2, 3, 2]}, (2, 3)),
        ({"_from_model_config": True}, {"eos_token_id": 2}, (2,)),
        ({"eos_token_id": None}, {"text_config": {"eos_token_id": 3}}, (3,)),
        (None, {}, ()),
        (None, None, ()),
    ],
)
def test_end_tokens(generation: Any, config: Any, ends: tuple[int, ...], tmp_path: Path) -> None:
    assert read_end_tokens(write(tmp_path, generation, config)) == ends


@pytest.mark.parametrize("eos", [[5, 2], 3, None])
@pytest.mark.parametrize("place", ["generation_config", "config"])
def test_end_tokens_are_those_that_transformers_generates_with(eos: Any, place: str, tmp_path: Path) -> None:
    config = transformers.Qwen3Config(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, eos_token_id=eos if place == "config" else None,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    if place == "generation_config":
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).generation_config.eos_token_id
    expected = theirs if isinstance(theirs, list) else [] if theirs is None else [theirs]
    assert list(read_end_tokens(tmp_path)) == expected


@pytest.mark.parametrize("eos", [-4, "2", [1, True], [1.5], 2**40])
def test_what_is_no_token_id_is_refused(eos: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="eos_token_id"):
        read_end_tokens(write(tmp_path, None, {"eos_token_id": eos}))


def carried(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def test_what_transformers_saves_is_carried_everywhere(tmp_path: Path) -> None:
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "<e>": 1}, unk_token="a")), eos_token="<e>"
    )
    tokenizer.add_tokens(["more"])
    tokenizer.chat_template = {
        "default": "{{ messages }}",
        "tool_use": "{{ tools }}",
        "rag": "{{ documents }}",
    }
    tokenizer.save_pretrained(tmp_path / "saved")
    transformers.GenerationConfig(eos_token_id=1).save_pretrained(tmp_path / "saved")
    saved = {str(p.relative_to(tmp_path / "saved")) for p in (tmp_path / "saved").rglob("*") if p.is_file()}
    assert {"additional_chat_templates/tool_use.jinja", "additional_chat_templates/rag.jinja"} <= saved
    for name in saved:
        assert carried(name, TOKENIZER_FILES) and carried(name, CARRIED_FILES) and carried(name, INCLUDE), (
            name
        )
    copy_tokenizer_files(tmp_path / "saved", tmp_path / "engine")
    engine = tmp_path / "engine"
    assert {str(p.relative_to(engine)) for p in engine.rglob("*") if p.is_file()} == saved
    again = transformers.AutoTokenizer.from_pretrained(engine)
    assert again.chat_template == tokenizer.chat_template


@pytest.mark.parametrize(
    "name", ["tokenizer.model.v3", "tekken.json", "vocab.txt", "qwen.tiktoken", "spiece.model", "vocab.json"]
)
def test_vocabularies_are_carried_everywhere(name: str) -> None:
    assert carried(name, TOKENIZER_FILES) and carried(name, CARRIED_FILES) and carried(name, INCLUDE)


def test_what_calibration_reads_is_of_the_list() -> None:
    for name in load_table("quantize")["tokenizerFiles"]:
        assert name == "config.json" or carried(name, TOKENIZER_FILES)
