"""A hub on loopback for every test, with the faults that the test asks for."""

from __future__ import annotations

import functools
import json
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from hub_support import CONFIG, REPO, content  # noqa: E402

from hub import Fault, Hub, Repository  # noqa: E402


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A repository's directory: two shards, small files, a licence, a pickle that no lock takes."""
    directory = tmp_path / "upstream"
    (directory / "sub").mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    (directory / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE"}}))
    (directory / "sub" / "notes.txt").write_text("a small file in a folder\n")
    (directory / "README.md").write_text("---\nlicense: apache-2.0\n---\nA model.\n")
    (directory / "empty.txt").write_bytes(b"")
    (directory / "training_args.bin").write_bytes(b"\x80\x04.")
    for n in (1, 2):
        (directory / f"model-0000{n}-of-00002.safetensors").write_bytes(content(n, 3_000_000 + n))
    return directory


# A client that could not connect is made anew, with all authorities that this machine trusts.
_create_context = functools.cache(ssl.create_default_context)


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Hub]]:
    """Starts a hub and points HF_ENDPOINT at it: ``start(directory, *faults, **options)``."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(ssl, "create_default_context", _create_context)
    with ExitStack() as stack:

        def run(directory: Path | Repository, *faults: str, **options: Any) -> Hub:
            # Short where a fault waits for it; a hub on a busy machine is late without one.
            stalls = any(f.startswith("stall") for f in faults)
            monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5 if stalls else 30)
            hub = stack.enter_context(
                Hub({REPO: directory}, faults=[Fault.parse(f) for f in faults], **options)
            )
            monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
            return hub

        yield run


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waiting before another try takes a hundredth of its time; the times asked for are kept here."""
    import huggingface_hub.file_download as file_download
    import huggingface_hub.utils._http as http

    from enginix.hub import api, transfer

    monkeypatch.setattr(transfer, "LONGEST_PAUSE", 0.02)
    monkeypatch.setattr(transfer, "TRIES", 3)
    asked: list[float] = []

    def sleep(seconds: float) -> None:
        asked.append(seconds)
        time.sleep(seconds / 100)

    clock = SimpleNamespace(sleep=sleep, time=time.time, monotonic=time.monotonic)
    for module in (http, file_download, api):
        monkeypatch.setattr(module, "time", clock)
    return asked
