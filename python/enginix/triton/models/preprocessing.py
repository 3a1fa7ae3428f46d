"""preprocessing: text → token ids, and the defaults that the tokenizer knows."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from enginix.tables import table
from enginix.triton.contract import reference
from enginix.triton.models import chat
from enginix.triton.models.detokenizer import load_tokenizer
from enginix.triton.models.request import Inputs, RequestError, answer, boolean, integers, parameter, required
from enginix.triton.models.stop_words import pack


class Preprocessing:
    """Serves ``preprocessing``.

    Args:
        args: as Triton passes them to ``initialize``.
        backend: the module ``triton_python_backend_utils``.
    """

    def __init__(self, args: dict[str, str], backend: Any) -> None:
        config = json.loads(args["model_config"])
        self._backend = backend
        directory = Path(required(config, "tokenizer_dir"))
        self._tokenizer = load_tokenizer(directory)
        self._template = chat.load(directory)
        self._add_special_tokens = boolean(config, "add_special_tokens", True)
        self._end_id = (integers(config, "end_ids") or [-1])[0]
        self._pad_id = int(parameter(config, "pad_id") or self._end_id)
        self._max_tokens = int(parameter(config, "max_tokens_limit") or 0)
        self._max_seq_len = int(parameter(config, "max_seq_len") or 0)
        self._unsupported = _unsupported_inputs()
        longest = max(map(len, self._tokenizer.get_vocab()), default=1)
        self._max_characters = self._max_seq_len * longest

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response a request, in order."""
        return [answer(Inputs(r, self._backend), self._backend, self._serve) for r in requests]

    def close(self) -> None:
        """Nothing to release."""

    def _serve(self, inputs: Inputs) -> list[Any]:
        self._refuse_unknown(inputs.parameters())
        prompt = self._prompt(inputs)
        max_tokens = inputs.scalar("REQUEST_OUTPUT_LEN")
        check_lengths(len(prompt), max_tokens, self._max_tokens, self._max_seq_len)
        if inputs.texts("BAD_WORDS_DICT"):
            raise RequestError("bad_words: the reference executor cannot ban words")
        words = [self._encode(word, special=False) for word in inputs.texts("STOP_WORDS_DICT")]
        end_id = inputs.scalar("END_ID")
        pad_id = inputs.scalar("PAD_ID")
        tensor = self._backend.Tensor
        return [
            tensor("INPUT_ID", np.array([prompt], np.int32)),
            tensor("REQUEST_INPUT_LEN", np.array([[len(prompt)]], np.int32)),
            tensor("REQUEST_OUTPUT_LEN", np.array([[max_tokens]], np.int32)),
            tensor("STOP_WORDS_IDS", np.array([pack(words)], np.int32).reshape(1, 2, -1)),
            tensor("OUT_END_ID", np.array([[self._end_id if end_id is None else end_id]], np.int32)),
            tensor("OUT_PAD_ID", np.array([[self._pad_id if pad_id is None else pad_id]], np.int32)),
        ]

    def _prompt(self, inputs: Inputs) -> list[int]:
        """The prompt's ids, of a text or of messages."""
        said = chat.read(inputs, "QUERY", "MESSAGES", "CHAT_TEMPLATE_ARGS")
        name = "text_input" if said is None else "messages"
        # A template spells its special tokens out.
        special = self._add_special_tokens and said is None
        text = (inputs.text("QUERY") or "") if said is None else self._template.render(said)
        # Tokenizing it would take minutes, with every other request waiting behind.
        if self._max_characters and len(text) > self._max_characters:
            raise RequestError(
                f"{name}: {len(text)} characters; the engine's {self._max_seq_len} tokens spell at most "
                f"{self._max_characters}"
            )
        prompt = self._encode(text, special=special)
        if not prompt:
            raise RequestError(f"{name} is empty: there is no token to continue")
        return prompt

    def _encode(self, text: str, *, special: bool) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def _refuse_unknown(self, parameters: Collection[str]) -> None:
        """Triton turns JSON keys that no input has into request parameters, and serves on in silence."""
        for name in parameters:
            if name in self._unsupported:
                raise RequestError(f"{name}: the reference executor does not support it")
            near = difflib.get_close_matches(name, ENSEMBLE_INPUTS, 1, 0.75)
            if near and name not in ENSEMBLE_INPUTS:
                raise RequestError(f"{name}: no such input; did you mean {near[0]}?")


def check_lengths(prompt: int, max_tokens: Any, max_tokens_limit: int, max_seq_len: int) -> None:
    """Refuses what the engine cannot hold; a limit of 0 is none.

    Raises:
        RequestError: names the numbers and what would be accepted.
    """
    if max_tokens is None:
        raise RequestError("max_tokens is missing")
    if max_tokens < 1:
        raise RequestError(f"max_tokens: {max_tokens} is not at least 1")
    if max_tokens_limit and max_tokens > max_tokens_limit:
        raise RequestError(f"max_tokens: {max_tokens} is above this server's limit of {max_tokens_limit}")
    if max_seq_len and prompt >= max_seq_len:
        raise RequestError(
            f"{prompt} prompt tokens; the engine holds {max_seq_len}, prompt and answer together"
        )
    if max_seq_len and prompt + max_tokens > max_seq_len:
        raise RequestError(
            f"max_tokens: {prompt} prompt tokens + {max_tokens} are above the engine's {max_seq_len}; "
            f"at most {max_seq_len - prompt} fit"
        )


ENSEMBLE_INPUTS: tuple[str, ...] = tuple(t.name for t in reference()["ensemble"].inputs)


def _unsupported_inputs() -> frozenset[str]:
    """What the contract's ensemble takes and this kind's does not declare."""
    contract = {t["name"] for t in table("triton_contract")["models"]["ensemble"]["inputs"]}
    return frozenset(contract - set(ENSEMBLE_INPUTS))
