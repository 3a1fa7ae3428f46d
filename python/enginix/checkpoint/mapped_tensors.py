"""One rank's tensors, mapped as NumPy arrays for checks and merges, which read every byte."""

from __future__ import annotations

from pathlib import Path

from enginix.checkpoint.numbers import Array
from enginix.model import read_header
from enginix.model.mapped_tensors import map_tensor


class RankFile:
    """One rank's tensors by name.

    Raises:
        ModelError: the file is missing or its header is wrong.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors = read_header(path).tensors

    def __getitem__(self, name: str) -> Array:
        return map_tensor(self.tensors[name])

    def leaves(self, module: str) -> dict[str, Array]:
        """Return the tensors of one module by their last name."""
        prefix = f"{module}."
        return {
            name[len(prefix) :]: map_tensor(info)
            for name, info in self.tensors.items()
            if name.startswith(prefix) and "." not in name[len(prefix) :]
        }
