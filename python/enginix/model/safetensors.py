"""Read and check safetensors headers and indexes; no weight is read.

The rules are those of the format's own reader (https://huggingface.co/docs/safetensors/index#format): an
8-byte little-endian header length of at most 100 MB, a JSON object, tensors that cover the data without
holes or overlaps, the file exactly as long as the header says.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from enginix.errors import ModelError
from enginix.model.jsonfile import (
    LIMIT,
    detect_other_content,
    open_regular,
    parse_object,
    quote_text,
    read_object,
)
from enginix.model.model_errors import DAMAGED_FIX, make_damage_error
from enginix.model.other_layouts import explain_other_layout

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

_INDEX_FIX = (
    "index and shards are not of one revision: fetch all with enginix fetch; if the Hub has them so, report "
    "it to the model's author, or save the model again with save_pretrained"
)

# dtype code → bytes an element
SAFETENSORS_DTYPES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8, "C64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """The type, shape and place of one tensor.

    Attributes:
        dtype: safetensors code, for instance ``BF16``.
        begin, end: absolute byte offsets in ``path``.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin

    @property
    def itemsize(self) -> int:
        return SAFETENSORS_DTYPES[self.dtype]


@dataclass(frozen=True)
class SafetensorsHeader:
    """One file's header: its tensors by name, its string metadata, and the header's raw bytes."""

    path: Path
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    raw: bytes = field(repr=False)


def _is_natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _parse_tensor(name: str, entry: Any, path: Path, base: int, size: int) -> TensorInfo:
    where = f"{path}: tensor {name!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise make_damage_error("needs exactly dtype, shape and data_offsets", where)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SAFETENSORS_DTYPES:
        raise ModelError(
            f"unknown dtype {dtype!r}", where=where, fix=f"known: {', '.join(SAFETENSORS_DTYPES)}"
        )
    if not isinstance(shape, list) or len(shape) > 16 or not all(map(_is_natural, shape)):
        raise make_damage_error("shape is not a list of sizes", where)
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_natural, offsets)):
        raise make_damage_error("data_offsets is not a pair of offsets", where)
    begin, end = offsets
    if begin > end or end > size:
        raise make_damage_error(
            f"bytes {begin} to {end} lie outside the file's {size} bytes of data (truncated?)", where
        )
    size_by_shape = prod(shape) * SAFETENSORS_DTYPES[dtype]
    if size_by_shape != end - begin:
        raise make_damage_error(
            f"{dtype} {shape} needs {size_by_shape} bytes, its offsets span {end - begin}", where
        )
    return TensorInfo(name, dtype, tuple(shape), path, base + begin, base + end)


# Beginnings of other formats, which a file's name may hide.
_OTHER_FORMATS = (
    (b"PK\x03\x04", "a zip archive, as PyTorch saves pickles"),
    (b"\x80\x02", "a pickle"),
    (b"GGUF", "GGUF, llama.cpp's format"),
    (b"\x1f\x8b", "compressed by gzip"),
    (b"\x89HDF", "HDF5, Keras' format"),
)


def _detect_other_format(start: bytes) -> tuple[str, str] | None:
    """Identify a file that cannot be safetensors by its first bytes."""
    for magic, what in _OTHER_FORMATS:
        if start.startswith(magic):
            return f"{what}, not safetensors", "use weights that save_pretrained of transformers wrote"
    text = quote_text(start)
    return (f"a text, not the file: it begins with {text}", DAMAGED_FIX) if text else None


def read_header(path: Path) -> SafetensorsHeader:
    """Read and check one file's header.

    Raises:
        ModelError: the file is missing, truncated, or its header contradicts itself or the file's size.
    """
    where = str(path)
    try:
        with open_regular(path) as f:
            total = os.fstat(f.fileno()).st_size
            start = f.read(512)
            if other := detect_other_content(start):
                raise ModelError(other[0], where=where, fix=other[1])
            first = start[:8]
            f.seek(8)
            if len(first) < 8:
                raise make_damage_error(f"file too short ({total} bytes) to be safetensors", where)
            (length,) = struct.unpack("<Q", first)
            if length > min(LIMIT, total - 8):
                if other := _detect_other_format(start):
                    raise ModelError(other[0], where=where, fix=other[1])
                raise make_damage_error(
                    f"header length {length} is beyond the file's {total} bytes or the format's {LIMIT}",
                    where,
                )
            raw = f.read(length)
    except OSError as e:
        raise ModelError(
            f"cannot be read: {e.strerror or e}", where=where, fix="pass a complete model directory"
        ) from e
    if not raw.startswith(b"{"):
        raise make_damage_error("header does not begin with '{'", where)
    entries = parse_object(raw, f"{where}: header", strict=True)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise make_damage_error("__metadata__ is not a map of strings", where)
    base = 8 + length
    tensors = {n: _parse_tensor(n, entry, path, base, total - base) for n, entry in entries.items()}
    expected_begin = base
    for tensor in sorted(tensors.values(), key=lambda t: (t.begin, t.end)):
        if tensor.begin != expected_begin:
            gap = tensor.begin - expected_begin
            what = "overlaps another tensor" if gap < 0 else f"leaves {gap} bytes unused"
            raise make_damage_error(what, f"{where}: tensor {tensor.name!r}")
        expected_begin = tensor.end
    if expected_begin != total:
        raise make_damage_error(f"{total - expected_begin} bytes follow the last tensor", where)
    return SafetensorsHeader(path, tensors, metadata, raw)


@dataclass(frozen=True)
class ModelWeights:
    """All tensors of a model directory, over all its shards."""

    directory: Path
    headers: tuple[SafetensorsHeader, ...]
    tensors: Mapping[str, TensorInfo]


def _explain_missing_weights(directory: Path) -> tuple[str, str]:
    """Identify a directory without weights in the Transformers layout, and say how to fix it."""
    names = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    if other := explain_other_layout(names):
        return other
    shards = [name for name in names if name.endswith(".safetensors")]
    if len(shards) == 1 and "-of-" not in shards[0]:
        return f"no {SINGLE}, and {shards[0]} is no name that transformers reads", (
            f"if it holds the whole model, rename it to {SINGLE}"
        )
    if shards:
        return (
            f"no {SINGLE} and no {INDEX} beside {shards[0]}",
            f"fetch {INDEX} too; if the repository has none, save the model again with save_pretrained",
        )
    for suffix, name in ((".gguf", "GGUF"), (".bin", "pickle"), (".pth", "pickle"), (".pt", "pickle")):
        if others := [n for n in names if n.endswith(suffix)]:
            return (
                f"no {SINGLE} and no {INDEX} ({name} weights {others[0]} are refused)",
                "pass a directory with safetensors weights",
            )
    return f"no {SINGLE} and no {INDEX}", "pass a directory with safetensors weights"


def _list_shards(directory: Path) -> tuple[list[str], dict[str, str] | None]:
    if (directory / SINGLE).exists():  # transformers prefers it over an index, too
        return [SINGLE], None
    index = directory / INDEX
    if not index.exists():
        what, fix = _explain_missing_weights(directory)
        raise ModelError(what, where=directory, fix=fix)
    weight_map = read_weight_map(read_object(index), str(index))
    shards = sorted(set(weight_map.values()))
    if absent := [name for name in shards if not (directory / name).exists()]:
        raise ModelError(
            f"names {absent[0]}, which is not there"
            + (f" ({len(absent)} such shards)" if len(absent) > 1 else ""),
            where=index,
            fix="fetch the whole repository (enginix lock says where the Hub itself lacks it)",
        )
    return shards, weight_map


def read_weight_map(index: Mapping[str, Any], where: str) -> dict[str, str]:
    """Return tensor → shard of a parsed index.

    Raises:
        ModelError: no weight_map, or a shard that is not a plain file name.
    """
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise make_damage_error("no weight_map", where)
    for name, file in weight_map.items():
        plain = isinstance(file, str) and file.isprintable() and file == os.path.basename(file)
        if not plain or file in ("", ".", ".."):
            raise make_damage_error(f"tensor {name!r} lies in {file!r}: not a file name", where)
    return weight_map


def open_weights(directory: Path) -> ModelWeights:
    """Read every shard's header and check the index against it.

    Raises:
        ModelError: no safetensors weights; a shard missing or damaged; a tensor missing from its shard,
            from the index, or present twice.
    """
    files, weight_map = _list_shards(directory)
    headers = tuple(read_header(directory / file) for file in files)
    tensors: dict[str, TensorInfo] = {}
    for header in headers:
        for name, tensor in header.tensors.items():
            if name in tensors:
                raise make_damage_error(
                    f"tensor {name!r} is also in {tensors[name].path.name}", str(header.path)
                )
            tensors[name] = tensor
    for name, file in (weight_map or {}).items():
        if name not in tensors or tensors[name].path.name != file:
            raise ModelError(
                f"tensor {name!r} is not in {file}, where the index says it is (shards swapped?)",
                where=directory / INDEX,
                fix=_INDEX_FIX,
            )
    if weight_map is not None and (missing := sorted(set(tensors) - set(weight_map))):
        raise ModelError(
            f"tensor {missing[0]!r} of {tensors[missing[0]].path.name} is missing from the index",
            where=directory / INDEX,
            fix=_INDEX_FIX,
        )
    return ModelWeights(directory, headers, tensors)
