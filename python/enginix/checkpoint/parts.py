"""What an output tensor is made of, as byte streams: nothing larger than a chunk is ever in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginix.errors import ModelError
from enginix.model import TensorInfo

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[Any]

CHUNK = 1 << 20  # bytes read at once where bytes are looked at: fits a core's cache
COPY = 8 << 20  # bytes of a copy between two ranks' turns


class Reader:
    """Positioned reads of source files; remembers the last chunk, which the next rank often wants, too."""

    def __init__(self) -> None:
        self._files: dict[Path, int] = {}
        self._last: tuple[tuple[Path, int, int], bytes] | None = None
        self._buffer = bytearray(CHUNK)

    def __enter__(self) -> Reader:
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

    def read(self, path: Path, begin: int, end: int) -> bytes:
        """Bytes ``begin`` to ``end`` of a file.

        Raises:
            ModelError: the file ends before ``end`` (it changed while it was read).
        """
        key = (path, begin, end)
        if self._last is not None and self._last[0] == key:
            return self._last[1]
        fd, parts, at = self.fd(path), [], begin
        while at < end:
            block = os.pread(fd, end - at, at)
            if not block:
                raise ModelError(
                    f"ends at byte {at}, its header promises {end}", where=str(path), fix="download it again"
                )
            parts.append(block)
            at += len(block)
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        self._last = (key, data)
        return data

    def block(self, path: Path, begin: int, end: int) -> memoryview:
        """Up to ``CHUNK`` bytes from ``begin``, valid until the next call.

        Raises:
            ModelError: the file ends there (it changed while it was read).
        """
        view = memoryview(self._buffer)[: min(len(self._buffer), end - begin)]
        done = os.preadv(self.fd(path), [view], begin)
        if done == 0:
            raise ModelError(
                f"ends at byte {begin}, its header promises {end}", where=str(path), fix="download it again"
            )
        return view[:done]

    def array(self, tensor: TensorInfo) -> Array:
        """A small tensor as a NumPy array of its own dtype."""
        import numpy as np

        from enginix.checkpoint.numbers import numpy_dtype

        flat = np.frombuffer(self.read(tensor.path, tensor.begin, tensor.end), numpy_dtype(tensor.dtype))
        return flat.reshape(tensor.shape)


@dataclass(frozen=True)
class FileRange:
    """Bytes to copy as they are."""

    path: Path
    begin: int
    end: int


Piece = FileRange | bytes
Transform = Callable[["npt.NDArray[np.uint8]"], "npt.NDArray[Any]"]


@dataclass(frozen=True)
class Rows:
    """Rows and byte columns of a row-major matrix, each chunk of rows passed through ``transform``.

    Attributes:
        stride: bytes of a whole row in the file.
        cols: byte range within each row.
        transform: from uint8 [rows, bytes] to an array whose bytes are written; None copies.
    """

    tensor: TensorInfo
    stride: int
    rows: tuple[int, int]
    cols: tuple[int, int]
    transform: Transform | None = None

    def pieces(self, reader: Reader) -> Iterator[Piece]:
        if self.transform is None and self.cols == (0, self.stride):
            base = self.tensor.begin
            end = base + self.rows[1] * self.stride
            for at in range(base + self.rows[0] * self.stride, end, COPY):
                yield FileRange(self.tensor.path, at, min(at + COPY, end))
        else:
            yield from self.blocks(reader)

    def blocks(self, reader: Reader) -> Iterator[bytes]:
        """The same bytes, always read."""
        import numpy as np

        base, step = self.tensor.begin, max(1, CHUNK // max(1, self.stride))
        for row in range(*self.rows, step):
            stop = min(row + step, self.rows[1])
            data = reader.read(self.tensor.path, base + row * self.stride, base + stop * self.stride)
            block = np.frombuffer(data, np.uint8).reshape(stop - row, self.stride)
            part = block[:, self.cols[0] : self.cols[1]]
            yield (part if self.transform is None else self.transform(part)).tobytes()


@dataclass(frozen=True)
class Zeros:
    """``size`` zero bytes."""

    size: int

    def pieces(self, reader: Reader) -> Iterator[Piece]:
        for at in range(0, self.size, CHUNK):
            yield bytes(min(CHUNK, self.size - at))


@dataclass(frozen=True)
class Bytes:
    """Bytes that are known when a conversion is planned: scales."""

    data: bytes

    def pieces(self, reader: Reader) -> Iterator[Piece]:
        yield self.data


@dataclass(frozen=True)
class Generated:
    """Bytes that are made of several inputs at once, when they are written."""

    make: Callable[[Reader], Iterator[bytes]]

    def pieces(self, reader: Reader) -> Iterator[Piece]:
        yield from self.make(reader)


Part = Rows | Zeros | Bytes | Generated


@dataclass(frozen=True)
class Output:
    """One tensor of a rank file: its parts' bytes follow each other.

    Attributes:
        dtype: safetensors code.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]

    def pieces(self, reader: Reader) -> Iterator[Piece]:
        for part in self.parts:
            yield from part.pieces(reader)
