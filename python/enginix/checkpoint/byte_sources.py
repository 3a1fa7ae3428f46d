"""The sources of output tensors as byte streams, with at most a chunk in memory at a time."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from enginix.errors import ModelError
from enginix.model import TensorInfo
from enginix.model.model_errors import make_damage_error

if TYPE_CHECKING:
    from enginix.checkpoint.numbers import Array, Bytes8

COPY = 1 << 20  # bytes of a block that is copied as it is
CHUNK = 1 << 20  # bytes of a block that is transformed
LINE = 64  # bytes of a line of the processor's cache
TRANSPOSED = 56 << 20  # bytes of a band of a transposed matrix


def require_finite(tensor: TensorInfo, data: memoryview) -> None:
    """Refuse a block of a model's tensor that holds NaN or an infinity: every answer would be NaN."""
    import numpy as np

    from enginix.checkpoint.numbers import are_any_non_finite

    if are_any_non_finite(np.frombuffer(data, np.uint8), tensor.dtype):
        raise make_damage_error(f"tensor {tensor.name!r} holds NaN or an infinity", str(tensor.path))


@contextlib.contextmanager
def refuse_overflow(what: str, path: Path) -> Iterator[None]:
    """Refuse a model's value that does not fit the dtype; the body raises OverflowError for it."""
    try:
        yield
    except OverflowError as e:
        raise ModelError(f"{what}: {e}", where=str(path), fix="--dtype bfloat16 (or float32)") from e


class WorkBuffer:
    """Memory that a thread uses again for each block, since the kernel clears every fresh page."""

    def __init__(self) -> None:
        self._memory: mmap.mmap | bytes = b""

    def reserve(self, size: int) -> memoryview:
        """Return ``size`` bytes from the beginning of a page on, valid until the next call."""
        if size > len(self._memory):
            self._memory = mmap.mmap(-1, max(size, COPY), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            # In huge pages, columns of a matrix miss few translations; not every kernel has them.
            with contextlib.suppress(OSError):
                self._memory.madvise(mmap.MADV_HUGEPAGE)
        return memoryview(self._memory)[:size]


class SourceFileReader:
    """Reads ranges of source files into one buffer; each thread has its own reader."""

    def __init__(self) -> None:
        self._files: dict[Path, int] = {}
        self._source, self._range = WorkBuffer(), (Path(), 0, 0)
        self.transposed, self.cast = WorkBuffer(), WorkBuffer()

    def __enter__(self) -> SourceFileReader:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()

    def fd(self, path: Path) -> int:
        if path not in self._files:
            try:
                self._files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as e:
                raise ModelError(
                    f"cannot be opened: {e.strerror}", where=str(path), fix="restore the file"
                ) from e
        return self._files[path]

    def read(self, path: Path, begin: int, end: int) -> memoryview:
        """Return bytes ``begin`` to ``end`` of a file, valid until the next call.

        Raises:
            ModelError: the file ends before ``end`` (it changed while it was read).
        """
        view = self.reserve(end - begin)
        self.read_into(path, begin, view)
        return view

    def read_shared(self, path: Path, begin: int, end: int) -> memoryview:
        """Return bytes of a file as :meth:`read` does; consecutive calls for one range read it once."""
        if self._range != (path, begin, end):
            self.read(path, begin, end)
            self._range = (path, begin, end)
        return self._source.reserve(end - begin)

    def reserve(self, size: int) -> memoryview:
        """Return a buffer of ``size`` bytes, valid until the next call."""
        self._range = (Path(), 0, 0)
        return self._source.reserve(size)

    def read_into(self, path: Path, begin: int, view: memoryview) -> None:
        """Fill ``view`` with the bytes of a file from ``begin`` on.

        Raises:
            ModelError: the file ends before (it changed while it was read).
        """
        position, end = begin, begin + len(view)
        while position < end:
            done = os.preadv(self.fd(path), [view[position - begin :]], position)
            if done == 0:
                raise ModelError(
                    f"ends at byte {position}, but its header lists data up to byte {end}",
                    where=str(path),
                    fix="something shortened it while it was read: fetch it with enginix fetch, then convert",
                )
            position += done

    def array(self, tensor: TensorInfo) -> Array:
        """Return a small tensor as a NumPy array of its own dtype."""
        import numpy as np

        from enginix.model.mapped_tensors import numpy_dtype

        data = bytes(self.read(tensor.path, tensor.begin, tensor.end))
        flat = np.frombuffer(data, numpy_dtype(tensor.dtype))
        return flat.reshape(tensor.shape)


class HeaderReader(SourceFileReader):
    """A reader for files that hold headers only: every value reads as 1."""

    def array(self, tensor: TensorInfo) -> Array:
        import numpy as np

        from enginix.model.mapped_tensors import numpy_dtype

        return np.ones(tensor.shape, numpy_dtype(tensor.dtype))


@dataclass(frozen=True)
class RowTransform:
    """A transformation of rows between input and output.

    Attributes:
        apply: writes uint8 [rows, bytes], transformed, into a flat uint8 array of exactly the new size.
        width: bytes of an input row → bytes of its output.
    """

    apply: Callable[[Bytes8, Bytes8], None]
    width: Callable[[int], int]


@dataclass(frozen=True)
class MatrixRows:
    """Rows and byte columns of a row-major matrix, with an optional transformation.

    Attributes:
        stride: bytes of a whole row in the file.
        cols: byte range within each row.
        transform: None copies the bytes.
    """

    tensor: TensorInfo
    stride: int
    rows: tuple[int, int]
    cols: tuple[int, int]
    transform: RowTransform | None = None

    @property
    def plain(self) -> bool:
        """Return whether the bytes are one unchanged range of the file."""
        return self.transform is None and self.cols == (0, self.stride)

    @property
    def width(self) -> int:
        """Return the output bytes of a row."""
        taken = self.cols[1] - self.cols[0]
        return taken if self.transform is None else self.transform.width(taken)

    @property
    def size(self) -> int:
        return (self.rows[1] - self.rows[0]) * self.width

    def steps(self) -> Iterator[tuple[int, int]]:
        """Yield ranges of rows, one for each block of work."""
        step = max(1, CHUNK // max(1, self.stride))
        for row in range(*self.rows, step):
            yield row, min(row + step, self.rows[1])

    def span(self, begin: int, end: int) -> tuple[int, int]:
        """Return the byte range of whole rows in the file."""
        return self.tensor.begin + begin * self.stride, self.tensor.begin + end * self.stride

    def make(self, data: memoryview, into: Bytes8) -> None:
        """Write the output bytes of whole rows ``data`` into a flat array of exactly their number."""
        import numpy as np

        rows = np.frombuffer(data, np.uint8).reshape(-1, self.stride)[:, self.cols[0] : self.cols[1]]
        if self.transform is None:
            np.copyto(into.reshape(rows.shape), rows)
        else:
            self.transform.apply(rows, into)

    def blocks(self, reader: SourceFileReader) -> Iterator[bytes]:
        """Yield the output bytes in order."""
        import numpy as np

        for begin, end in self.steps():
            block = np.empty((end - begin) * self.width, np.uint8)
            self.make(reader.read(self.tensor.path, *self.span(begin, end)), block)
            yield block.tobytes()


@dataclass(frozen=True)
class TransposedRows:
    """Rows and columns of a matrix that the model stores transposed.

    Attributes:
        stored_rows, stored_cols: the whole tensor's own shape: ``inp``, ``out``.
        rows, cols: half-open ranges of the output matrix, in elements.
        transform: cast of the elements; None copies them.
    """

    tensor: TensorInfo
    stored_rows: int
    stored_cols: int
    rows: tuple[int, int]
    cols: tuple[int, int]
    transform: RowTransform | None = None

    @property
    def size(self) -> int:
        width = (self.cols[1] - self.cols[0]) * self.tensor.itemsize
        return (self.rows[1] - self.rows[0]) * (
            width if self.transform is None else self.transform.width(width)
        )

    def blocks(self, reader: SourceFileReader) -> Iterator[bytes | memoryview]:
        """Yield the output bytes in order; each block is valid until the next."""
        import numpy as np

        from enginix.checkpoint.compiled_casts import transpose_matrix

        item, height = self.tensor.itemsize, self.cols[1] - self.cols[0]
        element = np.dtype(f"u{item}")
        line = LINE // item  # elements
        band, step = (-(-size // (height * item) // line) * line for size in (TRANSPOSED, CHUNK))
        for first in range(*self.rows, band):
            columns = self._read_columns(reader, first, min(first + band, self.rows[1]))
            for begin in range(0, columns.shape[1], step):
                part = columns[:, begin : begin + step]
                block = reader.transposed.reserve(part.size * item)
                out = np.frombuffer(block, element).reshape(part.shape[::-1])
                transpose_matrix(part, out)
                require_finite(self.tensor, block)
                if self.transform is None:
                    yield block
                else:
                    result = reader.cast.reserve(len(out) * self.transform.width(height * item))
                    self.transform.apply(out.view(np.uint8), np.frombuffer(result, np.uint8))
                    yield result

    def _read_columns(self, reader: SourceFileReader, first: int, last: int) -> Array:
        """Return columns of the stored matrix, [inp, last - first]."""
        import numpy as np

        from enginix.checkpoint.compiled_casts import read_lines

        item, height = self.tensor.itemsize, self.cols[1] - self.cols[0]
        stride, element = self.stored_cols * item, np.dtype(f"u{item}")
        begin = self.tensor.begin + self.cols[0] * stride
        if height * stride <= TRANSPOSED:  # one long read costs less than many short ones
            data = reader.read_shared(self.tensor.path, begin, begin + height * stride)
            return np.frombuffer(data, element).reshape(height, self.stored_cols)[:, first:last]
        width = (last - first) * item
        lines = reader.reserve(height * width)
        columns = np.frombuffer(lines, element).reshape(height, -1)
        done = read_lines(reader.fd(self.tensor.path), begin + first * item, stride, columns)
        for line in range(done, height):
            view = lines[line * width : (line + 1) * width]
            reader.read_into(self.tensor.path, begin + line * stride + first * item, view)
        return columns


@dataclass(frozen=True)
class ZeroBytes:
    """``size`` zero bytes."""

    size: int

    def blocks(self, reader: SourceFileReader) -> Iterator[bytes]:
        for begin in range(0, self.size, CHUNK):
            yield bytes(min(CHUNK, self.size - begin))


@dataclass(frozen=True)
class KnownBytes:
    """Bytes that are known when a conversion is planned, for instance scales."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    def blocks(self, reader: SourceFileReader) -> Iterator[bytes]:
        yield self.data


@dataclass(frozen=True)
class GeneratedBytes:
    """``size`` bytes that are computed from several inputs when they are written."""

    size: int
    make: Callable[[SourceFileReader], Iterator[bytes]]

    def blocks(self, reader: SourceFileReader) -> Iterator[bytes]:
        yield from self.make(reader)


BytePart = MatrixRows | TransposedRows | ZeroBytes | KnownBytes | GeneratedBytes


@dataclass(frozen=True)
class OutputTensor:
    """One tensor of a rank file; the bytes of its parts follow each other.

    Attributes:
        dtype: safetensors code.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: tuple[BytePart, ...]
