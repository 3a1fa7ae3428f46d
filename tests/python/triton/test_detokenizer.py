"""Pieces joined are the whole; nothing broken in between."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from enginix.errors import RepositoryError
from enginix.triton.models.detokenizer import CONTEXT, Detokenizer, load_tokenizer

TEXT = "The quick brown fox. 量子力学の本、naïve café — 🙂🙃 done.\n" * 20


def byte_level() -> Tokenizer:
    """As GPT-2, Llama 3 and Qwen: any byte is a token, characters may need several."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        [TEXT],
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    return made


def sentencepiece() -> Tokenizer:
    """As Llama 2 and Mistral: words begin with ▁, unknown characters fall back to byte tokens."""
    words = ["<unk>", *(f"<0x{b:02X}>" for b in range(256)), "▁fox", "▁the", "▁dog", "s", "."]
    made = Tokenizer(
        models.BPE(
            vocab={w: i for i, w in enumerate(words)}, merges=[], unk_token="<unk>", byte_fallback=True
        )
    )
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return made


def word_pieces() -> Tokenizer:
    """A family that the detokenizer does not know."""
    vocabulary = {"[UNK]": 0, "fox": 1, "##es": 2, "run": 3}
    made = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    made.decoder = decoders.WordPiece()
    return made


BYTE_LEVEL, SENTENCEPIECE = byte_level(), sentencepiece()


def streamed(detokenizer: Detokenizer, ids: list[int], sizes: list[int], prompt: list[int]) -> list[str]:
    """Decodes in chunks of the given sizes, each with the context that the server would pass."""
    pieces, start = [], 0
    for size in [*sizes, len(ids)]:
        chunk = ids[start : start + size]
        start += len(chunk)
        context = (prompt + ids[: start - len(chunk)])[-CONTEXT:]
        pieces.append(detokenizer.text(chunk, context=context, final=start >= len(ids)))
        if start >= len(ids):
            break
    return pieces


@given(st.lists(st.integers(0, BYTE_LEVEL.get_vocab_size() - 1)), st.lists(st.integers(1, 4)))
def test_chunks_of_any_ids_join_to_the_library_s_text(ids: list[int], sizes: list[int]) -> None:
    assert "".join(streamed(Detokenizer(BYTE_LEVEL), ids, sizes, [])) == BYTE_LEVEL.decode(ids)


@given(st.text(max_size=40), st.text(max_size=40))
def test_one_token_at_a_time_no_character_is_ever_broken(prompt: str, answer: str) -> None:
    ids = BYTE_LEVEL.encode(answer).ids
    pieces = streamed(Detokenizer(BYTE_LEVEL), ids, [1] * len(ids), BYTE_LEVEL.encode(prompt).ids)
    assert "".join(pieces) == answer
    if "\ufffd" not in answer:
        assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCEPIECE], ids=["byte-level", "sentencepiece"])
def test_streamed_equals_whole_for_each_family(tokenizer: Tokenizer) -> None:
    vocabulary = tokenizer.get_vocab_size()
    detokenizer = Detokenizer(tokenizer)
    ids = [(7 * i + 3) % vocabulary for i in range(200)]
    for prompt in ([], [vocabulary - 3]):
        whole = detokenizer.text(ids, context=prompt)
        assert "".join(streamed(detokenizer, ids, [1] * len(ids), prompt)) == whole


def test_sentencepiece_agrees_with_the_library_where_bytes_are_valid() -> None:
    ids = [
        SENTENCEPIECE.token_to_id(t)
        for t in ("▁fox", "s", "▁the", "<0x0A>", "<0xE4>", "<0xB8>", "<0xAD>", "▁dog", ".")
    ]
    detokenizer = Detokenizer(SENTENCEPIECE)
    assert detokenizer.text(ids) == SENTENCEPIECE.decode(ids) == "foxs the\n中 dog."
    assert streamed(detokenizer, ids, [1] * len(ids), []) == [
        "fox",
        "s",
        " the",
        "\n",
        "",
        "",
        "中",
        " dog",
        ".",
    ]


def test_a_word_after_a_prompt_keeps_its_space() -> None:
    fox, dog = SENTENCEPIECE.token_to_id("▁fox"), SENTENCEPIECE.token_to_id("▁dog")
    detokenizer = Detokenizer(SENTENCEPIECE)
    assert detokenizer.text([dog], context=[fox]) == " dog"
    assert detokenizer.text([dog]) == "dog"


def test_an_unfinished_character_is_held_back_until_the_end() -> None:
    ids = BYTE_LEVEL.encode("🙃", add_special_tokens=False).ids
    partial = [BYTE_LEVEL.token_to_id(c) for c in "ðŁ"]
    detokenizer = Detokenizer(BYTE_LEVEL)
    assert detokenizer.text(partial, final=False) == ""
    assert detokenizer.text([], context=partial, final=True) == "\ufffd"
    assert detokenizer.text(ids) == "🙃"


def test_special_tokens_are_left_out_unless_kept() -> None:
    ids = [*BYTE_LEVEL.encode("fox").ids, 0]
    assert Detokenizer(BYTE_LEVEL).text(ids) == "fox"
    assert Detokenizer(BYTE_LEVEL, skip_special_tokens=False).text(ids) == "fox<|end|>"


def test_ids_beyond_the_tokenizer_are_no_text() -> None:
    # Embeddings are padded to round sizes, so a model can choose ids that no token has.
    assert Detokenizer(BYTE_LEVEL).text([10**6]) == ""


def test_unknown_decoders_are_decoded_by_difference() -> None:
    detokenizer = Detokenizer(word_pieces())
    assert detokenizer.text([1, 2, 3]) == "foxes run"
    assert streamed(detokenizer, [1, 2, 3], [1, 1, 1], []) == ["fox", "es", " run"]


def test_missing_and_damaged_tokenizers_are_named(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": {')
    with pytest.raises(RepositoryError, match="unreadable"):
        load_tokenizer(tmp_path)


def test_truncation_and_padding_of_the_file_are_off(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ids = load_tokenizer(tmp_path).encode("The quick brown fox").ids
    assert load_tokenizer(tmp_path).decode(ids) == "The quick brown fox"
