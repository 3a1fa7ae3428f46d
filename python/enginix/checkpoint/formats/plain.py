"""float32, float16 and bfloat16: bytes copied or cast."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from enginix.checkpoint.byte_sources import (
    BytePart,
    RowTransform,
    TransposedRows,
    ZeroBytes,
    refuse_overflow,
)
from enginix.checkpoint.config import DTYPES, CheckpointConfig
from enginix.checkpoint.formats.base import Dequantized, Spec
from enginix.checkpoint.rank_modules import LinearModule
from enginix.checkpoint.source_tensors import FLOATS, SourceTensors, cut_slice, cut_vector
from enginix.model import TensorInfo
from enginix.model.safetensors import SAFETENSORS_DTYPES as SIZES

if TYPE_CHECKING:
    from enginix.checkpoint.numbers import Array, Bytes8, Floats


def make_caster(info: TensorInfo, target: str) -> RowTransform | None:
    """Return the cast from a tensor's dtype to ``target``; None if they are equal.

    The cast raises ModelError where a value does not fit ``target``.
    """
    if info.dtype == target:
        return None

    def apply(rows: Bytes8, into: Bytes8) -> None:
        import numpy as np

        from enginix.checkpoint.numbers import cast_floats
        from enginix.model.mapped_tensors import numpy_dtype

        values = np.ascontiguousarray(rows).reshape(-1).view(numpy_dtype(info.dtype))
        with refuse_overflow(f"tensor {info.name!r}", info.path):
            cast_floats(values, info.dtype, target, into.view(numpy_dtype(target)))

    return RowTransform(apply, lambda width: width // info.itemsize * SIZES[target])


def compute_rows(info: TensorInfo, target: str, function: Callable[[Floats], Array]) -> RowTransform:
    """Return the cast to ``target``, followed by a function of float32 rows, rounded in ``target``."""
    cast, itemsize = make_caster(info, target), info.itemsize

    def apply(rows: Bytes8, into: Bytes8) -> None:
        import numpy as np

        from enginix.checkpoint.numbers import cast_floats, to_float32
        from enginix.model.mapped_tensors import numpy_dtype

        if cast is None:
            np.copyto(into, np.ascontiguousarray(rows).reshape(-1))
        else:
            cast.apply(rows, into)
        values = into.view(numpy_dtype(target))
        wide = to_float32(values, target).reshape(len(rows), -1)
        cast_floats(np.asarray(function(wide), np.float32), "F32", target, values)

    return RowTransform(apply, lambda width: width // itemsize * SIZES[target])


def add_offset(info: TensorInfo, target: str, offset: int) -> RowTransform:
    """Return the cast to ``target`` and the addition of ``offset``."""
    return compute_rows(info, target, lambda rows: rows + offset)


def _divide_by_length(target: str) -> Callable[[Floats], Array]:
    def divide(rows: Floats) -> Array:
        import numpy as np

        from enginix.checkpoint.numbers import cast_floats, to_float32

        length = np.sqrt(np.square(rows, dtype=np.float64).sum(axis=1, keepdims=True))
        length = np.maximum(length, 1e-12).astype(np.float32)
        # torch's normalize rounds the length to the matrix's dtype before it divides.
        return rows / to_float32(cast_floats(length, "F32", target), target)

    return divide


def _multiply_by_root(rows: Floats) -> Array:
    import numpy as np

    return rows * np.float32(math.sqrt(rows.shape[1]))


def _choose_transform(linear: LinearModule, info: TensorInfo, target: str) -> RowTransform | None:
    if linear.arithmetic is None:
        return make_caster(info, target)
    if linear.arithmetic == "unit_length":
        return compute_rows(info, target, _divide_by_length(target))
    return compute_rows(info, target, _multiply_by_root)


def dtype_of(linear: LinearModule, config: CheckpointConfig) -> str:
    return DTYPES[linear.dtype or config.dtype]


class UnquantizedFormat:
    """An unquantized matrix."""

    def spec(self, linear: LinearModule, config: CheckpointConfig) -> Spec:
        return {"weight": (dtype_of(linear, config), linear.shape(linear.out, linear.inp))}

    def parts(
        self, linear: LinearModule, config: CheckpointConfig, source: SourceTensors
    ) -> dict[str, tuple[BytePart, ...]]:
        target = dtype_of(linear, config)
        parts: list[BytePart] = []
        for group in linear.groups:
            for piece in group:
                info = source.tensor(piece.module, piece.leaf, FLOATS, piece.stored_shape)
                caster = _choose_transform(linear, info, target)
                if piece.transposed:
                    parts.append(TransposedRows(info, piece.inp, piece.out, piece.rows, piece.cols, caster))
                else:
                    parts.append(cut_slice(info, piece, caster))
                if piece.pad:
                    parts.append(ZeroBytes(piece.pad * piece.width * SIZES[target]))
        return {"weight": tuple(parts)}

    def dequantize(self, tensors: Mapping[str, Array], linear: LinearModule) -> Dequantized:
        import numpy as np

        return tensors["weight"].astype(np.float32), np.zeros((), np.float32)


def make_bias_parts(linear: LinearModule, dtype: str, source: SourceTensors) -> tuple[BytePart, ...]:
    """Return the bias of a dense matrix: cut with its rows, whole if its columns are cut."""
    parts: list[BytePart] = []
    for piece in linear.groups[0]:
        if linear.zero_bias:
            source.tensor(piece.module, "bias", FLOATS, (piece.out,))
            parts.append(ZeroBytes(piece.height * SIZES[dtype]))
            continue
        info = source.tensor(piece.module, "bias", FLOATS, (piece.out,))
        parts.append(cut_vector(info, piece.rows, make_caster(info, dtype)))
        if piece.pad:
            parts.append(ZeroBytes(piece.pad * SIZES[dtype]))
    return tuple(parts)
