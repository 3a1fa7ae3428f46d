"""Headers and indexes from strangers: every lie is a named error, never a traceback."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginix.errors import ModelError
from enginix.model import open_weights, read_header

GOOD = {
    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "b": {"dtype": "U8", "shape": [], "data_offsets": [8, 9]},
}


def file_of(header: Any, data: bytes = bytes(9)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def changed(**changes: Any) -> dict[str, Any]:
    return GOOD | {"a": GOOD["a"] | changes}


def test_a_good_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(file_of(GOOD | {"__metadata__": {"format": "pt"}}))
    header = read_header(path)
    assert header.tensors["a"].nbytes == 8 and header.tensors["b"].shape == ()
    assert header.tensors["b"].end == path.stat().st_size and header.metadata == {"format": "pt"}


LIES = {
    "empty": b"",
    "short": b"\x01\x02",
    "length beyond the file": struct.pack("<Q", 1 << 62) + b"{}",
    "length of all ones": b"\xff" * 8 + b"{}",
    "no JSON": file_of(b"{not json"),
    "no object": file_of(b"[]"),
    "not UTF-8": file_of(b'{"\xff\xfe": 1}'),
    "nested deep": file_of(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "duplicate key": file_of(b'{"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]},"a":{}}'),
    "NaN": file_of(b'{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,9]}}'),
    "unknown dtype": file_of(changed(dtype="F7")),
    "dtype of another type": file_of(changed(dtype=["F32"])),
    "negative size": file_of(changed(shape=[-2])),
    "size of another type": file_of(changed(shape=[True, 2])),
    "huge shape": file_of(changed(shape=[2**62, 2**62])),
    "endless shape": file_of(changed(shape=[1] * 1000 + [2])),
    "offsets reversed": file_of(changed(data_offsets=[8, 0])),
    "offsets beyond": file_of(changed(data_offsets=[0, 1 << 40], shape=[1 << 38])),
    "offsets overlap": file_of(changed(data_offsets=[1, 9])),
    "a hole": file_of({"a": GOOD["a"]}, bytes(16)),
    "a gap before": file_of({"b": {"dtype": "U8", "shape": [1], "data_offsets": [8, 9]}}),
    "shape too large": file_of(changed(shape=[3])),
    "bytes missing": file_of(GOOD, bytes(5)),
    "bytes too many": file_of(GOOD, bytes(10)),
    "entry of another type": file_of(GOOD | {"c": 3}),
    "unknown key": file_of(GOOD | {"c": {"dtype": "U8", "shape": [], "data_offsets": [9, 9], "x": 1}}),
    "metadata of numbers": file_of(GOOD | {"__metadata__": {"a": 1}}),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_named(lie: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(LIES[lie])
    with pytest.raises(ModelError) as e:
        read_header(path)
    assert e.value.fix and str(path) in str(e.value).splitlines()[0]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_damage_is_an_error_or_harmless(data: st.DataObject) -> None:
    """Bytes of a good file replaced, cut or added: a header or a ModelError, nothing else."""
    import tempfile

    good = bytearray(file_of(GOOD))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(good)))
        good[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    with tempfile.NamedTemporaryFile() as f:
        f.write(good)
        f.flush()
        try:
            header = read_header(Path(f.name))
        except ModelError:
            return
        for tensor in header.tensors.values():
            assert 0 <= tensor.begin <= tensor.end <= len(good)


def shards(directory: Path) -> dict[str, str]:
    (directory / "one.safetensors").write_bytes(file_of({"a": GOOD["a"]}, bytes(8)))
    (directory / "two.safetensors").write_bytes(
        file_of({"b": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"x")
    )
    return {"a": "one.safetensors", "b": "two.safetensors"}


def index(directory: Path, weight_map: Any) -> None:
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_a_good_index(tmp_path: Path) -> None:
    index(tmp_path, shards(tmp_path))
    assert open_weights(tmp_path).tensors.keys() == {"a", "b"}


@pytest.mark.parametrize(
    ("weight_map", "says"),
    [
        ({"a": "two.safetensors", "b": "one.safetensors"}, "swapped"),
        ({"a": "one.safetensors", "b": "two.safetensors", "c": "one.safetensors"}, "'c'"),
        ({"a": "one.safetensors", "b": "three.safetensors"}, "three.safetensors"),
        ({"a": "one.safetensors", "b": "../two.safetensors"}, "not a file name"),
        ({"a": "one.safetensors", "b": "/etc/passwd"}, "not a file name"),
        ({"a": "one.safetensors", "b": 3}, "not a file name"),
        ({}, "weight_map"),
        (["a"], "weight_map"),
    ],
)
def test_index_lies_are_named(weight_map: Any, says: str, tmp_path: Path) -> None:
    shards(tmp_path)
    index(tmp_path, weight_map)
    with pytest.raises(ModelError) as e:
        open_weights(tmp_path)
    assert says in str(e.value)


def test_a_tensor_missing_from_the_index(tmp_path: Path) -> None:
    weight_map = shards(tmp_path)
    (tmp_path / "two.safetensors").write_bytes(
        file_of(
            {
                "b": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
                "c": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]},
            },
            b"xy",
        )
    )
    index(tmp_path, weight_map)
    with pytest.raises(ModelError, match="missing from the index"):
        open_weights(tmp_path)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    weight_map = shards(tmp_path)
    (tmp_path / "two.safetensors").write_bytes((tmp_path / "one.safetensors").read_bytes())
    index(tmp_path, weight_map)
    with pytest.raises(ModelError, match="also in"):
        open_weights(tmp_path)


def test_pickles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="pickle"):
        open_weights(tmp_path)
