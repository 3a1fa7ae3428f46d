"""The safetensors header reader under attack: the typed error or the truth, never a read past the file."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from enginix.errors import ModelError
from enginix.model import read_header
from enginix.model.safetensors import SAFETENSORS_DTYPES, SafetensorsHeader, open_weights

FAST = settings(max_examples=120, deadline=None)


def read(path: Path, data: bytes) -> SafetensorsHeader | None:
    """The header, or None for the typed error; anything else fails the test."""
    path.write_bytes(data)
    try:
        found = read_header(path)
    except ModelError as e:
        assert e.what and e.where and "\n" not in e.what
        return None
    at = 8 + struct.unpack("<Q", data[:8])[0]
    for tensor in sorted(found.tensors.values(), key=lambda t: (t.begin, t.end)):
        assert tensor.begin == at and tensor.end <= len(data)
        at = tensor.end
    assert at == len(data)
    return found


def framed(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


numbers = st.one_of(
    st.integers(-5, 40), st.integers(2**31, 2**70), st.floats(allow_nan=False),
    st.booleans(), st.none(), st.text(max_size=2),
)  # fmt: skip
entries = st.one_of(
    st.fixed_dictionaries(
        {
            "dtype": st.one_of(st.sampled_from([*SAFETENSORS_DTYPES, "f32", "X"]), numbers),
            "shape": st.one_of(st.lists(numbers, max_size=4), numbers),
            "data_offsets": st.one_of(st.lists(numbers, max_size=3), numbers),
        },
        optional={"extra": numbers},
    ),
    numbers,
    st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__"]), numbers),
)
headers = st.dictionaries(st.one_of(st.text(max_size=8), st.just("__metadata__")), entries, max_size=5)


@FAST
@given(st.binary(max_size=200))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    read(tmp_path_factory.getbasetemp() / "any", data)


@FAST
@given(headers, st.binary(max_size=64), st.one_of(st.none(), st.integers(0, 2**64 - 1)))
def test_any_header(
    tmp_path_factory: pytest.TempPathFactory, header: dict[str, Any], data: bytes, length: int | None
) -> None:
    text = json.dumps(header).encode()
    read(tmp_path_factory.getbasetemp() / "header", framed(text, data, length))


@FAST
@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(SAFETENSORS_DTYPES)), st.lists(st.integers(0, 5), max_size=3)),
        max_size=5,
    ),
    st.data(),
)
def test_true_headers_are_read_and_each_lie_is_refused(
    tmp_path_factory: pytest.TempPathFactory, tensors: list[tuple[str, list[int]]], draw: st.DataObject
) -> None:
    path, header, at = tmp_path_factory.getbasetemp() / "true", {}, 0
    for n, (dtype, shape) in enumerate(tensors):
        size = SAFETENSORS_DTYPES[dtype]
        for d in shape:
            size *= d
        header[f"t{n}"] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    true = framed(json.dumps(header).encode(), bytes(at))
    found = read(path, true)
    assert found is not None and {n: list(t.shape) for n, t in found.tensors.items()} == {
        n: e["shape"] for n, e in header.items()
    }
    # Any shorter or longer file is another file than the header describes.
    assert read(path, true + b"\0") is None
    if at:
        assert read(path, true[: -draw.draw(st.integers(1, at))]) is None
    if header:
        name = draw.draw(st.sampled_from(sorted(header)))
        lie = json.loads(json.dumps(header))
        lie[name]["data_offsets"][draw.draw(st.integers(0, 1))] += draw.draw(st.sampled_from([-1, 1, 2**40]))
        assert read(path, framed(json.dumps(lie).encode(), bytes(at))) is None


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}',
        b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}',
        b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,1e1]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,NaN]}}',
        b'{"\xff":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b'{"__metadata__":{"a":1}}',
        b'{"__metadata__":["a"]}',
        b"[]",
        b"null",
        b"{",
        b"",
        b'{"a":' + b"[" * 100_000,
        b'{"a":' + b'{"b":' * 50_000 + b"1" + b"}" * 50_001,
        b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}',
    ],
)  # fmt: skip
def test_known_lies(tmp_path: Path, header: bytes) -> None:
    assert read(tmp_path / "lie", framed(header, bytes(4))) is None


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 100_000_001, 10**12, 5, 0])
def test_a_length_that_lies_reads_nothing_of_that_size(tmp_path: Path, length: int) -> None:
    path = tmp_path / "length"
    with path.open("wb") as f:
        f.write(framed(b"{}", b"", length))
        f.truncate(200 << 20)  # a hole: reading it all would show
    began = time.process_time()
    with pytest.raises(ModelError):
        read_header(path)
    assert time.process_time() - began < 5  # no hang; not a measure of speed


def test_a_huge_header_is_read_in_bounded_time(tmp_path: Path) -> None:
    header, at = {}, 0
    for n in range(50_000):
        header[f"model.layers.{n}.weight"] = {"dtype": "U8", "shape": [1], "data_offsets": [at, at + 1]}
        at += 1
    found = read(tmp_path / "huge", framed(json.dumps(header).encode(), bytes(at)))
    assert found is not None and len(found.tensors) == 50_000


@FAST
@given(st.dictionaries(st.text(max_size=4), st.one_of(st.text(max_size=30), numbers), max_size=4))
@example({"a": "../../etc/passwd"})
@example({"a": "/etc/passwd"})
@example({"a": ".."})
@example({"a": "x\0y"})
@example({"a": "\ud800"})
def test_any_index(tmp_path_factory: pytest.TempPathFactory, weight_map: dict[str, Any]) -> None:
    directory = tmp_path_factory.getbasetemp() / "indexed"
    directory.mkdir(exist_ok=True)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelError):
        open_weights(directory)
