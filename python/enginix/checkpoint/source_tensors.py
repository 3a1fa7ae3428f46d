"""Look up the model's tensors by module; dtypes and shapes are checked when a conversion is planned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase

from enginix.checkpoint.byte_sources import MatrixRows, RowTransform, SourceFileReader
from enginix.checkpoint.layout import MatrixSlice
from enginix.checkpoint.tensor_errors import explain_mismatch, explain_missing
from enginix.errors import ModelError
from enginix.model import ModelWeights, TensorInfo

FLOATS = ("F32", "F16", "BF16")
# Buffers that old exporters stored; every model recomputes them.
_IGNORED = ("*.rotary_emb.inv_freq", "*.self_attn.masked_bias", "*.self_attn.bias")


class SourceTensors:
    """Looks tensors up, checks dtype and shape, and remembers which were used."""

    def __init__(self, weights: ModelWeights, reader: SourceFileReader, *, tied: bool = False) -> None:
        self.weights, self.reader = weights, reader
        self._used: set[str] = set()
        # A tied head is the embedding, unless the model stores it a second time.
        self._head = "model.embed_tokens" if tied and "lm_head.weight" not in weights.tensors else "lm_head"

    def name(self, module: str, leaf: str) -> str:
        return f"{self._head if module == 'lm_head' else module}.{leaf}"

    def has(self, module: str, leaf: str) -> bool:
        return self.name(module, leaf) in self.weights.tensors

    def tensor(self, module: str, leaf: str, dtypes: Sequence[str], shape: tuple[int, ...]) -> TensorInfo:
        """Return the tensor ``module.leaf``.

        Raises:
            ModelError: absent, or of another dtype or shape than the config implies.
        """
        name = self.name(module, leaf)
        info = self.weights.tensors.get(name)
        if info is None:
            what, fix = explain_missing(name, self.weights.tensors)
            raise ModelError(what, where=str(self.weights.directory), fix=fix)
        self._used.add(name)
        # A scale of one element may be a scalar or a vector of one.
        shapes_match = info.shape == shape or (
            math.prod(shape) == 1 == math.prod(info.shape) and len(shape) < 2
        )
        if not shapes_match or info.dtype not in dtypes:
            what, fix = explain_mismatch(info, tuple(dtypes), shape)
            raise ModelError(what, where=str(info.path), fix=fix)
        return info

    def scale(self, module: str, leaf: str) -> float:
        """Return a float32 scale of one element.

        Raises:
            ModelError: absent, not finite, or not positive.
        """
        info = self.tensor(module, leaf, ("F32",), ())
        value = float(self.reader.array(info).reshape(-1)[0])
        if not math.isfinite(value) or value <= 0:
            raise ModelError(
                f"scale {info.name!r} is {value}", where=str(info.path), fix="quantize the model again"
            )
        return value

    def quantized(self, module: str) -> bool:
        """Return whether the module's weight has scales."""
        return self.has(module, "weight_scale")

    def unused(self) -> list[str]:
        """Return the tensors that no output was made of, without those that every model recomputes."""
        unused_names = set(self.weights.tensors) - self._used
        return sorted(n for n in unused_names if not any(fnmatchcase(n, p) for p in _IGNORED))


def cut_slice(
    info: TensorInfo,
    piece: MatrixSlice,
    transform: RowTransform | None = None,
    *,
    elements: int = 1,
    bytes_: int | None = None,
    rows_each: int = 1,
) -> MatrixRows:
    """Return the bytes of ``piece`` in a matrix that may be packed.

    Args:
        elements: input columns that ``bytes_`` bytes hold (2 in one byte, for packed 4-bit columns).
        bytes_: default is the element size of ``info``.
        rows_each: output rows that one stored row holds.
    """
    unit = info.itemsize if bytes_ is None else bytes_
    return MatrixRows(
        info,
        piece.inp // elements * unit,
        (piece.rows[0] // rows_each, piece.rows[1] // rows_each),
        (piece.cols[0] // elements * unit, piece.cols[1] // elements * unit),
        transform,
    )


def cut_vector(info: TensorInfo, span: tuple[int, int], transform: RowTransform | None = None) -> MatrixRows:
    """Return the elements ``span`` of a vector."""
    size = info.itemsize
    return MatrixRows(info, size, span, (0, size), transform)
