"""Write all rank files in one pass over the input."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from enginix.checkpoint.byte_sources import (
    COPY,
    BytePart,
    MatrixRows,
    OutputTensor,
    SourceFileReader,
    require_finite,
)
from enginix.checkpoint.parallel import count_usable_threads, run_in_order
from enginix.console import format_bytes
from enginix.errors import MachineError
from enginix.model import TensorInfo
from enginix.model.safetensors import SAFETENSORS_DTYPES
from enginix.progress import BYTES, track_step

if TYPE_CHECKING:
    from enginix.checkpoint.numbers import Bytes8


def rank_file_name(rank: int) -> str:
    return f"rank{rank}.safetensors"


def _output_sort_key(output: OutputTensor) -> tuple[int, str]:
    # Widest elements first keeps every tensor aligned to its element, as the format's own writer does.
    return -SAFETENSORS_DTYPES[output.dtype], output.name


def compute_file_layout(outputs: Sequence[OutputTensor]) -> tuple[bytes, dict[str, int], int]:
    """Return header bytes, each tensor's file offset, and the file's size, from names and shapes alone."""
    entries, offsets, at = {}, {}, 0
    for output in sorted(outputs, key=_output_sort_key):
        size = prod(output.shape) * SAFETENSORS_DTYPES[output.dtype]
        entries[output.name] = {
            "dtype": output.dtype,
            "shape": list(output.shape),
            "data_offsets": [at, at + size],
        }
        offsets[output.name] = at
        at += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: len(header) + offset for name, offset in offsets.items()}, len(header) + at


class _RankFileWriter:
    def __init__(self, path: Path, outputs: Sequence[OutputTensor]) -> None:
        self.header, self.offsets, self.size = compute_file_layout(outputs)
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self.write(self.header, 0)
        os.ftruncate(self.fd, self.size)

    def write(self, data: bytes | memoryview, at: int) -> None:
        view = memoryview(data)
        while view:
            done = os.pwrite(self.fd, view, at)
            view, at = view[done:], at + done


@dataclass(frozen=True)
class _Destination:
    """The place in a rank file for output made from an input block; ``rows`` None copies the block."""

    file: _RankFileWriter
    at: int
    rows: MatrixRows | None


@dataclass(frozen=True)
class _InputBlock:
    """A range of one input tensor in its file, read once for all ranks that need it."""

    tensor: TensorInfo
    begin: int
    end: int
    targets: list[_Destination]

    def run(self, worker: _WriteWorker) -> int:
        # One small buffer: copy_file_range was measured slower, since tensors rarely keep their place within
        # a page and the kernel then copies page by page (docs/explanation/measurements.md).
        data, done = worker.reader.read(self.tensor.path, self.begin, self.end), 0
        require_finite(self.tensor, data)
        for target in self.targets:
            output_bytes = data if target.rows is None else worker.make(target.rows, data)
            target.file.write(output_bytes, target.at)
            done += len(output_bytes)
        return done


@dataclass(frozen=True)
class _WholePart:
    """A part that needs no input, or reads several inputs itself."""

    file: _RankFileWriter
    at: int
    part: BytePart

    def run(self, worker: _WriteWorker) -> int:
        at = self.at
        for data in self.part.blocks(worker.reader):
            self.file.write(data, at)
            at += len(data)
        if at - self.at != self.part.size:
            raise AssertionError(f"{at - self.at} bytes made, {self.part.size} expected")
        return self.part.size


class _WriteWorker:
    """The state of one thread: open inputs, and a buffer for outputs."""

    def __init__(self) -> None:
        self.reader = SourceFileReader()
        self._output_buffer: Bytes8 | None = None

    def run(self, task: _InputBlock | _WholePart) -> int:
        return task.run(self)

    def make(self, rows: MatrixRows, data: memoryview) -> memoryview:
        """Return the output of ``rows``, valid until the next call."""
        import numpy as np

        size = len(data) // rows.stride * rows.width
        if self._output_buffer is None or len(self._output_buffer) < size:
            self._output_buffer = np.empty(size, np.uint8)
        rows.make(data, self._output_buffer[:size])
        return self._output_buffer[:size].data


def _iterate_tasks(
    files: Sequence[_RankFileWriter], ranks: Sequence[Sequence[OutputTensor]]
) -> Iterator[_InputBlock | _WholePart]:
    """Yield tasks that each have a fixed place in the output, so that any order gives the same bytes."""
    for group in _group_by_name(ranks):
        blocks: dict[tuple[Path, int, int], _InputBlock] = {}  # file, begin, end
        for rank, output in group:
            offset = files[rank].offsets[output.name]
            for part in output.parts:
                if not isinstance(part, MatrixRows):
                    yield _WholePart(files[rank], offset, part)
                else:
                    for begin, end, destination, rows in _iterate_spans(part, offset):
                        key = (part.tensor.path, begin, end)
                        block = blocks.setdefault(key, _InputBlock(part.tensor, begin, end, []))
                        block.targets.append(_Destination(files[rank], destination, rows))
                offset += part.size
        yield from blocks.values()


def _iterate_spans(part: MatrixRows, at: int) -> Iterator[tuple[int, int, int, MatrixRows | None]]:
    """Yield byte ranges of input with the place of their output, and how it is made."""
    if part.plain:
        first, last = part.span(*part.rows)
        step = COPY - COPY % part.tensor.itemsize  # whole values
        for begin in range(first, last, step):
            yield begin, min(begin + step, last), at + begin - first, None
    else:
        for begin, end in part.steps():
            yield *part.span(begin, end), at + (begin - part.rows[0]) * part.width, part


def _check_sizes(ranks: Sequence[Sequence[OutputTensor]]) -> None:
    for output in (o for outputs in ranks for o in outputs):
        size = prod(output.shape) * SAFETENSORS_DTYPES[output.dtype]
        planned_size = sum(p.size for p in output.parts)
        if size != planned_size:
            raise AssertionError(f"{output.name}: {planned_size} bytes planned for {size}")


def write_ranks(
    directory: Path, ranks: Sequence[Sequence[OutputTensor]], *, threads: int | None = None
) -> int:
    """Write ``rank{r}.safetensors`` for each element of ``ranks``.

    Outputs of the same name are written together, block by block of their input, so that each block is read
    once for all ranks. The bytes depend on the outputs alone.

    Args:
        threads: default is the number of cores that this process may use, up to four.

    Returns:
        bytes written.

    Raises:
        MachineError: the disk cannot hold the files; nothing is written then.
        ModelError: a tensor of the model holds NaN or an infinity, or a value does not fit its dtype.
    """
    _check_sizes(ranks)
    need = sum(compute_file_layout(outputs)[2] for outputs in ranks)
    free = shutil.disk_usage(directory).free
    if need > free:
        raise MachineError(
            f"{format_bytes(need)} are needed, {format_bytes(free)} are free",
            where=str(directory.parent),
            fix="free disk space, or choose another -o",
        )
    workers = [_WriteWorker() for _ in range(threads or count_usable_threads())]
    files: list[_RankFileWriter] = []
    try:
        files.extend(
            _RankFileWriter(directory / rank_file_name(r), outputs) for r, outputs in enumerate(ranks)
        )
        with track_step("writing", need, BYTES) as progress:
            run_in_order(_iterate_tasks(files, ranks), [w.run for w in workers], progress.advance_to)
            progress.advance_to(need)
    finally:
        for worker in workers:
            worker.reader.__exit__()
        for file in files:
            os.close(file.fd)
    return need


def _group_by_name(ranks: Sequence[Sequence[OutputTensor]]) -> Iterator[list[tuple[int, OutputTensor]]]:
    """Group outputs by name, in order of first appearance."""
    groups: dict[str, list[tuple[int, OutputTensor]]] = {}
    for rank, outputs in enumerate(ranks):
        for output in outputs:
            groups.setdefault(output.name, []).append((rank, output))
    return iter(groups.values())
