"""Rank files, written side by side in one pass over the input."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from enginix.checkpoint.parallel import in_order, usable_threads
from enginix.checkpoint.parts import COPY, Output, Part, Reader, Rows
from enginix.console import Heartbeat, human_bytes
from enginix.errors import MachineError
from enginix.model.safetensors import DTYPES

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


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

    def write(self, data: bytes | memoryview, at: int) -> None:
        view = memoryview(data)
        while view:
            done = os.pwrite(self.fd, view, at)
            view, at = view[done:], at + done


@dataclass(frozen=True)
class _Target:
    """Where something made of a block of input goes; ``rows`` None copies the block."""

    file: _File
    at: int
    rows: Rows | None


@dataclass(frozen=True)
class _Block:
    """A range of one input file, read once for all ranks that want something of it."""

    path: Path
    begin: int
    end: int
    targets: list[_Target]

    def run(self, worker: _Worker) -> int:
        # One small buffer: copy_file_range was measured slower, since tensors rarely keep their place within
        # a page and the kernel then copies page by page (docs/checkpoints.md).
        data, done = worker.reader.read(self.path, self.begin, self.end), 0
        for target in self.targets:
            made = data if target.rows is None else worker.make(target.rows, data)
            target.file.write(made, target.at)
            done += len(made)
        return done


@dataclass(frozen=True)
class _Whole:
    """A part that needs no input, or makes its own way through several."""

    file: _File
    at: int
    part: Part

    def run(self, worker: _Worker) -> int:
        at = self.at
        for data in self.part.blocks(worker.reader):
            self.file.write(data, at)
            at += len(data)
        if at - self.at != self.part.size:
            raise AssertionError(f"{at - self.at} bytes made for {self.part.size}")
        return self.part.size


class _Worker:
    """What a thread needs for itself: open inputs, and a buffer for what is made of them."""

    def __init__(self) -> None:
        self.reader = Reader()
        self._made: npt.NDArray[np.uint8] | None = None

    def run(self, task: _Block | _Whole) -> int:
        return task.run(self)

    def make(self, rows: Rows, data: memoryview) -> memoryview:
        """Valid until the next call."""
        import numpy as np

        size = len(data) // rows.stride * rows.width
        if self._made is None or len(self._made) < size:
            self._made = np.empty(size, np.uint8)
        rows.make(data, self._made[:size])
        return self._made[:size].data


def _tasks(files: Sequence[_File], ranks: Sequence[Sequence[Output]]) -> Iterator[_Block | _Whole]:
    """Every task knows its place in the output, so that any order gives the same bytes."""
    for group in _by_name(ranks):
        blocks: dict[tuple[Path, int, int], _Block] = {}
        for rank, output in group:
            at = files[rank].offsets[output.name]
            for part in output.parts:
                if not isinstance(part, Rows):
                    yield _Whole(files[rank], at, part)
                else:
                    for begin, end, to, rows in _spans(part, at):
                        key = (part.tensor.path, begin, end)
                        block = blocks.setdefault(key, _Block(*key, []))
                        block.targets.append(_Target(files[rank], to, rows))
                at += part.size
        yield from blocks.values()


def _spans(part: Rows, at: int) -> Iterator[tuple[int, int, int, Rows | None]]:
    """Byte ranges of input, where what is made of each goes, and how it is made."""
    if part.plain:
        first, last = part.span(*part.rows)
        for begin in range(first, last, COPY):
            yield begin, min(begin + COPY, last), at + begin - first, None
    else:
        for begin, end in part.steps():
            yield *part.span(begin, end), at + (begin - part.rows[0]) * part.width, part


def _check_sizes(ranks: Sequence[Sequence[Output]]) -> None:
    for output in (o for outputs in ranks for o in outputs):
        size, made = prod(output.shape) * DTYPES[output.dtype], sum(p.size for p in output.parts)
        if size != made:
            raise AssertionError(f"{output.name}: {made} bytes planned for {size}")


def write_ranks(directory: Path, ranks: Sequence[Sequence[Output]], *, threads: int | None = None) -> int:
    """Writes ``rank{r}.safetensors`` for each element of ``ranks``.

    Outputs of the same name are written together, block by block of their input, so that each block is read
    once for all ranks. The bytes depend on the outputs alone.

    Args:
        threads: default is one a core that this process may use, up to four.

    Returns:
        bytes written.

    Raises:
        MachineError: the disk cannot hold the files; nothing is written then.
    """
    _check_sizes(ranks)
    need = sum(plan_file(outputs)[2] for outputs in ranks)
    free = shutil.disk_usage(directory).free
    if need > free:
        raise MachineError(
            f"{human_bytes(need)} are needed, {human_bytes(free)} are free",
            where=str(directory.parent),
            fix="free disk space, or choose another -o",
        )
    workers = [_Worker() for _ in range(threads or usable_threads())]
    files: list[_File] = []
    heartbeat = Heartbeat()
    try:
        files.extend(_File(directory / file_name(r), outputs) for r, outputs in enumerate(ranks))
        in_order(
            _tasks(files, ranks),
            [w.run for w in workers],
            lambda done: heartbeat.beat(f"written {human_bytes(done)} of {human_bytes(need)}"),
        )
    finally:
        for worker in workers:
            worker.reader.__exit__()
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
