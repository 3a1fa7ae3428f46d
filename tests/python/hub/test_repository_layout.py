"""What ``enginix lock`` says of a repository before anything large is fetched, and addresses for names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_support import CONFIG, REPO

from enginix.cli import main
from enginix.errors import LockError, ModelError, UsageError
from enginix.hub import api
from enginix.hub.hub_urls import HubSource, parse_hub_source
from enginix.hub.lock import Selection, read_lock
from enginix.hub.locking import NewLock, make_lock
from hub import Hub

Start = Callable[..., Hub]
SHARDS = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
TOKENIZER = {"tokenizer.json": b"{}"}


def index(*shards: str) -> bytes:
    return json.dumps({"weight_map": {f"t{i}": shard for i, shard in enumerate(shards)}}).encode()


def lay_out(directory: Path, files: dict[str, bytes], config: bool = True) -> Path:
    if config:
        files = {"config.json": json.dumps(CONFIG).encode(), **files}
    for name, data in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return directory


def locked(start: Start, directory: Path, **select: tuple[str, ...]) -> NewLock:
    start(directory)
    return make_lock(REPO, Selection(**select))  # type: ignore[arg-type]


def paths_of(new: NewLock) -> list[str]:
    return [f.path for f in new.lock.files]


@pytest.mark.parametrize(
    ("files", "said", "fix"),
    [
        ({SHARDS[0]: b"x", "model.safetensors.index.json": index(*SHARDS)},
         f"names {SHARDS[1]}, which the repository does not have", "--revision"),
        ({"model.safetensors.index.json": index(*SHARDS), "model-1.safetensors": b"x"},
         "(2 such shards)", "incomplete"),
        ({"model.fp16.safetensors": b"x", **TOKENIZER}, "only as the variant 'fp16'", "save_pretrained"),
        ({"model-00001-of-00002.bf16.safetensors": b"x", **TOKENIZER}, "only as the variant 'bf16'", ""),
        ({"a.Q4_K_M.gguf": b"GGUF", "pytorch_model.bin": b"x"}, "is GGUF, llama.cpp's format", "safetensors"),
        ({"pytorch_model.bin": b"x"}, "is a pickle and is refused", "safetensors"),
        ({"tf_model.h5": b"x"}, "there is tf_model.h5", "safetensors"),
    ],
)  # fmt: skip
def test_a_repository_that_no_build_can_take_is_refused(
    start: Start, tmp_path: Path, files: dict[str, bytes], said: str, fix: str
) -> None:
    with pytest.raises(LockError) as refused:
        locked(start, lay_out(tmp_path / "r", files))
    assert said in refused.value.what and fix in str(refused.value.fix)


@pytest.mark.parametrize(
    ("files", "said", "fix"),
    [
        ({"adapter_config.json": json.dumps({"base_model_name_or_path": "a/base"}).encode(),
          "adapter_model.safetensors": b"x"}, "a LoRA adapter of a/base, not a model", "lock the base model"),
        ({"adapter_config.json": b"{}", "adapter_model.bin": b"x"}, "a LoRA adapter, not a model", "merge"),
        ({"params.json": b"{}", "consolidated.safetensors": b"x", "tekken.json": b"{}"},
         "Mistral's own layout", "convert_mistral_weights_to_hf"),
        ({"params.json": b"{}", "consolidated-00001-of-00002.safetensors": b"x"}, "Mistral's own", ""),
        ({"params.json": b"{}", "consolidated.00.pth": b"x", "tokenizer.model": b"x"}, "Mistral's own", ""),
        ({"config.json": b"{}", "adapter_config.json": b"{}", "adapter_model.safetensors": b"x"},
         "a LoRA adapter, not a model", "merge"),
        ({"config.json": b"{}", "consolidated.safetensors": b"x"}, "Mistral's own", ""),
        ({"config.json": b"{}", "params.json": b"{}", "consolidated-00001-of-00002.safetensors": b"x"},
         "Mistral's own", ""),
        ({"model_index.json": b"{}", "unet/x.safetensors": b"x"}, "a pipeline of diffusers", ""),
    ],
)  # fmt: skip
def test_another_layout_is_named(
    start: Start, tmp_path: Path, files: dict[str, bytes], said: str, fix: str
) -> None:
    with pytest.raises(LockError) as refused:
        locked(start, lay_out(tmp_path / "r", files, config=False))
    assert said in refused.value.what and fix in str(refused.value.fix)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"pytorch_model.safetensors": b"x"}, "weights only in pytorch_model.safetensors"),
        ({"model.safetensors": b"x", "model-fp16.safetensors": b"y"}, 'exclude "model-fp16.safetensors"'),
        ({"checkpoint/config.json": b"{}", "checkpoint/model.safetensors": b"x"},
         "there is checkpoint/config.json"),
    ],
)  # fmt: skip
def test_weights_that_nothing_reads_are_noted(
    start: Start, tmp_path: Path, files: dict[str, bytes], said: str
) -> None:
    nested = any("/" in name for name in files)
    new = locked(start, lay_out(tmp_path / "r", files, config=not nested))
    assert any(said in note for note in new.notes), new.notes


@pytest.mark.parametrize(
    "content",
    [b"version https://git-lfs.github.com/spec/v1\n", b"<html>", b'{"a": 1, "a": 2}', b"\xef\xbb\xbf{}"],
)
def test_bytes_of_the_hub_are_not_to_be_fetched_again(start: Start, tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ModelError) as refused:
        locked(start, lay_out(tmp_path / "r", {**WHOLE, "config.json": content}))
    assert "fetch" not in str(refused.value.fix) and "--revision" in str(refused.value.fix)


def test_an_adapter_is_locked_by_name(start: Start, tmp_path: Path) -> None:
    """As the error says: for lora.dirs of mkEngine."""
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"}
    new = locked(start, lay_out(tmp_path / "r", files, config=False), include=("adapter_*",))
    assert paths_of(new) == sorted(files)


WHOLE = {SHARDS[0]: b"x", SHARDS[1]: b"y", "model.safetensors.index.json": index(*SHARDS), **TOKENIZER}


@pytest.mark.parametrize(
    ("files", "left_out"),
    [
        ({"model.safetensors": b"x", "model.fp16.safetensors": b"y", **TOKENIZER},
         ["model.fp16.safetensors"]),
        ({**WHOLE, "model.fp16-00001-of-00001.safetensors": b"z",
          "model.safetensors.index.fp16.json": index("model.fp16-00001-of-00001.safetensors")},
         ["model.fp16-00001-of-00001.safetensors", "model.safetensors.index.fp16.json"]),
        ({**WHOLE, "model-00001-of-00003.safetensors": b"z"}, ["model-00001-of-00003.safetensors"]),
        ({**WHOLE, "model.safetensors": b"z"}, [*SHARDS, "model.safetensors.index.json"]),
        ({"model.safetensors": b"x", "model.safetensors.index.json": index("model-1-of-2.safetensors"),
          **TOKENIZER}, ["model.safetensors.index.json"]),
        (WHOLE, []),
        ({**WHOLE, "extra.safetensors": b"x", "model_mtp.safetensors": b"x"}, []),
        ({"model.safetensors": b"x", "consolidated.safetensors": b"x", **TOKENIZER}, None),
    ],
)  # fmt: skip
def test_weights_that_nothing_reads_are_left_out_and_named(
    start: Start, tmp_path: Path, files: dict[str, bytes], left_out: list[str] | None
) -> None:
    new = locked(start, lay_out(tmp_path / "r", files))
    expected = ["consolidated.safetensors"] if left_out is None else left_out
    assert paths_of(new) == sorted({*files, "config.json"} - set(expected))
    assert [n.split(" left out: ")[0] for n in new.notes if "left out" in n] == sorted(left_out or [])


def test_a_shard_that_a_pattern_leaves_out(start: Start, tmp_path: Path) -> None:
    with pytest.raises(LockError, match=f"{SHARDS[1]} is left out"):
        locked(start, lay_out(tmp_path / "r", WHOLE), exclude=("*-00002-of-*",))


@pytest.mark.parametrize("data", [b"{}", b'{"weight_map": {"a": "../x"}}', b"no", b'{"weight_map": []}'])
def test_a_damaged_index_is_an_error_of_the_lock(start: Start, tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ModelError) as refused:
        locked(start, lay_out(tmp_path / "r", {**WHOLE, "model.safetensors.index.json": data}))
    # The bytes were checked against the listing: to fetch them again gives the same.
    assert "report it to the model's author" in str(refused.value.fix)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"tokenizer.model": b"x"}, "no tokenizer.json, which kind reference, gates and the gateway need; "
         "there is tokenizer.model"),
        ({"vocab.json": b"{}", "merges.txt": b""}, "there is vocab.json"),
        ({"tekken.json": b"{}"}, "there is tekken.json"),
        ({"qwen.tiktoken": b"x"}, "there is qwen.tiktoken"),
        ({}, "no tokenizer: "),
        ({**TOKENIZER, "fp8/model.safetensors": b"x" * 2048}, "fp8/ has 2.0 KiB in 1 file of weights"),
    ],
)  # fmt: skip
def test_what_a_lock_lacks_or_has_too_much_is_a_note(
    start: Start, tmp_path: Path, files: dict[str, bytes], said: str
) -> None:
    new = locked(start, lay_out(tmp_path / "r", {"model.safetensors": b"x", **files}))
    assert len(new.notes) == 1 and said in new.notes[0]


def test_a_good_repository_has_no_notes(start: Start, tmp_path: Path) -> None:
    assert locked(start, lay_out(tmp_path / "r", WHOLE)).notes == ()


ADDRESSES = {
    "https://huggingface.co/acme/tiny": HubSource("acme/tiny", "model", None),
    "https://huggingface.co/acme/tiny/": HubSource("acme/tiny", "model", None),
    "http://www.huggingface.co/acme/tiny?library=transformers#top": HubSource("acme/tiny", "model", None),
    "huggingface.co/acme/tiny": HubSource("acme/tiny", "model", None),
    "hf.co/acme/tiny": HubSource("acme/tiny", "model", None),
    "https://huggingface.co/gpt2": HubSource("gpt2", "model", None),
    "https://huggingface.co/gpt2/tree/main": HubSource("gpt2", "model", "main"),
    "https://huggingface.co/acme/tiny.git": HubSource("acme/tiny", "model", None),
    "https://huggingface.co/acme/tiny/tree/v1.0": HubSource("acme/tiny", "model", "v1.0"),
    "https://huggingface.co/acme/tiny/tree/refs%2Fpr%2F1": HubSource("acme/tiny", "model", "refs/pr/1"),
    "https://huggingface.co/acme/tiny/blob/main/config.json": HubSource("acme/tiny", "model", "main"),
    "https://huggingface.co/acme/tiny/resolve/abc/x/y.json": HubSource("acme/tiny", "model", "abc"),
    "https://huggingface.co/acme/tiny/discussions/3": HubSource("acme/tiny", "model", None),
    "https://huggingface.co/datasets/acme/texts": HubSource("acme/texts", "dataset", None),
    "https://huggingface.co/datasets/acme/texts/viewer": HubSource("acme/texts", "dataset", None),
    "hf://acme/tiny": HubSource("acme/tiny", "model", None),
    "hf://datasets/acme/texts": HubSource("acme/texts", "dataset", None),
    "hf://acme/tiny@v2": HubSource("acme/tiny", "model", "v2"),
    "acme/tiny": HubSource("acme/tiny", "model", None),
    "gpt2": HubSource("gpt2", "model", None),
    "": HubSource("", "model", None),
}


@pytest.mark.parametrize("text", ADDRESSES)
def test_addresses_of_the_hub_are_names(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert parse_hub_source(text) == ADDRESSES[text]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("../x", "no such file or directory"),
        ("https://example.com/acme/tiny", "another host"),
        ("https://huggingface.co.evil.example/acme/tiny", "another host"),
        ("git@hf.co:acme/tiny", None),
        ("https://[::1/acme/tiny", "another host"),
        ("https://huggingface.co", "no model and no dataset"),
        ("https://huggingface.co/spaces/acme/demo", "no model and no dataset"),
        ("https://huggingface.co/acme/../x", "no model and no dataset"),
        ("https://github.com/acme/tiny", "another host"),
        ("ssh://git@hf.co/acme/tiny", ""),
    ],
)
def test_other_addresses_are_refused(
    text: str, said: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    if said is None:  # no address: a name that the Hub's rules refuse
        assert parse_hub_source(text).name == text
    elif said == "":
        assert parse_hub_source(text).name == "acme/tiny"
    else:
        with pytest.raises(UsageError, match=said):
            parse_hub_source(text)


def test_an_address_is_locked_and_inspected(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = start(lay_out(tmp_path / "r", {"model.safetensors": b"x", **TOKENIZER}))
    out = tmp_path / "x.lock.json"
    address = f"{hub.endpoint}/{REPO}/tree/main"
    assert main(["lock", address, "-o", str(out)]) == 0
    assert read_lock(out).repo == REPO
    assert main(["lock", address, "--revision", "v9", "-o", str(out)]) == 2
    assert "--revision v9, but the address names main" in capsys.readouterr().err
    assert main(["lock", f"https://user:secret-word@example.com/{REPO}", "-o", str(out)]) == 2
    assert "secret-word" not in capsys.readouterr().err
    # The weights are one byte: the model is found, its weights are not read.
    assert main(["inspect", address]) == 3
    assert "model.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("now", "note"), [("acme/renamed", "names it acme/renamed now"), (REPO, ""), ("../x", ""), (7, "")]
)
def test_a_renamed_repository_is_told(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: object, note: str
) -> None:
    """The Hub redirects an old name, and its answer has the new one."""
    real = api._fetch_json

    def renamed(path: str, repo: str) -> tuple[Any, str | None]:
        answer, following = real(path, repo)
        return ({**answer, "id": now}, following) if isinstance(answer, dict) else (answer, following)

    monkeypatch.setattr(api, "_fetch_json", renamed)
    new = locked(start, lay_out(tmp_path / "r", WHOLE))
    assert new.lock.repo == REPO and len(new.notes) == bool(note)
    assert all(note in said for said in new.notes)
