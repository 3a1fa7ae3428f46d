"""Look up the model's tensors by module; dtypes and shapes are checked when a conversion is planned."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from enginix.checkpoint.byte_sources import MatrixRows, RowTransform, SourceFileReader
from enginix.checkpoint.rank_modules import LinearModule, MatrixSlice
from enginix.checkpoint.tensor_errors import explain_mismatch, explain_missing
from enginix.errors import ModelError
from enginix.model import ModelConfig, ModelWeights, TensorInfo
from enginix.model.family_rows import evaluate_expression, read_model_values

FLOATS = ("F32", "F16", "BF16")
# Buffers that old exporters stored; every model recomputes them.
_IGNORED = ("*.rotary_emb.inv_freq", "*.self_attn.masked_bias", "*.self_attn.bias")


@dataclass(frozen=True)
class EmbeddingProjection:
    """Matrices between an embedding of another width and the layers.

    Attributes:
        width: columns of the embedding.
        embedding, head: modules; their weights are [hidden, width] and [width, hidden].
    """

    width: int
    embedding: str
    head: str


@dataclass(frozen=True)
class SourceNames:
    """How a model names its tensors.

    Attributes:
        embedding, head: modules.
        tied: a head that is not stored is the embedding.
        prefix: what early exporters left out at the beginning of all names; None where none does.
        ignored: patterns of buffers that the model recomputes.
        projection: None where the embedding is as wide as the layers.
    """

    embedding: str = "model.embed_tokens"
    head: str = "lm_head"
    tied: bool = False
    prefix: str | None = None
    ignored: tuple[str, ...] = ()
    projection: EmbeddingProjection | None = None

    def locate(self, tensors: Container[str], module: str, leaf: str) -> str:
        """Return the name of a tensor as these weights have it."""
        name = f"{module}.{leaf}"
        if self.prefix is None or f"{self.embedding}.weight" in tensors:
            return name
        return name.removeprefix(self.prefix)


def name_source_tensors(model: ModelConfig) -> SourceNames:
    """Return the names of a model's tensors, by its architecture's row."""
    row, tied = model.description, model.tie_word_embeddings
    if "layout" not in row:
        return SourceNames(tied=tied)
    layout, projection = row["layout"], None
    if names := layout.get("projections"):
        values = read_model_values(model.raw, row) | {"hidden_size": model.hidden_size}
        width = evaluate_expression(row["sizes"]["embedding_width"], values, str(model.directory))
        projection = EmbeddingProjection(width, **names) if width != model.hidden_size else None
    ignored = tuple(row.get("ignored", ()))
    return SourceNames(layout["embedding"], layout["head"], tied, row.get("prefix"), ignored, projection)


class SourceTensors:
    """Looks tensors up, checks dtype and shape, and remembers which were used."""

    def __init__(self, weights: ModelWeights, reader: SourceFileReader, names: SourceNames) -> None:
        self.weights, self.reader, self.names = weights, reader, names
        self._used: set[str] = set()
        # A tied head is the embedding, unless the model stores it a second time.
        stored = names.locate(weights.tensors, names.head, "weight") in weights.tensors
        self._head = names.embedding if names.tied and not stored else names.head

    def name(self, module: str, leaf: str) -> str:
        if module == self.names.head and leaf != "bias":  # the bias of a tied head is its own
            module = self._head
        return self.names.locate(self.weights.tensors, module, leaf)

    def has(self, module: str, leaf: str) -> bool:
        return self.name(module, leaf) in self.weights.tensors

    def tensor(self, module: str, leaf: str, dtypes: Sequence[str], shape: tuple[int, ...]) -> TensorInfo:
        """Return the tensor ``module.leaf``.

        Raises:
            ModelError: absent, or of another dtype or shape than the config implies.
        """
        name = self.name(module, leaf)
        info = self.weights.tensors.get(name)
        if info is None:
            what, fix = explain_missing(name, self.weights.tensors)
            raise ModelError(what, where=str(self.weights.directory), fix=fix)
        self._used.add(name)
        # A scale of one element may be a scalar or a vector of one.
        shapes_match = info.shape == shape or (
            math.prod(shape) == 1 == math.prod(info.shape) and len(shape) < 2
        )
        if not shapes_match or info.dtype not in dtypes:
            what, fix = explain_mismatch(info, tuple(dtypes), shape)
            raise ModelError(what, where=str(info.path), fix=fix)
        return info

    def scale(self, module: str, leaf: str) -> float:
        """Return a float32 scale of one element.

        Raises:
            ModelError: absent, not finite, or not positive.
        """
        info = self.tensor(module, leaf, ("F32",), ())
        value = float(self.reader.array(info).reshape(-1)[0])
        if not math.isfinite(value) or value <= 0:
            raise ModelError(
                f"scale {info.name!r} is {value}", where=str(info.path), fix="quantize the model again"
            )
        return value

    def quantized(self, module: str) -> bool:
        """Return whether the module's weight has scales."""
        return self.has(module, "weight_scale")

    def unused(self) -> list[str]:
        """Return the tensors that no output was made of, without those that every model recomputes."""
        unused_names = set(self.weights.tensors) - self._used
        short = self.names.prefix or ""
        ignored = [*_IGNORED, *self.names.ignored, *(p.removeprefix(short) for p in self.names.ignored)]
        return sorted(n for n in unused_names if not any(fnmatchcase(n, p) for p in ignored))


def cut_slice(
    info: TensorInfo,
    piece: MatrixSlice,
    transform: RowTransform | None = None,
    *,
    elements: int = 1,
    rows_each: int = 1,
) -> MatrixRows:
    """Return the bytes of ``piece`` in a matrix that may be packed.

    Args:
        elements: input columns that one element of ``info`` holds (2 in one byte, for packed 4-bit columns).
        rows_each: output rows that one stored row holds.
    """
    unit = info.itemsize
    return MatrixRows(
        info,
        piece.inp // elements * unit,
        (piece.rows[0] // rows_each, piece.rows[1] // rows_each),
        (piece.cols[0] // elements * unit, piece.cols[1] // elements * unit),
        transform,
    )


def cut_pieces(
    linear: LinearModule,
    source: SourceTensors,
    leaf: str,
    dtypes: Sequence[str],
    *,
    elements: int = 1,
    rows_each: int = 1,
) -> tuple[MatrixRows, ...]:
    """Return the bytes of a tensor of every slice of a matrix, cut by :func:`cut_slice`."""
    pieces = [piece for group in linear.groups for piece in group]
    shapes = [(piece.out // rows_each, piece.inp // elements) for piece in pieces]
    return tuple(
        cut_slice(source.tensor(p.module, leaf, dtypes, s), p, elements=elements, rows_each=rows_each)
        for p, s in zip(pieces, shapes, strict=True)
    )


def cut_row_scales(linear: LinearModule, source: SourceTensors) -> tuple[MatrixRows, ...]:
    """Return the float32 scales of a dense matrix's output rows."""
    pieces = linear.groups[0]
    return tuple(
        cut_vector(source.tensor(p.module, "weight_scale", ("F32",), (p.out,)), p.rows) for p in pieces
    )


def cut_vector(info: TensorInfo, span: tuple[int, int], transform: RowTransform | None = None) -> MatrixRows:
    """Return the elements ``span`` of a vector."""
    size = info.itemsize
    return MatrixRows(info, size, span, (0, size), transform)
