"""What strangers write is read or refused: manifests, locks, an engine's answers. Never another error.

`make fuzz` runs these from random seeds; ten minutes of them alone:
``python tests/fuzz.py --minutes 10 tests/python/trust tests/python/hub/test_lock.py``.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from enginix.errors import EnginixError
from enginix.evaluation.engine_judgement.answer_record import RUNS, read_engine_answers
from enginix.evaluation.engine_protocol.answers_origin import require_answers_origin
from enginix.hub.lock import parse_lock
from enginix.manifest import Manifest, explain_ungated, read_golden, read_manifest, require_whole_manifest
from enginix.model.identity import is_same_model

MANIFEST = {
    "format": 2,
    "digest": "0" * 64,
    "artefact": "engine",
    "name": "tiny",
    "kind": "reference",
    "model": {"endTokens": [2]},
    "inputs": {"model": {"files": {"config.json": "0" * 64}}, "checkpoint": {"manifestSha256": "0" * 64}},
    "files": {"a/b.json": {"sha256": "0" * 64, "size": 3}, "model.py": {"link": "/x"}},
    "results": {"gates": {"logits": "passed"}, "golden": {"promptTokens": [1], "tokens": [2]}},
}
LOCK = {
    "version": 1,
    "repo": "acme/tiny",
    "revision": "b" * 40,
    "license": "mit",
    "gated": False,
    "model": {"layers": 4},
    "select": {"revision": "main", "include": ["*"], "exclude": [], "remoteCode": False},
    "files": {"config.json": {"sha256": "a" * 64, "size": 5}},
}
ANSWERS = {
    "format": 1,
    "material": "0",
    "kind": "tensorrt",
    "by": {},
    "passages": [3],
    "absent": {"logits": "none"},
    "misread": [],
    "limit": 9,
    "longest": 9,
    "runs": {run: [{"tokens": [1], "finish": "stop"}, None] for run in RUNS},
}

SCALARS = st.sampled_from(
    (
        *("null", "true", "-1", "0", "1e999", "-1e999", "NaN", "1.5", '""', '"\\ud800"', '"\\u0000"', "[]"),
        *('"../x"', '"' + "9" * 40 + '"', "9" * 40, "9" * 5000, "[" * 300 + "]" * 300),
        *("{}", '{"a":{"b":[1]}}', "[[]]"),
    )
)


@st.composite
def damage(draw: st.DrawFn, good: Any) -> bytes:
    """A good document with values exchanged, keys removed, or bytes changed."""
    value = json.loads(json.dumps(good))
    marks = []
    for number in range(draw(st.integers(0, 2))):
        at = value
        while isinstance(at, dict | list) and at:
            key = draw(st.sampled_from(sorted(at) if isinstance(at, dict) else list(range(len(at)))))
            if isinstance(at[key], dict | list) and at[key] and draw(st.booleans()):
                at = at[key]
                continue
            if isinstance(at, dict) and draw(st.integers(0, 4)) == 0:
                del at[key]
            else:
                at[key] = f"@{number}@"
                marks.append(f'"@{number}@"')
            break
    text = json.dumps(value)
    for mark in marks:
        text = text.replace(mark, draw(SCALARS))
    data = bytearray(text.encode())
    for _ in range(draw(st.integers(0, 2))):
        if data:
            at = draw(st.integers(0, len(data) - 1))
            data[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(data)


def read_or_refuse(read: Callable[[], object]) -> object:
    """Return what was read; None where it was refused, with a fix for people."""
    try:
        return read()
    except EnginixError as e:
        assert e.what and e.exit_code in (1, 3), repr(e)
        return None


@given(damage(MANIFEST))
def test_a_damaged_manifest(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "enginix.json").write_bytes(content)
        manifest = read_or_refuse(lambda: read_manifest(directory))
        read_or_refuse(lambda: require_whole_manifest(directory))
    if isinstance(manifest, Manifest):
        explain_ungated(manifest)
        read_golden(manifest)
        is_same_model(manifest.inputs.get("model"), MANIFEST["inputs"]["model"])


@given(damage(LOCK))
def test_a_damaged_lock(content: bytes) -> None:
    read_or_refuse(lambda: parse_lock(content, "x.lock.json"))


@given(damage(ANSWERS), damage({"manifestSha256": "0" * 64}))
@example(json.dumps({**ANSWERS, "passages": [], "limit": 1e999}).encode(), b"")
def test_damaged_answers(content: bytes, origin: bytes) -> None:
    import numpy as np

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        rows = {
            "0.ids": np.zeros((2, 4), np.int32),
            "0.logs": np.zeros((2, 4), np.float32),
            "0.text": np.zeros(2, np.float32),
        }
        save_file(rows, directory / "said.safetensors")
        (directory / "said.json").write_bytes(content)
        read_or_refuse(lambda: read_engine_answers(directory))
        (directory / "engine.json").write_bytes(origin)
        Manifest("engine", "e").write(directory)
        read_or_refuse(lambda: require_answers_origin(directory, directory))


def test_the_documents_are_good(tmp_path: Path) -> None:
    """Else the damage would be of what is refused anyway."""
    assert parse_lock(json.dumps(LOCK), "x").repo == "acme/tiny"
    (tmp_path / "enginix.json").write_text(json.dumps(MANIFEST))
    manifest = read_manifest(tmp_path)
    assert read_golden(manifest) is not None and explain_ungated(manifest) is None
    with pytest.raises(EnginixError, match="its digest differs"):
        require_whole_manifest(tmp_path)
