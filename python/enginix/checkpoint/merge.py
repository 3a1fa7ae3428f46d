"""The ranks of a checkpoint put together again: the model's tensors, under the model's names.

The converse of conversion, written from the layout alone. The tests hold conversion against it; a reader
that wants whole matrices (the reference executor, a report) can use it, too. Quantized matrices come back
as float32, dequantized.
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
from enginix.checkpoint.layout import Layout, Linear, Slice, Vector
from enginix.checkpoint.stored import RankFile
from enginix.checkpoint.verify import algorithm_of, nvfp4_form
from enginix.checkpoint.write import file_name
from enginix.errors import CheckpointError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class _Place:
    """Where one slice of a model's matrix lies: rank, matrix, expert, first row in it."""

    rank: int
    linear: Linear
    expert: int
    piece: Slice
    row: int


class Merged:
    """A checkpoint's tensors by the model's names, assembled one at a time.

    Raises:
        CheckpointError: a tensor is missing, or ranks that hold the same rows disagree.
    """

    def __init__(self, directory: Path) -> None:
        self.config = CheckpointConfig.read(directory)
        self.layout = Layout(self.config)
        self.files = [RankFile(directory / file_name(r)) for r in self.config.mapping.ranks()]
        self._forms = [nvfp4_form(dict(f.tensors), self.layout, r) for r, f in enumerate(self.files)]
        self._places: dict[str, list[_Place]] = {}
        self._vectors: dict[str, tuple[int, str]] = {}
        for rank in self.config.mapping.ranks():
            self._index(rank)

    def _index(self, rank: int) -> None:
        for module in self.layout.rank(rank):
            if isinstance(module, Vector):
                self._vectors.setdefault(f"{module.module}.weight", (rank, f"{module.name}.weight"))
            elif isinstance(module, Linear):
                for expert, group in enumerate(module.groups):
                    row = 0
                    for piece in group:
                        place = _Place(rank, module, expert, piece, row)
                        self._places.setdefault(piece.module, []).append(place)
                        row += piece.height

    def __iter__(self) -> Iterator[tuple[str, Array]]:
        """Name and tensor, for instance ``model.layers.0.self_attn.q_proj.weight``, [out, in]."""
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

    def _values(self, place: _Place) -> Array:
        """The rows and columns of one slice."""
        linear, algorithm = place.linear, algorithm_of(place.linear, self.config)
        if algorithm is None:
            whole = self._stored(place.rank, f"{linear.name}.weight")
        else:
            leaves = self.files[place.rank].leaves(linear.name)
            whole = format_of(algorithm, self._forms[place.rank]).dequantize(leaves, linear)[0]
        matrix = whole[place.expert] if linear.stacked else whole
        return matrix[place.row : place.row + place.piece.rows[1] - place.piece.rows[0]]

    def _put(self, into: Array, done: npt.NDArray[np.bool_], at: Any, values: Array, place: _Place) -> None:
        if done[at].any() and not np.array_equal(into[at][done[at]], values[done[at]]):
            raise CheckpointError(
                f"{place.piece.module}: ranks that hold the same part disagree",
                where=str(self.files[place.rank].path),
                fix="convert the model again",
            )
        into[at], done[at] = values, True

    def _matrix(self, places: list[_Place]) -> Array:
        first = self._values(places[0])
        shape = (places[0].piece.out, places[0].piece.inp)
        whole, done = np.zeros(shape, first.dtype), np.zeros(shape, np.bool_)
        for place in places:
            at = (slice(*place.piece.rows), slice(*place.piece.cols))
            self._put(whole, done, at, self._values(place), place)
        return whole

    def _bias(self, places: list[_Place]) -> Array:
        whole, done = None, np.zeros(places[0].piece.out, np.bool_)
        for place in places:
            stored = self._stored(place.rank, f"{place.linear.name}.bias")
            height = place.piece.rows[1] - place.piece.rows[0]
            whole = np.zeros(done.shape, stored.dtype) if whole is None else whole
            self._put(whole, done, slice(*place.piece.rows), stored[place.row : place.row + height], place)
        assert whole is not None
        return whole
