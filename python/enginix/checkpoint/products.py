"""Matrix products with sums in one order, so that every machine writes the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from enginix.checkpoint.byte_sources import SourceFileReader, refuse_overflow, require_finite
from enginix.checkpoint.rank_modules import MatrixSlice
from enginix.model import TensorInfo

if TYPE_CHECKING:
    from enginix.checkpoint.numbers import Array

ROWS = 32  # rows of a product that are summed at once: they stay in the processor's cache
READ = 4096  # rows of an embedding that are read at once


def multiply_in_order(left: Array, right: Array, code: str) -> Iterator[bytes]:
    """Yield left^T x right, rounded once to a dtype, in blocks of rows.

    Sums are float64 and element by element; a library's product would depend on its blocks.

    Raises:
        OverflowError: a sum does not fit the dtype.
    """
    import numpy as np

    from enginix.checkpoint.numbers import cast_floats, to_float32

    factors, wide = (to_float32(np.ascontiguousarray(x), code).astype(np.float64) for x in (left, right))
    for begin in range(0, factors.shape[1], ROWS):
        part = factors[:, begin : begin + ROWS]
        total, product = np.zeros((2, part.shape[1], wide.shape[1]))
        for column, row in zip(part, wide, strict=True):
            np.multiply(column[:, None], row[None, :], out=product)
            np.add(total, product, out=total)
        yield cast_floats(total.astype(np.float32), "F32", code).tobytes()


def read_rows(info: TensorInfo, rows: tuple[int, int], code: str, reader: SourceFileReader) -> Array:
    """Return rows of a matrix in a dtype.

    Raises:
        ModelError: a value does not fit the dtype, or is not finite.
    """
    import numpy as np

    from enginix.checkpoint.numbers import cast_floats
    from enginix.model.mapped_tensors import numpy_dtype

    stride = info.itemsize * info.shape[1]
    data = reader.read(info.path, info.begin + rows[0] * stride, info.begin + rows[1] * stride)
    require_finite(info, data)
    values = np.frombuffer(bytes(data), numpy_dtype(info.dtype)).reshape(-1, info.shape[1])
    with refuse_overflow(f"tensor {info.name!r}", info.path):
        return values if info.dtype == code else cast_floats(values, info.dtype, code)


def project_rows(
    embedding: TensorInfo,
    projection: TensorInfo,
    piece: MatrixSlice,
    transposed: bool,
    code: str,
    reader: SourceFileReader,
) -> Iterator[bytes]:
    """Yield rows and columns ``piece`` of an embedding times a projection.

    Args:
        transposed: the projection is stored as [columns of the product, width of the embedding].

    Raises:
        ModelError: a weight or a sum does not fit the dtype, or is not finite.
    """
    factor = read_rows(projection, (0, projection.shape[0]), code, reader)
    columns = (factor.T if transposed else factor)[:, slice(*piece.cols)]
    for begin in range(*piece.rows, READ):
        part = read_rows(embedding, (begin, min(begin + READ, piece.rows[1])), code, reader)
        with refuse_overflow(f"{embedding.name} x {projection.name}", embedding.path):
            yield from multiply_in_order(part.T, columns, code)
