"""The pinned prompt set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from enginix.errors import GateError
from enginix.files import sha256_json
from enginix.tables import load_table


@dataclass(frozen=True)
class Prompt:
    """One text, and its token ids by the model's tokenizer."""

    id: str
    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class PromptSet:
    """Prompts of the gates.

    Attributes:
        sha256: of the set's canonical JSON, so that a result identifies its prompts.
        golden: the prompt whose continuation goes into the manifest.
    """

    sha256: str
    prompts: tuple[Prompt, ...]
    golden: Prompt


def tokenize_prompts(
    encode: Callable[[str], Sequence[int]], vocab_size: int, max_length: int, content: Any = None
) -> PromptSet:
    """Return the prompt set by a model's tokenizer.

    Args:
        encode: text → token ids.
        vocab_size: ids must be below.
        max_length: of the model; longer prompts are cut.
        content: another set than the pinned one, in the form of ``data/questions/gate_prompts.json``.

    Raises:
        GateError: no prompts, a prompt without tokens, or a tokenizer that is not the model's.
    """
    content = load_table("gate_prompts") if content is None else content
    prompts = []
    for row in content["prompts"]:
        tokens = tuple(int(t) for t in encode(row["text"]))[: min(max_length, content["maxTokens"])]
        if not tokens:
            raise GateError(
                f"the tokenizer makes no tokens of prompt {row['id']!r}",
                fix="pass the model directory with its own tokenizer",
            )
        if max(tokens) >= vocab_size:
            raise GateError(
                f"the tokenizer makes token {max(tokens)} of prompt {row['id']!r}, "
                f"but the model has only {vocab_size}",
                fix="pass the model directory with its own tokenizer",
            )
        prompts.append(Prompt(row["id"], row["text"], tokens))
    if not prompts:
        raise GateError("the prompt set is empty", where="gate_prompts.json", fix="add a prompt to it")
    golden = next((p for p in prompts if p.id == content["golden"]), prompts[0])
    digest = sha256_json(content)
    return PromptSet(digest, tuple(prompts), golden)
