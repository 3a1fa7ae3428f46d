"""What somebody puts beside or behind an artefact's files: named and refused, in bounded time."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from enginix import digests
from enginix.errors import ManifestError
from enginix.integrity import check_artefact
from enginix.serve.preflight import check_repository

from .conftest import Stages
from .tampering import SERVER


def add_deep_directories(engine: Path) -> None:
    directory = os.open(engine, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=directory)
        below = os.open("d", os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = below
    os.close(directory)


def add_sparse_weights(engine: Path) -> None:
    with (engine / "more.safetensors").open("wb") as file:
        file.truncate(1 << 40)


def grow_weights(engine: Path) -> None:
    os.truncate(engine / "checkpoint" / "rank0.safetensors", 1 << 40)


ADDED: dict[str, tuple[Callable[[Path], object], str]] = {
    "directories without end": (add_deep_directories, "nested deeper than 64"),
    "a terabyte of holes": (add_sparse_weights, "more.safetensors was added"),
    "weights of a terabyte": (grow_weights, "rank0.safetensors changed"),
    "a link to all processes": (
        lambda e: (e / "all").symlink_to("/proc"),
        "cannot be read|more than|added|circle",
    ),
    "a name that is no text": (
        lambda e: Path(os.fsdecode(bytes(e) + b"/\xff")).touch(),
        r"\\udcff was added",
    ),
    "a name that moves the cursor": (lambda e: (e / "a\nb\x1b[2J").touch(), r"a\\nb\\x1b\[2J was added"),
    "a name in another case": (lambda e: (e / "Enginix.json").touch(), "Enginix.json was added"),
}


@pytest.mark.parametrize("what", ADDED)
def test_what_was_added_is_named(stages: Stages, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change, told = ADDED[what]
    monkeypatch.setattr(digests, "_MOST_FILES", 2000)
    change(stages.engine)
    try:
        with pytest.raises(ManifestError, match=told):
            check_artefact(stages.engine)
    finally:
        # Too deep for shutil, and so for pytest, which removes the directory later.
        subprocess.run(["rm", "-rf", stages.engine / "d"], check=True)


def put_into_store(path: Path, store: Path) -> Path:
    """Return a store path with a copy, links as they are, as ``nix-store --add`` makes it."""
    stored = store / f"qq8x6bjr3k2wvilqc1l7chivcyg6wj5h-{path.name}"
    shutil.copytree(path, stored, symlinks=True)
    stored.chmod(0o555)
    return stored


def test_a_link_out_of_a_store_is_not_covered_by_its_hash(
    stages: Stages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    monkeypatch.setattr(digests, "_find_store", lambda: str(store))
    weights = stages.engine / "checkpoint" / "rank0.safetensors"
    outside = tmp_path / "rank0.safetensors"
    weights.rename(outside)
    weights.symlink_to(outside)
    stored = put_into_store(stages.engine, store)
    assert check_artefact(stored).checked
    content = bytearray(outside.read_bytes())
    content[-1] ^= 1
    outside.write_bytes(content)
    with pytest.raises(ManifestError, match=r"rank0\.safetensors changed"):
        check_artefact(stored)


def test_a_repository_in_a_store_with_an_engine_outside(
    stages: Stages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    monkeypatch.setattr(digests, "_find_store", lambda: str(store))
    stored = put_into_store(stages.repository, store)
    assert check_repository(stored, SERVER).directory == stored
    with (stages.engine / "tokenizer" / "tokenizer.json").open("a") as file:
        file.write(" ")
    with pytest.raises(ManifestError, match=r"tokenizer\.json changed"):
        check_repository(stored, SERVER)
