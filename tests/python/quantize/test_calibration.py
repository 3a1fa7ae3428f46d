"""Calibration data: the same bytes for the same inputs, no text lost or invented, bad input refused."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginix import manifest
from enginix.cli import main
from enginix.errors import EnginixError, ManifestError, ModelError, UsageError
from enginix.files import sha256_file
from enginix.quantize import calibration, calibration_text
from enginix.quantize.calibration import (
    CALIBRATION_FILE,
    Recipe,
    draw_rows,
    dump_calibration,
    find_default_text,
    make_calibration,
    read_calibration,
)
from enginix.tables import load_table


class Characters:
    """A stand-in tokenizer: a token a character, 1 at the end, 2 at the start where ``bos`` says so."""

    eos_token_id: int | None = 1

    def __init__(self, bos: bool = False) -> None:
        self.bos_token_id = 2 if bos else None

    def __call__(self, words: str, add_special_tokens: bool, verbose: bool) -> dict[str, list[int]]:
        start = [2] if add_special_tokens and self.bos_token_id else []
        return {"input_ids": start + [ord(c) + 3 for c in words]}


def _documents(*words: str) -> list[calibration_text.Document]:
    return [calibration_text.Document(w) for w in words]


def test_same_inputs_same_bytes(model: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_calibration(model, tmp_path / name, None, Recipe(8, 64))
    assert (tmp_path / "a" / CALIBRATION_FILE).read_bytes() == (
        tmp_path / "b" / CALIBRATION_FILE
    ).read_bytes()
    assert (tmp_path / "a/enginix.json").read_bytes() == (tmp_path / "b/enginix.json").read_bytes()


@pytest.mark.parametrize("other", [Recipe(8, 64, 7), Recipe(9, 64), Recipe(8, 65)])
def test_every_option_changes_the_bytes(model: Path, tmp_path: Path, other: Recipe) -> None:
    one = make_calibration(model, tmp_path / "a", None, Recipe(8, 64))
    two = make_calibration(model, tmp_path / "b", None, other)
    assert one.sha256 != two.sha256 and one.about != two.about


def test_what_is_written_is_read(calibration: Path, model: Path) -> None:
    data = read_calibration(calibration)
    assert data.tokens.shape == (16, 96) and data.tokens.dtype == np.int32
    assert data.sha256 == sha256_file(calibration)
    assert read_calibration(calibration.parent).sha256 == data.sha256
    assert data.about["tokenizer"]["tokenizer.json"] == sha256_file(model / "tokenizer.json")
    found = manifest.read_manifest(calibration.parent, "calibration")
    assert found.results["sha256"] == data.sha256
    assert found.options == {"size": 16, "sequenceLength": 96, "seed": 1234, "field": "text"}


def test_needs_no_weights(tokenizer_only: Path, tmp_path: Path, calibration: Path) -> None:
    done = make_calibration(tokenizer_only, tmp_path / "out", None, Recipe(16, 96))
    assert done.sha256 == sha256_file(calibration)


def test_the_tokens_are_the_texts(model: Path, calibration: Path) -> None:
    """Decoded, each row is found in the documents, end of text between them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    path, _ = find_default_text()
    whole = "\0".join(json.loads(line)["text"] for line in path.read_text("utf-8").splitlines())
    for row in read_calibration(calibration).tokens[:4]:
        for part in tokenizer.decode(row).split(tokenizer.eos_token):
            inside = part.strip("\ufffd")  # a row may cut a character
            assert inside in whole


def test_the_default_text_is_what_the_table_says() -> None:
    path, told = find_default_text()
    row = load_table("calibration")["texts"][told["name"]]
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert row["licence"] == "PSF-2.0" and path.stat().st_size == row["size"]
    assert len(rows) == row["documents"]
    assert sorted({r["language"] for r in rows}) == sorted(row["languages"])
    assert {r["source"] for r in rows} <= row["source"]["files"].keys()
    assert len({r["text"] for r in rows}) == len(rows)


def test_a_changed_default_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = json.loads(json.dumps(load_table("calibration")))
    rows["texts"]["manual"]["sha256"] = "0" * 64
    monkeypatch.setattr(calibration, "load_table", lambda _: rows)
    with pytest.raises(ModelError, match=r"not the file that calibration\.json pins"):
        find_default_text()


@settings(max_examples=60)
@given(
    st.lists(st.text("abc ", min_size=1), min_size=1, max_size=6),
    st.integers(1, 4),
    st.integers(2, 9),
    st.booleans(),
    st.integers(0, 3),
)
def test_rows_are_a_cut_of_the_stream(words: list[str], size: int, length: int, bos: bool, seed: int) -> None:
    recipe = Recipe(size, length, seed)
    try:
        rows = draw_rows(Characters(bos), _documents(*words), recipe)
    except UsageError as e:
        width = length - bos
        assert sum(len(w) + 1 for w in words) // width < size, e
        return
    assert rows.shape == (size, length)
    body = rows[:, 1:] if bos else rows
    if bos:
        assert (rows[:, 0] == 2).all()
    stream = "".join("|" if t == 1 else chr(t - 3) for t in body.reshape(-1))
    whole = [w + "|" for w in words]
    while stream:  # documents, each whole but the last, none twice
        found = next((w for w in sorted(whole, key=len, reverse=True) if stream.startswith(w)), None)
        if found is None:
            assert any(w.startswith(stream) for w in whole)
            break
        whole.remove(found)
        stream = stream[len(found) :]


def test_the_seed_orders_the_documents() -> None:
    words = _documents(*"abcdefgh")
    drawn = {draw_rows(Characters(), words, Recipe(1, 16, seed)).tobytes() for seed in range(8)}
    assert len(drawn) > 1


def test_rendered_chats_get_no_second_end(model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    lines = [{"messages": [{"role": "user", "content": f"What is {n} plus {n}?"}]} for n in range(40)]
    source = tmp_path / "chats.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = make_calibration(model, tmp_path / "out", source, Recipe(2, 64, field="messages"))
    decoded = tokenizer.decode(data.tokens.reshape(-1))
    assert decoded.count("<|im_start|>user") > 3 and "What is" in decoded
    assert tokenizer.eos_token * 2 not in decoded


def test_files_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/a.txt").write_text("first text\n")
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as f:
        f.write('{"text": "second text"}\n\n')
    (tmp_path / "README.md").write_text("not a text to calibrate with")
    found = [d.text for d in calibration_text.read_documents(tmp_path, "text", lambda _: "")]
    assert sorted(found) == ["first text", "second text"]
    before = calibration_text.hash_text_files(tmp_path)
    (tmp_path / "deep/a.txt").rename(tmp_path / "deep/c.txt")
    assert calibration_text.hash_text_files(tmp_path) != before  # names order the documents


def test_a_book_is_cut_at_blank_lines(tmp_path: Path) -> None:
    paragraph = "word " * 100
    (tmp_path / "book.txt").write_text("\n\n".join([paragraph] * 50))
    found = list(calibration_text.read_documents(tmp_path / "book.txt", "text", lambda _: ""))
    assert 3 < len(found) < 50
    assert "".join("".join(d.text.split()) for d in found) == "word" * 5000


BAD: dict[str, tuple[str, bytes, str]] = {
    "not UTF-8": ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
    "not JSON": ("a.jsonl", b'{"text": ', r"a\.jsonl:1: not JSON"),
    "no field": ("a.jsonl", b'{"content": "x"}\n', "no field 'text'; it has: content"),
    "no text": ("a.jsonl", b'{"text": 3}\n', "neither text nor a list"),
    "empty": ("a.jsonl", b'{"text": ""}\n', "neither text nor a list"),
    "deep": ("a.jsonl", b'{"text": ' + b"[" * 100_000, "not JSON"),
    "a list": ("a.jsonl", b'["x"]\n', "no object"),
    "half a surrogate pair": ("a.jsonl", b'{"text": "\\ud800"}\n', "half a surrogate pair"),
    "half a pair in a chat": (
        "a.jsonl",
        b'{"text": [{"role": "user", "content": "\\ud800"}]}\n',
        "half a surrogate pair",
    ),
    "truncated gzip": ("a.txt.gz", gzip.compress(b"text " * 9999)[:-20], "cannot be read"),
    "no gzip": ("a.jsonl.gz", b"text", "cannot be read"),
    "Parquet": ("a.parquet", b"PAR1", "not one of"),
    "too short": ("a.txt", b"one two three", "1 document has .* tokens: 0 rows"),
    "nothing": ("a.txt", b"", "0 documents have 0 tokens"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_texts_are_refused(case: str, model: Path, tmp_path: Path) -> None:
    name, content, message = BAD[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EnginixError, match=message):
        make_calibration(model, tmp_path / "out", tmp_path / name, Recipe(2, 32))
    assert not (tmp_path / "out").exists()


def test_a_directory_of_parquet_says_what_to_do(model: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train.parquet").write_bytes(b"PAR1")
    with pytest.raises(UsageError, match=r"it has \.parquet(.|\n)*as JSONL"):
        make_calibration(model, tmp_path / "out", tmp_path / "data", Recipe(2, 32))


def test_a_chat_without_a_template(tokenizer_only: Path, tmp_path: Path) -> None:
    (tokenizer_only / "chat_template.jinja").unlink()
    settings_file = tokenizer_only / "tokenizer_config.json"
    settings_file.write_text(json.dumps(json.loads(settings_file.read_text()) | {"chat_template": None}))
    (tmp_path / "a.jsonl").write_text('{"text": [{"role": "user", "content": "x"}]}\n')
    with pytest.raises(UsageError, match="no chat template"):
        make_calibration(tokenizer_only, tmp_path / "out", tmp_path / "a.jsonl", Recipe(2, 32))


def test_a_template_that_refuses_its_messages(tokenizer_only: Path, tmp_path: Path) -> None:
    (tokenizer_only / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    (tmp_path / "a.jsonl").write_text('{"text": [{"role": "user", "content": "x"}]}\n')
    with pytest.raises(UsageError, match="the chat template refuses messages: roles must alternate"):
        make_calibration(tokenizer_only, tmp_path / "out", tmp_path / "a.jsonl", Recipe(2, 32))


@pytest.mark.parametrize("sizes", [(0, 5), (5, 0), (-1, 5), (1 << 40, 5)])
def test_impossible_sizes(sizes: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="is not between"):
        Recipe(*sizes)


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no tokenizer in it"):
        make_calibration(tmp_path, tmp_path / "out", None, Recipe(2, 32))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be read"):
        make_calibration(tmp_path, tmp_path / "out", None, Recipe(2, 32))


def _damaged(path: Path, change: str) -> None:
    good = read_calibration(path)
    about: dict[str, Any] = dict(good.about)
    tokens = good.tokens
    if change == "format":
        about["format"] = 2
    elif change == "tokenizer":
        del about["tokenizer"]
    elif change == "negative":
        tokens = -tokens - 1
    elif change == "float":
        tokens = tokens.astype(np.float32)  # type: ignore[assignment]
    elif change == "flat":
        tokens = tokens.reshape(-1)
    elif change == "empty":
        tokens = tokens[:0]
    path.write_bytes(dump_calibration(tokens, about))


@pytest.mark.parametrize("change", ["format", "tokenizer", "negative", "float", "flat", "empty"])
def test_files_that_lie_are_refused(change: str, calibration: Path, tmp_path: Path) -> None:
    path = tmp_path / CALIBRATION_FILE
    shutil.copyfile(calibration, path)
    _damaged(path, change)
    with pytest.raises(ModelError, match="enginix calibrate"):
        read_calibration(path)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_garbage_is_refused_by_name(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    good = dump_calibration(np.zeros((2, 3), np.int32), {"format": 1, "text": {}, "tokenizer": {}})
    raw = bytearray(good)
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    else:
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("x") / CALIBRATION_FILE
    path.write_bytes(raw)
    try:
        assert read_calibration(path).tokens.dtype == np.int32
    except EnginixError as e:
        assert e.where


def test_the_command(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["calibrate", str(model), "-o", str(tmp_path / "out")]
    words += ["--size", "4", "--sequence-length", "32", "--json"]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["sha256"] == sha256_file(tmp_path / "out" / CALIBRATION_FILE)
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err


def test_the_command_reads_the_tokenizer_without_torch(model: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from enginix.cli import main; code = main()\n"
        "print('transformers' in sys.modules, sys.modules['torch'], code)"
    )
    words = ("calibrate", model, "-o", tmp_path / "out", "--size", "4", "--sequence-length", "32", "--json")
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "python")},
        capture_output=True,
        text=True,
        check=True,
    )
    told, modules = done.stdout.rstrip().rsplit("\n", 1)
    assert modules == "True None 0"
    # In this process transformers finds PyTorch.
    assert (
        make_calibration(model, tmp_path / "here", None, Recipe(4, 32)).sha256 == json.loads(told)["sha256"]
    )


def test_an_output_that_exists_is_refused_before_anything_is_read(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_nothing(*_: object) -> Any:
        raise AssertionError("the text was read")

    monkeypatch.setattr(calibration, "find_default_text", read_nothing)
    monkeypatch.setattr(calibration, "load_tokenizer", read_nothing)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/kept").touch()
    with pytest.raises(UsageError, match="exists already"):
        make_calibration(model, tmp_path / "out", None, Recipe(2, 32))
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "kept"]


def _dataset(directory: Path, **files: str) -> Path:
    """What ``enginix fetch`` makes of a dataset's lock."""
    directory.mkdir()
    for name, content in files.items():
        (directory / f"{name}.jsonl").write_text(content)
    digests = {p.name: sha256_file(p) for p in directory.iterdir()}
    inputs = {"repo": "acme/texts", "revision": "0" * 40, "license": "cc0-1.0", "files": digests}
    manifest.Manifest("dataset", "texts", inputs=inputs).write(directory)
    return directory


def test_a_dataset_is_named(model: Path, tmp_path: Path) -> None:
    lines = '{"said": "a line of text that is long enough", "text": 7}\n' * 20
    source = _dataset(tmp_path / "texts", train=lines)
    done = make_calibration(model, tmp_path / "out", source, Recipe(2, 16, 1, "said"))
    named = {"repo": "acme/texts", "revision": "0" * 40, "license": "cc0-1.0"}
    assert done.about["text"]["dataset"] == named
    assert manifest.read_manifest(tmp_path / "out").inputs["text"]["dataset"] == named
    assert manifest.read_manifest(tmp_path / "out").options["field"] == "said"


@pytest.mark.parametrize("inside", ["data/train.jsonl", "data"])
def test_a_part_of_a_dataset_is_named(model: Path, tmp_path: Path, inside: str) -> None:
    whole = tmp_path / "texts"
    (whole / "data").mkdir(parents=True)
    path = whole / "data/train.jsonl"
    path.write_text('{"text": "a line of text that is long enough"}\n' * 20)
    named = {"repo": "acme/texts", "revision": "0" * 40, "license": "cc0-1.0"}
    files = {"data/train.jsonl": sha256_file(path)}
    manifest.Manifest("dataset", "texts", inputs={**named, "files": files}).write(whole)
    done = make_calibration(model, tmp_path / "out", whole / inside, Recipe(2, 16))
    assert done.about["text"]["dataset"] == named
    path.write_text('{"text": "another line, which is not pinned"}\n' * 20)
    with pytest.raises(
        ModelError, match=r"data/train\.jsonl differs from the file that the dataset's lock pins"
    ):
        make_calibration(model, tmp_path / "again", whole / inside, Recipe(2, 16))


def test_text_beside_another_artefact_is_no_dataset(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a line of text that is long enough " * 20)
    manifest.Manifest("model", "texts").write(tmp_path)
    assert (
        "dataset"
        not in make_calibration(model, tmp_path / "out", tmp_path / "a.txt", Recipe(2, 16)).about["text"]
    )


@pytest.mark.parametrize("damage", ["changed", "added", "no files", "manifest"])
def test_a_dataset_that_is_not_what_was_pinned_is_not_named(model: Path, tmp_path: Path, damage: str) -> None:
    source = _dataset(tmp_path / "texts", train='{"text": "a line of text that is long enough"}\n' * 20)
    if damage == "changed":
        (source / "train.jsonl").write_text('{"text": "another line"}\n' * 50)
    elif damage == "added":
        (source / "more.txt").write_text("more")
    elif damage == "no files":
        manifest.Manifest("dataset", "texts", inputs={"repo": "acme/texts", "files": 7}).write(source)
    else:
        (source / "enginix.json").write_text("{")
    with pytest.raises((ModelError, ManifestError)):
        make_calibration(model, tmp_path / "out", source, Recipe(2, 16))
    assert not (tmp_path / "out").exists()


def test_the_terms_of_a_dataset_are_no_text(tmp_path: Path) -> None:
    for name in ("LICENSE.txt", "sub/NOTICE.txt", "a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert calibration_text.list_text_files(tmp_path) == [tmp_path / "a.txt"]
