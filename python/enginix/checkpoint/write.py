"""Rank files, written side by side in one pass over the input."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from math import prod
from pathlib import Path

from enginix.checkpoint.parts import FileRange, Output, Piece, Reader
from enginix.console import Heartbeat, human_bytes
from enginix.errors import MachineError
from enginix.model.safetensors import DTYPES


def file_name(rank: int) -> str:
    return f"rank{rank}.safetensors"


def _order(output: Output) -> tuple[int, str]:
    # Widest elements first keeps every tensor aligned to its element, as the format's own writer does.
    return -DTYPES[output.dtype], output.name


def plan_file(outputs: Sequence[Output]) -> tuple[bytes, dict[str, int], int]:
    """Header bytes, each tensor's file offset, and the file's size; depends on names and shapes alone."""
    entries, offsets, at = {}, {}, 0
    for output in sorted(outputs, key=_order):
        size = prod(output.shape) * DTYPES[output.dtype]
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


class _File:
    def __init__(self, path: Path, outputs: Sequence[Output]) -> None:
        self.header, self.offsets, self.size = plan_file(outputs)
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self.write(self.header, 0)
        os.ftruncate(self.fd, self.size)

    def write(self, data: bytes | memoryview, at: int) -> int:
        view, begin = memoryview(data), at
        while view:
            done = os.pwrite(self.fd, view, at)
            view, at = view[done:], at + done
        return at - begin

    def copy(self, source: FileRange, at: int, reader: Reader) -> int:
        """Copies without looking, through one small buffer.

        copy_file_range was measured slower: tensors rarely keep their place within a page, and the kernel
        then copies page by page (docs/checkpoints.md).
        """
        begin, first = source.begin, at
        while begin < source.end:
            block = reader.block(source.path, begin, source.end)
            at += self.write(block, at)
            begin += len(block)
        return at - first


def write_ranks(directory: Path, ranks: Sequence[Sequence[Output]]) -> int:
    """Writes ``rank{r}.safetensors`` for each element of ``ranks``.

    Outputs of the same name are written together, chunk by chunk over the ranks, so that each chunk of
    the input is read once. The bytes depend on the outputs alone.

    Returns:
        bytes written.

    Raises:
        MachineError: the disk cannot hold the files; nothing is written then.
    """
    need = sum(plan_file(outputs)[2] for outputs in ranks)
    free = shutil.disk_usage(directory).free
    if need > free:
        raise MachineError(
            f"{human_bytes(need)} are needed, {human_bytes(free)} are free",
            where=str(directory.parent),
            fix="free disk space, or choose another -o",
        )
    files: list[_File] = []
    heartbeat, done = Heartbeat(), 0
    try:
        files.extend(_File(directory / file_name(r), outputs) for r, outputs in enumerate(ranks))
        with Reader() as reader:
            for group in _by_name(ranks):
                streams = [_Stream(files[r], output, reader) for r, output in group]
                for step in zip_longest(*streams):
                    done += sum(n or 0 for n in step)
                heartbeat.beat(f"written {human_bytes(done)} of {human_bytes(need)}")
    finally:
        for file in files:
            os.close(file.fd)
    return need


def _by_name(ranks: Sequence[Sequence[Output]]) -> Iterator[list[tuple[int, Output]]]:
    """Outputs grouped by name, in order of first appearance."""
    groups: dict[str, list[tuple[int, Output]]] = {}
    for rank, outputs in enumerate(ranks):
        for output in outputs:
            groups.setdefault(output.name, []).append((rank, output))
    return iter(groups.values())


class _Stream:
    """Writes one output piece by piece; iterating yields the bytes of each."""

    def __init__(self, file: _File, output: Output, reader: Reader) -> None:
        self.file, self.output, self.reader = file, output, reader

    def __iter__(self) -> Iterator[int]:
        begin = at = self.file.offsets[self.output.name]
        for piece in self.output.pieces(self.reader):
            done = self._put(piece, at)
            at += done
            yield done
        size = prod(self.output.shape) * DTYPES[self.output.dtype]
        if at - begin != size:
            raise AssertionError(f"{self.output.name}: {at - begin} bytes made for {size}")

    def _put(self, piece: Piece, at: int) -> int:
        if isinstance(piece, FileRange):
            return self.file.copy(piece, at, self.reader)
        return self.file.write(piece, at)
