"""Merge the ranks of a checkpoint into the model's tensors, under the model's names.

This is the inverse of conversion, written from the layout alone; the tests compare conversion with it.
Quantized matrices are dequantized to float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from enginix.checkpoint.config import CheckpointConfig
from enginix.checkpoint.formats import format_of
from enginix.checkpoint.layout import CheckpointLayout
from enginix.checkpoint.mapped_tensors import RankFile
from enginix.checkpoint.rank_modules import LinearModule, MatrixSlice, VectorModule
from enginix.checkpoint.verify import algorithm_of, nvfp4_form
from enginix.checkpoint.write import rank_file_name
from enginix.errors import CheckpointError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class _SliceLocation:
    """The place of one slice of a model's matrix: rank, matrix, expert, first row in it."""

    rank: int
    linear: LinearModule
    expert: int
    piece: MatrixSlice
    row: int


class MergedCheckpoint:
    """A checkpoint's tensors under the model's names, assembled one at a time.

    Raises:
        CheckpointError: a tensor is missing, or ranks that hold the same rows disagree.
    """

    def __init__(self, directory: Path) -> None:
        self.config = CheckpointConfig.read(directory)
        self.layout = CheckpointLayout(self.config)
        self.files = [RankFile(directory / rank_file_name(r)) for r in self.config.mapping.ranks()]
        self._forms = [nvfp4_form(dict(f.tensors), self.layout, r) for r, f in enumerate(self.files)]
        self._places: dict[str, list[_SliceLocation]] = {}
        self._vectors: dict[str, tuple[int, str]] = {}
        for rank in self.config.mapping.ranks():
            self._index(rank)

    def _index(self, rank: int) -> None:
        for module in self.layout.rank(rank):
            if isinstance(module, VectorModule):
                self._vectors.setdefault(f"{module.module}.weight", (rank, f"{module.name}.weight"))
            elif isinstance(module, LinearModule):
                for expert, group in enumerate(module.groups):
                    row = 0
                    for piece in group:
                        location = _SliceLocation(rank, module, expert, piece, row)
                        self._places.setdefault(piece.module, []).append(location)
                        row += piece.height

    def __iter__(self) -> Iterator[tuple[str, Array]]:
        """Yield name and tensor, for instance ``model.layers.0.self_attn.q_proj.weight``, [out, in]."""
        for name, (rank, stored) in self._vectors.items():
            yield name, self._stored(rank, stored)
        for module, places in self._places.items():
            yield f"{module}.weight", self._matrix(places)
            if places[0].linear.bias:
                yield f"{module}.bias", self._bias(places)

    def _stored(self, rank: int, name: str) -> Array:
        file = self.files[rank]
        if name not in file.tensors:
            raise CheckpointError(
                f"tensor {name!r} is missing", where=str(file.path), fix="convert the model again"
            )
        return file[name]

    def _values(self, location: _SliceLocation) -> Array:
        """Return the rows and columns of one slice."""
        linear, algorithm = location.linear, algorithm_of(location.linear, self.config)
        if algorithm is None:
            whole = self._stored(location.rank, f"{linear.name}.weight")
        else:
            leaves = self.files[location.rank].leaves(linear.name)
            whole = format_of(algorithm, self._forms[location.rank]).dequantize(leaves, linear)[0]
        matrix = whole[location.expert] if linear.stacked else whole
        return matrix[location.row : location.row + location.piece.rows[1] - location.piece.rows[0]]

    def _put(
        self, into: Array, done: npt.NDArray[np.bool_], index: Any, values: Array, location: _SliceLocation
    ) -> None:
        if done[index].any() and not np.array_equal(into[index][done[index]], values[done[index]]):
            raise CheckpointError(
                f"{location.piece.module}: ranks that hold the same part disagree",
                where=str(self.files[location.rank].path),
                fix="convert the model again",
            )
        into[index], done[index] = values, True

    def _matrix(self, places: list[_SliceLocation]) -> Array:
        first = self._values(places[0])
        shape = (places[0].piece.out, places[0].piece.inp)
        whole, done = np.zeros(shape, first.dtype), np.zeros(shape, np.bool_)
        for location in places:
            index = (slice(*location.piece.rows), slice(*location.piece.cols))
            self._put(whole, done, index, self._values(location), location)
        return whole

    def _bias(self, places: list[_SliceLocation]) -> Array:
        whole, done = None, np.zeros(places[0].piece.out, np.bool_)
        for location in places:
            stored = self._stored(location.rank, f"{location.linear.name}.bias")
            height = location.piece.rows[1] - location.piece.rows[0]
            whole = np.zeros(done.shape, stored.dtype) if whole is None else whole
            self._put(
                whole,
                done,
                slice(*location.piece.rows),
                stored[location.row : location.row + height],
                location,
            )
        assert whole is not None
        return whole
