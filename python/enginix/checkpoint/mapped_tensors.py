"""Map tensors of safetensors files as NumPy arrays, for checks and merges, which read every byte."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np

from enginix.checkpoint.numbers import Array, numpy_dtype
from enginix.model import TensorInfo, read_header


def map_tensor(info: TensorInfo) -> Array:
    """Return a tensor mapped read-only, with its NumPy dtype and shape."""
    if info.nbytes == 0:
        return np.zeros(info.shape, numpy_dtype(info.dtype))
    # np.memmap also resolves the path, for every tensor: twice as much work as mapping it.
    before = info.begin % mmap.ALLOCATIONGRANULARITY
    with open(info.path, "rb") as file:
        mapped = mmap.mmap(
            file.fileno(), info.nbytes + before, access=mmap.ACCESS_READ, offset=info.begin - before
        )
    return np.frombuffer(mapped, numpy_dtype(info.dtype), offset=before).reshape(info.shape)


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
