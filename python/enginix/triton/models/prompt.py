"""Convert a request's text or messages to token ids."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from pathlib import Path

from tokenizers import Tokenizer

from enginix.tables import load_table
from enginix.triton.contract import ENSEMBLE, load_reference_contract
from enginix.triton.models import chat
from enginix.triton.models.request import Inputs, RequestError
from enginix.wording import suggest_name


class PromptReader:
    """Reads the prompts of ``ensemble``.

    Args:
        tokenizer: tokenizer of the tokenizers library.
        directory: directory of the tokenizer and its chat template.
        max_seq_len: prompt and answer together, tokens; 0 is unknown.
        add_special_tokens: put the tokenizer's special tokens around a text.
    """

    def __init__(
        self, tokenizer: Tokenizer, directory: Path, *, max_seq_len: int = 0, add_special_tokens: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        self._template = chat.load_chat_template(directory)
        self._max_seq_len, self._add_special_tokens = max_seq_len, add_special_tokens
        self._unsupported = _unsupported_inputs()
        # The library counts them by a copy of all.
        self._tokens = tokenizer.get_vocab_size()
        longest = max(map(len, tokenizer.get_vocab()), default=1)
        self._max_characters = max_seq_len * longest
        added = tokenizer.get_added_tokens_decoder().values()
        # The longest first: one may begin with another.
        self._special = sorted((t.content for t in added if t.special and t.content), key=len, reverse=True)
        self._mark = f"\ue000{secrets.token_hex(8)}\ue001"
        # Reads special tokens as plain texts.
        self._plain = Tokenizer.from_str(tokenizer.to_str())
        self._plain.encode_special_tokens = True

    def read(self, inputs: Inputs) -> tuple[int, ...]:
        """Return the prompt's ids.

        Raises:
            RequestError: the prompt is missing, or an input or parameter is unknown or not supported.
        """
        self._refuse_unknown(inputs.parameters())
        if inputs.texts("bad_words"):
            raise RequestError("bad_words: enginix's executor cannot ban words")
        conversation = chat.read_chat(inputs, "text_input", "messages", "chat_template_args")
        name = "text_input" if conversation is None else "messages"
        # A template spells its special tokens out.
        special = self._add_special_tokens and conversation is None
        if conversation is None:
            text = inputs.text("text_input") or ""
        else:
            conversation = chat.separate_special_tokens(conversation, self._special, self._mark)
            text = self._template.render(conversation)
        self._bounded(name, len(text))
        prompt = self._encode(text, special=special) if self._mark not in text else self._encode_marked(text)
        if not prompt:
            raise RequestError(f"{name} is empty: there is no token to continue")
        return prompt

    def stop_words(self, inputs: Inputs) -> tuple[tuple[int, ...], ...]:
        """Return the ids of each of ``stop_words``.

        Raises:
            RequestError: the stop words are longer than a prompt may be.
        """
        words = inputs.texts("stop_words")
        self._bounded("stop_words", sum(map(len, words)))
        return tuple(self._encode(word, special=False) for word in words)

    def _bounded(self, name: str, characters: int) -> None:
        """Refuse texts longer than a prompt can be: tokenizing them could take minutes and block requests."""
        if self._max_characters and characters > self._max_characters:
            raise RequestError(
                f"{name}: {characters} characters; the engine's {self._max_seq_len} tokens spell at most "
                f"{self._max_characters}"
            )

    def _encode(self, text: str, *, special: bool) -> tuple[int, ...]:
        # Without offsets, which are not needed.
        return tuple(self._tokenizer.encode_batch_fast([text], add_special_tokens=special)[0].ids)

    def _encode_marked(self, text: str) -> tuple[int, ...]:
        """Encode a text with marks inside texts that only look like special tokens."""
        ids: list[int] = []
        remaining = text
        while self._mark in remaining:
            before, _, after = remaining.partition(self._mark)
            # The mark comes after a token's first character.
            token = next(t for t in self._special if t[0] == before[-1] and after.startswith(t[1:]))
            ids += self._encode(before[:-1], special=False)
            ids += self._plain.encode_batch_fast([token], add_special_tokens=False)[0].ids
            remaining = after[len(token) - 1 :]
        return (*ids, *self._encode(remaining, special=False))

    def check_end_id(self, inputs: Inputs) -> None:
        """Refuse an ``end_id`` that no token has, as TensorRT-LLM's executor does.

        Raises:
            RequestError: it is not below the number of the tokenizer's ids.
        """
        end_id = inputs.scalar("end_id")
        if end_id is not None and end_id >= self._tokens:
            raise RequestError(
                f"end_id: {end_id} is not one of the model's {self._tokens} tokens; -1 ends at none"
            )

    def _refuse_unknown(self, parameters: Collection[str]) -> None:
        """Refuse unknown names: Triton turns JSON keys without an input into request parameters silently."""
        for name in parameters:
            if name in self._unsupported:
                raise RequestError(f"{name}: enginix's executor does not support it")
            # Triton's own (extension_generate.md, extension_parameters.md of its server) change no answer.
            if name != "id" and not name.startswith("triton_"):
                raise RequestError(f"{name}: no such input; {_suggest_input(name)}")


ENSEMBLE_INPUTS: tuple[str, ...] = tuple(t.name for t in load_reference_contract()[ENSEMBLE].inputs)


def _suggest_input(name: str) -> str:
    """Return the input that a name of tensorrt_llm, of an earlier version or of another interface means."""
    table = load_table("triton_reference")["otherNames"]["names"]
    if name in table:
        return f"here it is {table[name]}"
    return suggest_name(name, ENSEMBLE_INPUTS, f"known are {', '.join(ENSEMBLE_INPUTS)}")


def _unsupported_inputs() -> frozenset[str]:
    """Return the inputs of the contract's ensemble that this kind's ensemble does not declare."""
    contract = {t["name"] for t in load_table("triton_contract")["models"]["ensemble"]["inputs"]}
    return frozenset(contract - set(ENSEMBLE_INPUTS))
