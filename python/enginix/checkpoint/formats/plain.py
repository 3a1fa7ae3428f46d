"""float32, float16 and bfloat16: bytes as they are, or cast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from enginix.checkpoint.config import DTYPES, CheckpointConfig
from enginix.checkpoint.formats.base import Dequantized, Spec
from enginix.checkpoint.layout import Linear
from enginix.checkpoint.parts import Part, Transform, Zeros
from enginix.checkpoint.source import FLOATS, Source, cut, vector
from enginix.errors import ModelError
from enginix.model import TensorInfo
from enginix.model.safetensors import DTYPES as SIZES

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[Any]


def caster(info: TensorInfo, target: str) -> Transform | None:
    """The cast from a tensor's dtype to ``target``; None where they are the same.

    The cast raises ModelError where a value does not fit ``target``.
    """
    if info.dtype == target:
        return None

    def apply(rows: npt.NDArray[np.uint8], into: npt.NDArray[np.uint8]) -> None:
        import numpy as np

        from enginix.checkpoint.numbers import cast, numpy_dtype

        values = np.ascontiguousarray(rows).reshape(-1).view(numpy_dtype(info.dtype))
        try:
            cast(values, info.dtype, target, into.view(numpy_dtype(target)))
        except OverflowError as e:
            raise ModelError(
                f"tensor {info.name!r}: {e}", where=str(info.path), fix="--dtype bfloat16 (or float32)"
            ) from e

    return Transform(apply, lambda width: width // info.itemsize * SIZES[target])


def dtype_of(linear: Linear, config: CheckpointConfig) -> str:
    return DTYPES[linear.dtype or config.dtype]


class Plain:
    """An unquantized matrix."""

    def spec(self, linear: Linear, config: CheckpointConfig) -> Spec:
        return {"weight": (dtype_of(linear, config), linear.shape(linear.out, linear.inp))}

    def parts(self, linear: Linear, config: CheckpointConfig, source: Source) -> dict[str, tuple[Part, ...]]:
        target = dtype_of(linear, config)
        parts: list[Part] = []
        for group in linear.groups:
            for piece in group:
                info = source.tensor(piece.module, "weight", FLOATS, (piece.out, piece.inp))
                parts.append(cut(info, piece, caster(info, target)))
                if piece.pad:
                    parts.append(Zeros(piece.pad * piece.width * SIZES[target]))
        return {"weight": tuple(parts)}

    def dequantize(self, tensors: Mapping[str, Array], linear: Linear) -> Dequantized:
        import numpy as np

        return tensors["weight"].astype(np.float32), np.zeros((), np.float32)


def bias_parts(linear: Linear, dtype: str, source: Source) -> tuple[Part, ...]:
    """The bias of a dense matrix: cut with its rows, whole where its columns are cut."""
    parts: list[Part] = []
    for piece in linear.groups[0]:
        info = source.tensor(piece.module, "bias", FLOATS, (piece.out,))
        parts.append(vector(info, piece.rows, caster(info, dtype)))
    return tuple(parts)
