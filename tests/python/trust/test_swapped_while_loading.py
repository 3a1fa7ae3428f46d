"""Files that change between the comparison of digests and loading are not served in silence."""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from enginix import manifest
from enginix.cli.serving.serve import start
from enginix.errors import EnginixError, ManifestError
from enginix.serve.preflight import check_repository
from enginix.serve.tritonserver import TritonServer

from .conftest import Stages

SERVER = TritonServer(Path("/nonexistent"), "reference", "2.68.0")
STARTS = 200 if os.environ.get("ENGINIX_SLOW") else 20
ATTACKED = (
    "engine/tokenizer/tokenizer.json",
    "engine/tokenizer/chat_template.jinja",
    "engine/tokenizer/generation_config.json",
    "engine/checkpoint/config.json",
    "engine/checkpoint/rank0.safetensors",
    "engine/enginix.json",
    "repository/ensemble/1/model.py",
    "repository/enginix.json",
)


def replace_file(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.swap.partial")
    beside.write_bytes(content)
    os.replace(beside, path)


def overwrite_file(path: Path, content: bytes) -> None:
    """Write in place, and restore the times, as somebody who hides it would."""
    status = path.stat()
    with path.open("r+b") as f:
        f.write(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def load_files(root: Path) -> str:
    """Return the digest of what a server's start reads."""
    return hashlib.sha256(b"".join((root / name).read_bytes() for name in ATTACKED)).hexdigest()


@contextmanager
def swapping(root: Path, write: Callable[[Path, bytes], None]) -> Iterator[None]:
    """Change files and restore them in a loop, at random moments."""
    chance, is_over = random.Random(17), threading.Event()
    healthy = {name: (root / name).read_bytes() for name in ATTACKED}

    def swap() -> None:
        while not is_over.is_set():
            name = chance.choice(ATTACKED)
            place = chance.randrange(len(healthy[name]))
            changed = bytearray(healthy[name])
            changed[place] ^= 1
            write(root / name, bytes(changed))
            is_over.wait(chance.random() * 0.02)
            write(root / name, healthy[name])
            is_over.wait(chance.random() * 0.2)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        for name, content in healthy.items():
            write(root / name, content)


@pytest.mark.parametrize("write", [replace_file, overwrite_file])
def test_what_a_loop_of_swaps_changed_is_not_served(
    stages: Stages, write: Callable[[Path, bytes], None]
) -> None:
    healthy = load_files(stages.root)
    served: list[str] = []
    refused = 0
    with swapping(stages.root, write):
        for _ in range(STARTS):
            try:
                repository = check_repository(stages.repository, SERVER)
                content = load_files(stages.root)
                repository.require_unchanged()
            except (EnginixError, OSError):
                refused += 1
            else:
                served.append(content)
    assert refused, "no swap met a start"
    assert set(served) <= {healthy}
    repository = check_repository(stages.repository, SERVER)
    assert load_files(stages.root) == healthy
    repository.require_unchanged()


@pytest.mark.parametrize("name", ATTACKED)
def test_a_file_that_was_swapped_and_restored_while_it_was_loaded(stages: Stages, name: str) -> None:
    repository = check_repository(stages.repository, SERVER)
    path = stages.root / name
    content = path.read_bytes()
    overwrite_file(path, content[:-1] + bytes([content[-1] ^ 1]))
    overwrite_file(path, content)
    with pytest.raises(ManifestError, match="changed while it was read"):
        repository.require_unchanged()


def test_a_manifest_is_read_once_and_is_the_one_that_was_compared(
    stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_and_change(path: Path) -> bytes:
        content = read_bytes(path)
        if path == file:
            path.write_text("{}")
        return content

    file = stages.engine / manifest.MANIFEST_FILE
    whole, read_bytes = manifest.read_manifest(stages.engine), Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", read_and_change)
    assert manifest.require_whole_manifest(stages.engine) == whole
    with pytest.raises(ManifestError, match="not a manifest"):
        manifest.require_whole_manifest(stages.engine)


def test_an_added_file_and_a_swapped_directory(stages: Stages) -> None:
    repository = check_repository(stages.repository, SERVER)
    (stages.engine / "tokenizer/added_tokens.json").write_text("{}")
    with pytest.raises(ManifestError, match=r"added_tokens\.json: changed while it was read"):
        repository.require_unchanged()
    (stages.engine / "tokenizer/added_tokens.json").unlink()
    repository.require_unchanged()
    shutil.copytree(stages.engine / "tokenizer", stages.root / "other")
    shutil.rmtree(stages.engine / "tokenizer")
    (stages.root / "other").rename(stages.engine / "tokenizer")
    with pytest.raises(ManifestError, match="changed while it was read"):
        repository.require_unchanged()


def test_a_server_is_not_ready_with_files_that_changed(
    stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = check_repository(stages.repository, SERVER)
    notices: list[str] = []

    class IdleServer:
        def __init__(self, *_: object) -> None: ...
        def __enter__(self) -> IdleServer:
            return self

        def __exit__(self, *_: object) -> None:
            notices.append("ended")

    def load_other_files(*_: object) -> float:
        template = stages.engine / "tokenizer/chat_template.jinja"
        content = template.read_bytes()
        replace_file(template, b"{{ messages | upper }}")
        replace_file(template, content)
        return 1.0

    monkeypatch.setattr(start, "SupervisedServer", IdleServer)
    monkeypatch.setattr(start, "await_ready", load_other_files)
    monkeypatch.setattr(start, "notify_systemd", notices.append)
    args = argparse.Namespace(host="127.0.0.1", verbose=False, start_timeout=5.0)
    spec: Any = SimpleNamespace(endpoints=SimpleNamespace(http=1), agent=None)
    with pytest.raises(ManifestError, match="changed while it was read"):
        start.serve_repository(args, spec, repository)
    assert notices == ["ended"]
