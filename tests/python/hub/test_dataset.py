"""Datasets are pinned and fetched as models are, at their own addresses."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hub_support import listing
from hypothesis import given
from hypothesis import strategies as st

from enginix import manifest
from enginix.cli import main
from enginix.errors import EnginixError, LockError
from enginix.hub import api, lock
from enginix.hub.lock import Lock, LockedFile, Selection
from hub import Fault, Hub, Repository

NAME = "acme/texts"
Start = Callable[..., Hub]


def enginix(*words: object) -> int:
    return main([*map(str, words)])


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Lines in a small and in a large file, a script and a table that no lock takes unasked."""
    directory = tmp_path / "upstream"
    (directory / "data").mkdir(parents=True)
    (directory / "README.md").write_text("---\nlicense: cc0-1.0\n---\n")
    (directory / "data/train.jsonl").write_text('{"text": "a line"}\n' * 100)
    (directory / "data/test.jsonl.gz").write_bytes(random.Random(1).randbytes(100_000))
    (directory / "data/train.parquet").write_bytes(b"PAR1")
    (directory / "texts.py").write_text("print('code')\n")
    (directory / "LICENSE").write_text("CC0\n")
    return directory


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Start]:
    """A hub with the dataset, and a model of the same name whose content is another."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"x" * 100)
    (model / "train.jsonl").write_text("{}\n")
    with ExitStack() as stack:

        def run(directory: Path | Repository, *faults: str, **options: Any) -> Hub:
            repositories = {f"datasets/{NAME}": directory, NAME: model}
            hub = stack.enter_context(Hub(repositories, faults=[Fault.parse(f) for f in faults], **options))
            monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
            return hub

        yield run


def test_one_file_is_no_files(
    start: Start, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start(texts)
    out = tmp_path / "texts.lock.json"
    assert enginix("lock", "--dataset", NAME, "--include", "data/train.jsonl", "-o", out) == 0
    assert enginix("fetch", out, "-o", tmp_path / "texts") == 0
    said = capsys.readouterr().out
    assert said.count(": 1 file, ") == 2 and "0 files kept" in said, said


@pytest.mark.parametrize("xet", [False, True])
def test_pinned_fetched_and_named(start: Start, texts: Path, tmp_path: Path, xet: bool) -> None:
    hub = start(texts, xet=xet)
    out = tmp_path / "texts.lock.json"
    assert enginix("lock", "--dataset", NAME, "-o", out) == 0
    raw = json.loads(out.read_text())
    assert (
        raw["type"] == "dataset"
        and raw["repo"] == NAME
        and raw["license"] == "cc0-1.0"
        and "model" not in raw
    )
    assert sorted(raw["files"]) == ["LICENSE", "data/test.jsonl.gz", "data/train.jsonl"]
    assert enginix("fetch", out, "-o", tmp_path / "texts") == 0
    found = manifest.read_manifest(tmp_path / "texts", "dataset")
    assert found.inputs["repo"] == NAME and found.inputs["revision"] == raw["revision"]
    got = listing(tmp_path / "texts")
    got.pop("enginix.json")
    assert got == {path: (texts / path).read_bytes() for path in raw["files"]}
    # Nothing was asked of the model of the same name.
    asked = [r["path"] for r in hub.requests if NAME in r["path"]]
    assert asked and all(f"/datasets/{NAME}" in path for path in asked)


def test_one_file(start: Start, texts: Path, tmp_path: Path) -> None:
    start(texts)
    made = tmp_path / "l.json"
    assert enginix("lock", "--dataset", NAME, "-o", made) == 0
    pinned = lock.read_lock(made)
    for f in pinned.files:
        words = (
            NAME,
            pinned.revision,
            f.path,
            "--sha256",
            f.sha256,
            "--size",
            f.size,
            "-o",
            tmp_path / "one",
        )
        assert enginix("fetch-file", "--dataset", *words) == 0
        assert (tmp_path / "one").read_bytes() == (texts / f.path).read_bytes()
        (tmp_path / "one").unlink()
        assert enginix("fetch-file", *words) == 4, "the model of that name has no such commit"


def test_a_dataset_that_changed(
    start: Start, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start(texts)
    made = tmp_path / "l.json"
    assert enginix("lock", "--dataset", NAME, "-o", made) == 0
    assert enginix("lock", "--check", made) == 0
    before = made.read_text()
    (texts / "data/train.jsonl").write_text('{"text": "b line"}\n' * 100)
    capsys.readouterr()
    assert enginix("lock", "--check", made) == 1
    assert "~ data/train.jsonl" in capsys.readouterr().out and made.read_text() == before
    assert enginix("fetch", made, "-o", tmp_path / "out") == 4
    assert "is pinned" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert enginix("lock", "--update", made) == 0
    assert lock.read_lock(made).type == "dataset"
    assert enginix("fetch", made, "-o", tmp_path / "out") == 0


def test_a_table_alone_is_refused_with_what_to_do(
    start: Start, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in ("data/train.jsonl", "data/test.jsonl.gz"):
        (texts / path).unlink()
    (texts / "LICENSE.txt").write_text("terms are no text to calibrate on")
    start(texts)
    out = tmp_path / "l.json"
    assert enginix("lock", "--dataset", NAME, "-o", out) == 3
    said = capsys.readouterr().err
    assert "no JSONL and no text in it; there is data/train.parquet" in said and "mkCalibration" in said
    assert enginix("lock", "--dataset", NAME, "--include", "*.parquet", "-o", out) == 0
    assert [f.path for f in lock.read_lock(out).files] == ["data/train.parquet"]


def test_names_and_types_that_do_not_fit(
    start: Start, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start(texts)
    out = tmp_path / "l.json"
    assert enginix("lock", "--dataset", "texts", "-o", out) == 3
    assert "named with its owner" in capsys.readouterr().err
    assert enginix("lock", "--dataset", "acme/nothing", "-o", out) == 4
    assert "datasets/acme/nothing: no such repository" in capsys.readouterr().err
    assert enginix("lock", "--dataset", "../x", "-o", out) == 2
    assert enginix("lock", NAME, "-o", out) == 0
    assert lock.read_lock(out).type == "model" and "type" not in json.loads(out.read_text())
    assert enginix("lock", "--dataset", "--check", out) == 2
    out.unlink()
    assert enginix("lock", "--dataset", NAME, "-o", out) == 0
    assert enginix("compare", out) == 3
    words = ("main", "a.txt", "--sha256", "0" * 64, "--size", "1", "-o", tmp_path / "x")
    assert enginix("fetch-file", "--dataset", NAME, *words) == 2
    assert f"enginix lock --dataset {NAME} --revision main" in capsys.readouterr().err


def test_a_gated_dataset_names_its_own_page(
    start: Start, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = start(Repository({"main": texts}, gated="auto"), tokens=["hf_x"])
    assert enginix("lock", "--dataset", NAME, "-o", tmp_path / "l.json") == 4
    assert f"{hub.endpoint}/datasets/{NAME}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"type": "space"}, "neither"),
        ({"type": None}, "neither"),
        ({"type": ["dataset"]}, "neither"),
        ({"repo": "texts"}, "has no owner"),
        ({"repo": "datasets/acme/texts"}, "is not owner/name"),
        ({"model": {"layers": 4}}, "no facts of a model"),
    ],
)
def test_each_lie_of_a_lock_is_named(keys: dict[str, Any], says: str) -> None:
    good = {
        "version": 1, "type": "dataset", "repo": NAME, "revision": "0" * 40, "license": None, "gated": False,
        "files": {"a.txt": {"sha256": "a" * 64, "size": 1}},
    }  # fmt: skip
    assert lock.parse_lock(json.dumps(good), "x").address == f"datasets/{NAME}"
    with pytest.raises(LockError, match=says):
        lock.parse_lock(json.dumps({**good, **keys}), "x")


parts = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_]{0,8}", fullmatch=True)


@given(parts, parts, st.sampled_from(["model", "dataset"]))
def test_an_address_is_one_repository(owner: str, name: str, type_: Any) -> None:
    made = Lock(
        f"{owner}/{name}", "0" * 40, None, False, {}, (LockedFile("a", 1, "a" * 64),), Selection(), type_
    )
    assert lock.split_address(made.address) == (made.repo, type_)
    assert lock.parse_lock(made.dump(), "x") == made
    assert (f"/api/{type_}s/{made.repo}") == api._build_api_path(made.address)


@given(st.text(max_size=30) | st.text(alphabet="datsemo/.-_", max_size=30).map(lambda t: f"datasets/{t}"))
def test_any_address_is_split_or_refused(text: str) -> None:
    found = lock.split_address(text)
    if found is None:
        with pytest.raises(EnginixError):
            api.fetch_repo_info(text)
    else:
        assert lock.REPO.fullmatch(found[0]) and ".." not in text and lock.format_address(*found) == text
