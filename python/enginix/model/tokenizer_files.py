"""The one list of a model's files for tokenizer, chat templates and generation defaults.

Locks include them; quantization and engines copy them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path, PurePath

from enginix.errors import ModelError

# Patterns of the files that transformers saves (save_pretrained of tokenizers and generation configurations),
# of those that its tokenizer classes read (VOCAB_FILES_NAMES), and of Mistral's own.
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "generation_config.json",
)
# What the fast tokenizers of transformers read, and kind reference, gates and the gateway.
FAST_TOKENIZER = "tokenizer.json"
# What transformers makes it of.
SLOW_TOKENIZERS = ("tokenizer.model", "vocab.json", "vocab.txt", "tekken.json", "spiece.model")
VOCABULARY_FILES = (FAST_TOKENIZER, "tokenizer.model", "vocab.json")


def list_tokenizer_files(model: Path, patterns: Iterable[str] = TOKENIZER_FILES) -> list[Path]:
    """Return the tokenizer files of a model directory, or those of other patterns, sorted."""
    return sorted({path for pattern in patterns for path in model.glob(pattern) if path.is_file()})


def is_tokenizer_file(name: str) -> bool:
    """Return whether a model's file of this relative name is one of its tokenizer files."""
    path = PurePath("/", name)
    return any(path.match(f"/{pattern}") for pattern in TOKENIZER_FILES)


def find_tokenizer_files(model: Path) -> list[Path]:
    """Return the tokenizer files of a model directory, sorted.

    Raises:
        ModelError: there is no tokenizer, without which an engine cannot be served.
    """
    paths = list_tokenizer_files(model)
    if not any(path.name in VOCABULARY_FILES for path in paths):
        raise ModelError(
            "no tokenizer", where=model, fix="pass the directory that has the model's tokenizer with --model"
        )
    return paths


def require_fast_tokenizer(model: Path) -> None:
    """Check that a model directory has tokenizer.json.

    Raises:
        ModelError: it does not; the fix depends on what there is.
    """
    if (model / FAST_TOKENIZER).is_file():
        return
    slow = [path.name for path in sorted(model.iterdir()) if path.name in SLOW_TOKENIZERS]
    raise ModelError(
        f"no {FAST_TOKENIZER}" + (f"; there is {slow[0]}" if slow else ""),
        where=model,
        fix=(
            "write it with transformers: AutoTokenizer.from_pretrained(MODEL).save_pretrained(MODEL)"
            if slow
            else "pass the Hugging Face model's directory, with its tokenizer"
        ),
    )


def copy_tokenizer_files(model: Path, directory: Path) -> None:
    """Copy a model's tokenizer files into a new directory.

    Raises:
        ModelError: there is no tokenizer.
    """
    directory.mkdir()
    copy_files(find_tokenizer_files(model), model, directory)


def copy_files(paths: Iterable[Path], model: Path, directory: Path) -> None:
    """Copy files of a model directory to their places in another directory."""
    for path in paths:
        destination = directory / path.relative_to(model)
        destination.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, destination)
