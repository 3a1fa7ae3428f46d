"""The text that ships calibrates any model by default; the fixes that errors name are run as they stand."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from enginix.cli import main
from enginix.quantize import source
from enginix.quantize.calibration import (
    Recipe,
    draw_rows,
    find_default_text,
    make_calibration,
    read_calibration,
)
from enginix.quantize.calibration_text import Document

BATCH = 8


def _save(tokenizer: Any, directory: Path) -> Path:
    directory.mkdir()
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>", "model_max_length": 4096}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def _words_of(path: Path) -> list[str]:
    rows = path.read_text("utf-8").splitlines()
    return re.findall(r"\w+|[^\w\s]+|\s+", "\n".join(json.loads(row)["text"] for row in rows))


@pytest.fixture(scope="session")
def whole_words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100,000 entries and every word of the text among them: as few tokens as any tokenizer could give."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    words = dict.fromkeys(["<end>", "<unknown>", *_words_of(find_default_text()[0])])
    entries = [*words, *(f"unused-{i}" for i in range(100_000))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(entries)}, unk_token="<unknown>"))
    # Space goes with the word that follows it, as byte-level BPE has it.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s*\w+|\s*[^\w\s]+|\s+"), "isolated")
    return _save(tokenizer, tmp_path_factory.mktemp("words") / "model")


@pytest.fixture(scope="session")
def own_bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Byte-level BPE trained on the text itself until no pair repeats: no other BPE gives fewer tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=100_000, special_tokens=["<end>"], show_progress=False)
    rows = find_default_text()[0].read_text("utf-8").splitlines()
    tokenizer.train_from_iterator((json.loads(row)["text"] for row in rows), trainer)
    return _save(tokenizer, tmp_path_factory.mktemp("bpe") / "model")


def _check_default(model: Path, out: Path) -> int:
    data = make_calibration(model, out, None, Recipe())
    rows, length = data.tokens.shape
    assert length == 512 and rows % BATCH == 0 and 64 <= rows <= 256
    assert (
        data.about["recipe"]["size"]
        == rows
        == json.loads((out / "enginix.json").read_text())["options"]["size"]
    )
    assert read_calibration(out).sha256 == data.sha256
    return int(rows)


def test_a_small_vocabulary(model: Path, tmp_path: Path) -> None:
    rows = _check_default(model, tmp_path / "default")
    same = make_calibration(model, tmp_path / "asked", None, Recipe(size=rows))
    assert (tmp_path / "default/calibration.safetensors").read_bytes() == (
        tmp_path / "asked/calibration.safetensors"
    ).read_bytes() and same.about["recipe"]["size"] == rows


def test_a_vocabulary_of_100000_words(whole_words: Path, tmp_path: Path) -> None:
    _check_default(whole_words, tmp_path / "out")


@pytest.mark.slow
def test_a_bpe_trained_on_the_text(own_bpe: Path, tmp_path: Path) -> None:
    _check_default(own_bpe, tmp_path / "out")


def test_no_more_rows_than_256_and_no_padding() -> None:
    class Letters:
        eos_token_id = None
        bos_token_id = None

        def __call__(self, words: str, add_special_tokens: bool, verbose: bool) -> dict[str, list[int]]:
            return {"input_ids": [ord(c) for c in words]}

    def rows(characters: int) -> int:
        return len(draw_rows(Letters(), [Document("x" * characters)], Recipe(sequence_length=4)))

    assert [rows(n) for n in (4, 7, 12, 36, 44, 67, 4 * 255, 4 * 256, 9999)] == [
        1, 1, 3, 8, 8, 16, 248, 256, 256,
    ]  # fmt: skip


class Done(NamedTuple):
    returncode: int
    stderr: str


@pytest.fixture
def enginix(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The command in this process, which has imported the tokenizer's libraries."""

    def run(*words: str | Path) -> Done:
        code = main([str(w) for w in words])
        return Done(code, capsys.readouterr().err)

    return run


def _fix(stderr: str) -> str:
    return stderr.split("fix: ", 1)[1].strip()


def test_the_command_that_quantize_names_works(
    enginix: Callable[..., Done], model: Path, tmp_path: Path
) -> None:
    quantize = ("quantize", model, "--format", "fp8", "-o", tmp_path / "fp8")
    refused = enginix(*quantize)
    assert refused.returncode == 2
    match = re.match(r"(enginix calibrate .*), then (--calibration \S+)$", _fix(refused.stderr))
    assert match, refused.stderr
    command = shlex.split(match[1].replace("./", f"{tmp_path}/"))
    assert enginix(*command[1:]).returncode == 0
    option = shlex.split(match[2].replace("./", f"{tmp_path}/"))
    made = read_calibration(Path(option[1]))
    source.check_calibration(source.read_source_model(model), made, "data")


@pytest.mark.parametrize(
    ("options", "flag"),
    [(("--size", "9999"), "--size"), (("--sequence-length", "9999"), "--sequence-length")],
)
def test_the_option_that_a_short_text_names_works(
    enginix: Callable[..., Done], model: Path, tmp_path: Path, options: tuple[str, ...], flag: str
) -> None:
    text = tmp_path / "short.txt"
    text.write_text("A line of a short text.\n" * 200)
    words = ("calibrate", model, "-o", tmp_path / "out", "--text", text)
    refused = enginix(*words, *options)
    assert refused.returncode == 2
    named = re.search(rf"{flag} \d+", _fix(refused.stderr))
    assert named, refused.stderr
    assert enginix(*words, *named[0].split()).returncode == 0


def test_calibration_for_another_model_names_a_command_that_works(
    enginix: Callable[..., Done], model: Path, whole_words: Path, tmp_path: Path
) -> None:
    make_calibration(whole_words, tmp_path / "calibration", None, Recipe(2, 32))
    quantize = ("quantize", model, "--format", "fp8", "--calibration", tmp_path / "calibration")
    refused = enginix(*quantize, "-o", tmp_path / "fp8")
    assert refused.returncode == 2
    command = shlex.split(_fix(refused.stderr).split(": ", 1)[1].replace("./", f"{tmp_path}/"))
    assert enginix(*command[1:]).returncode == 0
    source.check_calibration(source.read_source_model(model), read_calibration(Path(command[-1])), "data")
