"""The parts of a rank of a checkpoint: matrices and vectors, by their names in both formats."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal


@dataclass(frozen=True)
class MatrixSlice:
    """Rows and columns of one Hugging Face matrix, ``pad`` zero rows behind them.

    Attributes:
        module: Hugging Face module, for instance ``model.layers.0.self_attn.q_proj``.
        out, inp: the whole matrix's rows and columns.
        rows, cols: half-open ranges in it.
        leaf: last name of the Hugging Face tensor.
        transposed: the model stores it as [inp, out].
    """

    module: str
    out: int
    inp: int
    rows: tuple[int, int]
    cols: tuple[int, int]
    pad: int = 0
    leaf: str = "weight"
    transposed: bool = False

    @property
    def stored_shape(self) -> tuple[int, int]:
        """Return the shape of the model's tensor."""
        return (self.inp, self.out) if self.transposed else (self.out, self.inp)

    @property
    def height(self) -> int:
        return self.rows[1] - self.rows[0] + self.pad

    @property
    def width(self) -> int:
        return self.cols[1] - self.cols[0]


@dataclass(frozen=True)
class LinearModule:
    """A TensorRT-LLM matrix: slices stacked by rows, and for experts one such stack each.

    Attributes:
        name: for instance ``transformer.layers.0.attention.qkv``; layers count from 0 in each rank.
        groups: one tuple of slices for a dense matrix, one per local expert otherwise.
        split: ``column`` cuts output rows over ranks (their biases, too), ``row`` cuts input columns.
        stacked: the tensors' first axis is the expert.
        quantizable: whether a quantized format may apply to it.
        dtype: overrides the checkpoint's dtype (the router is ``float32``).
        zero_bias: the bias is zeros on this rank, since another rank adds it.
        arithmetic: computed of each row, in the checkpoint's dtype: ``unit_length`` divides it by its length,
            ``root_of_width`` multiplies it by the root of its width.
    """

    name: str
    groups: tuple[tuple[MatrixSlice, ...], ...]
    split: Literal["column", "row"]
    bias: bool = False
    stacked: bool = False
    quantizable: bool = True
    dtype: str | None = None
    zero_bias: bool = False
    arithmetic: Literal["unit_length", "root_of_width"] | None = None

    @property
    def out(self) -> int:
        return sum(s.height for s in self.groups[0])

    @property
    def inp(self) -> int:
        return self.groups[0][0].width

    def shape(self, *tail: int) -> tuple[int, ...]:
        """Return ``tail`` after the expert axis, if there is one."""
        return (len(self.groups), *tail) if self.stacked else tail

    def modules(self) -> list[str]:
        """Return the Hugging Face modules that it is made of, each once, in order."""
        return list(dict.fromkeys(s.module for group in self.groups for s in group))


@dataclass(frozen=True)
class VectorModule:
    """A whole vector on every rank that has it: a norm's weight or bias.

    Attributes:
        leaf: last name of the tensor, in the checkpoint and in the model.
        offset: added to each element, in the checkpoint's dtype.
    """

    name: str
    module: str
    size: int
    leaf: str = "weight"
    offset: int = 0

    @property
    def tensor_name(self) -> str:
        return f"{self.name}.{self.leaf}"


@dataclass(frozen=True)
class KvCacheModule:
    """The KV cache scales of a layer."""

    name: str
    modules: tuple[str, str]  # Hugging Face modules that carry k_scale and v_scale


@dataclass(frozen=True)
class SlicedTensor:
    """A tensor of any shape that is cut along its first axis.

    Attributes:
        name: whole name in the checkpoint.
        source_shape: the whole tensor's shape in the model.
        ranges: half-open ranges of the first axis, in the order of the checkpoint.
        shape: on this rank; of as many elements as ``ranges`` have.
    """

    name: str
    module: str
    leaf: str
    source_shape: tuple[int, ...]
    ranges: tuple[tuple[int, int], ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class AbsorbedQueries(SlicedTensor):
    """The queries of latent attention, with the keys' second projection multiplied into them.

    Of each head the rows of ``keys``, transposed, times the head's rows of ``module``, and then the rows that
    are rotated as they are. ``ranges`` are the query rows of each head, those that are rotated last.

    Attributes:
        keys: the whole of the keys' and values' second projection.
        key_ranges: its rows of each head's keys.
    """

    keys: MatrixSlice
    key_ranges: tuple[tuple[int, int], ...]


Module = LinearModule | VectorModule | KvCacheModule | SlicedTensor


def split_evenly(total: int, parts: int, index: int) -> tuple[int, int]:
    return total // parts * index, total // parts * (index + 1)


def split_padded(total: int, parts: int, index: int) -> tuple[tuple[int, int], int]:
    """Return a part's rows and its number of zero rows: ceil(total / parts) in all, the last ones padded."""
    part_size = ceil(total / parts)
    begin, end = min(part_size * index, total), min(part_size * (index + 1), total)
    return (begin, end), part_size - (end - begin)
