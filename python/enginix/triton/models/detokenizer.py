"""Convert token ids to text in pieces; the joined pieces are the text of all ids.

A server decodes a stream chunk by chunk. Decoding each chunk alone loses the space before a word
(SentencePiece strips the first one) and shows U+FFFD in the middle of a character whose bytes come in
several tokens. Here a chunk is decoded with the ids before it: their bytes set an incremental UTF-8 decoder's
state, which then holds back an unfinished character until the chunk that completes it, or until the end.

Stateless between calls: the same context gives the same text.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from enginix.errors import RepositoryError

# A character has at most 4 bytes and a token at least one, but skipped special tokens have none.
CONTEXT = 32

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def load_tokenizer(directory: Path) -> Tokenizer:
    """Load the tokenizer of a directory, with truncation and padding off.

    Raises:
        RepositoryError: ``tokenizer.json`` is missing, or the tokenizers library cannot read it.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise RepositoryError(
            "no tokenizer.json",
            where=directory,
            fix="put the model's tokenizer.json there (transformers: tokenizer.save_pretrained)",
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as e:  # the library raises plain Exception
        raise RepositoryError(
            f"unreadable: {e}", where=path, fix="fetch the model's tokenizer.json again"
        ) from e
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@cache
def _byte_level_alphabet() -> dict[str, int]:
    """Return GPT-2's printable characters for the 256 bytes (openai/gpt-2, encoder.py, bytes_to_unicode)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unprintable = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(unprintable)}


def _flatten_decoders(description: Any) -> list[dict[str, Any]]:
    if not isinstance(description, dict):
        return []
    if description.get("type") == "Sequence":
        return [d for inner in description.get("decoders", []) for d in _flatten_decoders(inner)]
    return [description]


class Detokenizer:
    """Decodes ids in pieces.

    Args:
        tokenizer: tokenizer of the tokenizers library; its ``decoder`` decides how a piece becomes bytes.
        skip_special_tokens: leave out added tokens that are marked special, such as ``<|im_end|>``.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._bytes: dict[int, bytes] = {}
        description = json.loads(tokenizer.to_str())
        self._special = {t["id"] for t in description.get("added_tokens", []) if t["special"]}
        decoders = _flatten_decoders(description.get("decoder"))
        kinds = {d["type"] for d in decoders}
        self._strips_first = False
        if kinds and kinds <= {"ByteLevel", "Fuse"} and "ByteLevel" in kinds:
            self._family = "byte-level"
        elif (
            kinds
            and kinds <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}
            and self._is_sentencepiece(decoders)
        ):
            self._family = "sentencepiece"
            self._byte_fallback = "ByteFallback" in kinds
            self._strips_first = any(
                d["type"] == "Strip" or (d["type"] == "Metaspace" and d.get("prepend_scheme") != "never")
                for d in decoders
            )
        else:
            self._family = "other"

    @staticmethod
    def _is_sentencepiece(decoders: list[dict[str, Any]]) -> bool:
        def known(d: dict[str, Any]) -> bool:
            if d["type"] == "Replace":
                return d.get("pattern") == {"String": "▁"} and d.get("content") == " "
            if d["type"] == "Strip":
                return d.get("content") == " " and d.get("start") == 1 and d.get("stop") == 0
            if d["type"] == "Metaspace":
                return d.get("replacement") == "▁"
            return True

        return all(known(d) for d in decoders) and any(
            d["type"] in ("Replace", "Metaspace") for d in decoders
        )

    def text(self, ids: Sequence[int], *, context: Sequence[int] = (), final: bool = True) -> str:
        """Return the text that ``ids`` add after ``context``.

        Args:
            context: the ids before, or the last ``CONTEXT`` of them: prompt and generated ids.
            final: no ids follow; an unfinished character becomes U+FFFD instead of being held back.
        """
        context = context[-CONTEXT:]
        if self._family == "other":
            return self._other_text(ids, context, final)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        before = b"".join(map(self._token_bytes, context))
        decoder.decode(before)
        text = decoder.decode(b"".join(map(self._token_bytes, ids)), final)
        if self._strips_first and not before and text.startswith(" "):
            return text[1:]
        return text

    def _other_text(self, ids: Sequence[int], context: Sequence[int], final: bool) -> str:
        """Return the text by difference, for other decoders; it is exact if decoding only appends."""
        before = str(self._tokenizer.decode(list(context), skip_special_tokens=self._skip)).rstrip("\ufffd")
        text = str(self._tokenizer.decode([*context, *ids], skip_special_tokens=self._skip))
        return (text if final else text.rstrip("\ufffd"))[len(before) :]

    def _token_bytes(self, token: int) -> bytes:
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = self._piece_bytes(token)
        return known

    def _piece_bytes(self, token: int) -> bytes:
        if self._skip and token in self._special:
            return b""
        piece = self._tokenizer.id_to_token(token)
        if piece is None:  # a row of the embedding without a token
            return b""
        if self._family == "byte-level":
            alphabet = _byte_level_alphabet()
            # As the library's ByteLevel decoder: a piece outside the alphabet is taken unchanged.
            return bytes(alphabet[c] for c in piece) if all(c in alphabet for c in piece) else piece.encode()
        if self._byte_fallback and (match := _BYTE_TOKEN.fullmatch(piece)):
            return bytes([int(match[1], 16)])
        return str(piece).replace("▁", " ").encode()
