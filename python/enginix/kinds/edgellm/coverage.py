"""Check that an export holds every weight of its checkpoint, and no other weights.

The exporter takes a tensor that the checkpoint lacks from uninitialized memory and exits with status 0, so
its status does not prove the export. Tensors are found by their bits: under their own name, or anywhere in
the graph if the exporter transposed a matrix or joined projections into one and lost the names.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from enginix.kinds.edgellm import int4_layouts
from enginix.kinds.edgellm.errors import ExportError
from enginix.kinds.edgellm.expected_tensors import IGNORED_SUFFIXES, SCALE_ERROR
from enginix.kinds.edgellm.graph import Constant, Graph
from enginix.kinds.edgellm.values import Bits, Expected, list_onnx_forms, to_float16, view_bits
from enginix.model import TensorInfo
from enginix.model.mapped_tensors import map_tensor

PREFIX = "_model."
KEY_ELEMENTS = 64  # elements of a row that find its candidates
JOINED_PROJECTIONS = ("q_proj", "k_proj", "v_proj")
_FIX = "fetch or quantize the model again; if it stays so, TensorRT Edge-LLM does not support this model"


@dataclass
class Claims:
    """Numbers of tensors by the method that found them, and the claimed rows of the graph's constants."""

    method_counts: Counter[str] = field(default_factory=Counter)
    rows: dict[str, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    worst_scale: float = 0.0

    def find_free(self, name: str, begin: int, end: int) -> int:
        """Return the first place from ``begin`` where as many rows or bytes are claimed by no tensor."""
        length = end - begin
        for taken_begin, taken_end in sorted(self.rows.get(name, [])):
            if taken_begin < begin + length and begin < taken_end:
                begin = taken_end
        return begin

    def take(self, method: str, name: str, begin: int, end: int) -> None:
        self.method_counts[method] += 1
        self.rows[name].append((begin, end))

    def is_covered(self, name: str, rows: int) -> bool:
        covered_rows = 0
        for begin, end in sorted(self.rows.get(name, [])):
            if begin > covered_rows:
                return False
            covered_rows = max(covered_rows, end)
        return covered_rows >= rows


def _iterate_sides(constant: Constant) -> Iterable[tuple[str, Bits]]:
    """Yield a matrix as it is and, if its elements are whole bytes, transposed."""
    array = view_bits(constant.array())
    if array.ndim == 1:
        array = array.reshape(1, -1)
    if array.ndim != 2:
        array = array.reshape(array.shape[0], -1) if array.size else array.reshape(1, 0)
    yield "as is", array
    if constant.dtype != "FLOAT4E2M1":
        yield "transposed", array.T


class _RowIndex:
    """Index of the rows of all matrices of one type, by their first elements."""

    def __init__(self, constants: Iterable[Constant]) -> None:
        self.sides: dict[tuple[str, str], Bits] = {}
        self.rows: dict[bytes, list[tuple[str, str, int]]] = defaultdict(list)
        for constant in constants:
            for side, array in _iterate_sides(constant):
                self.sides[constant.name, side] = array
                for row, key in enumerate(np.ascontiguousarray(array[:, :KEY_ELEMENTS])):
                    self.rows[key.tobytes()].append((constant.name, side, row))

    def list_candidates(self, expected: Expected) -> Iterator[tuple[str, str, int]]:
        """Yield places that may hold the tensor: constant, side, and first row."""
        rows, columns = expected.shape
        # Use a distinctive row: zeros would make every matrix a candidate.
        starts = (expected.rows(r, r + 1)[:, :KEY_ELEMENTS] for r in range(min(rows, 64)))
        row = next((r for r, start in enumerate(starts) if np.unique(start).size > 1), 0)
        key = expected.rows(row, row + 1)[:, :KEY_ELEMENTS].tobytes()
        for name, side, found_row in self.rows.get(key, []):
            array, begin = self.sides[name, side], found_row - row
            if array.shape[1] == columns and begin >= 0 and begin + rows <= array.shape[0]:
                yield name, side, begin

    def holds(self, expected: Expected, place: _Place) -> bool:
        array = self.sides[place.name, place.side]
        return expected.equals(array[place.begin : place.begin + expected.shape[0]])


@dataclass(frozen=True)
class _Place:
    """A part of a constant that holds a tensor's values; ``free`` if no other tensor claims it."""

    name: str
    side: str
    begin: int
    free: bool


def _claim_key(name: str, side: str) -> str:
    """Return the name under which a constant's rows are claimed, or its columns."""
    return f"{name}^T" if side == "transposed" else name


def _find_aligned(data: bytes, needle: bytes, size: int, begin: int = 0) -> int:
    """Return the offset of ``needle`` in ``data``, a multiple of ``size`` bytes; -1 if it is absent."""
    offset = data.find(needle, begin)
    while offset > 0 and offset % size:
        offset = data.find(needle, offset + 1)
    return offset


class Coverage:
    """Accounts for a checkpoint's tensors in a graph and its embedding table."""

    def __init__(self, graph: Graph, names: Iterable[str], embedding: TensorInfo | None, tied: bool) -> None:
        self.graph = graph
        self.names = frozenset(names)
        self.embedding = embedding
        self.tied = tied
        self.claims = Claims()
        self._indexes: dict[str, _RowIndex] = {}

    def _index(self, form: str) -> _RowIndex:
        if form not in self._indexes:
            chosen = (c for c in self.graph.constants.values() if c.dtype == form and c.elements > 1)
            self._indexes[form] = _RowIndex(chosen)
        return self._indexes[form]

    def _by_name(self, tensor: TensorInfo, constant: Constant) -> bool:
        for form in list_onnx_forms(tensor.dtype):
            if form != constant.dtype:
                continue
            expected = Expected(tensor, form)
            if any(expected.equals(array) for _, array in _iterate_sides(constant)):
                self.claims.take("by name", constant.name, 0, self._rows(constant))
                return True
        if tensor.dtype == "U8" and constant.dtype in ("INT8", "UINT8") and len(tensor.shape) == 2:
            codes = int4_layouts.read_checkpoint_codes(map_tensor(tensor))
            for restore in (int4_layouts.restore_fragment_order, int4_layouts.restore_interleaved_order):
                restored = restore(constant.data, *codes.shape)
                if restored is not None and np.array_equal(restored, codes):
                    self.claims.take("by layout", constant.name, 0, self._rows(constant))
                    return True
        return False

    @staticmethod
    def _rows(constant: Constant) -> int:
        return constant.shape[0] if len(constant.shape) > 1 else 1

    def _scalar(self, tensor: TensorInfo, named: Constant | None) -> bool:
        """Claim a scale: it equals the constant of its name or a shared one, or is at most a joined one."""
        value = np.float32(Expected(tensor, "FLOAT").rows(0, 1).view(np.float32)[0, 0])
        narrow = np.float32(to_float16(np.array([value]), tensor.name)[0])
        if value != 0:
            error = float(abs(narrow - value) / abs(value))
            if named is not None and named.dtype == "FLOAT16" and error > SCALE_ERROR:
                raise ExportError(
                    f"its value {value:.3g} becomes {narrow:.3g} in float16, {error:.0%} off",
                    where=tensor.name,
                    fix="calibrate on text that the model sees in use, or quantize to another format",
                )
        kinds = {"FLOAT": value, "FLOAT16": narrow}

        def holds(constant: Constant) -> bool:
            if constant.elements != 1 or constant.dtype not in kinds:
                return False
            return bool(np.float32(constant.array().reshape(-1)[0]) == kinds[constant.dtype])

        if named is not None and holds(named):
            self.claims.take("by name", named.name, 0, 1)
            if named.dtype == "FLOAT16" and value != 0:
                self.claims.worst_scale = max(self.claims.worst_scale, error)
            return True
        if named is not None:
            return False
        if any(map(holds, self.graph.constants.values())):
            self.claims.method_counts["shared scale"] += 1
            return True
        for part in JOINED_PROJECTIONS:
            joined = self.graph.constants.get(PREFIX + tensor.name.replace(f".{part}.", ".qkv_proj_fused."))
            if joined is not None and joined.elements == 1 and joined.array().reshape(-1)[0] >= narrow:
                self.claims.method_counts["joined scale"] += 1
                return True
        if tensor.name.endswith((".k_scale", ".v_scale")):
            attentions = [n for n in self.graph.nodes if n.op == "AttentionPlugin"]
            scales = [s for n in attentions for s in n.attributes.get("qkv_scales", [])]
            if any(np.isclose(s, value, rtol=1e-3) for s in scales):
                self.claims.method_counts["attribute"] += 1
                return True
        return False

    def _vector(self, tensor: TensorInfo) -> bool:
        """Claim a vector: a whole constant, or a part of a joined one (a bias of several projections)."""
        for form in list_onnx_forms(tensor.dtype):
            expected = Expected(tensor, form)
            needle = expected.rows(0, 1).tobytes()
            places = self._list_vector_places(form, needle, len(needle) // expected.shape[1])
            for place in self._sort_places(tensor, places):
                # A vector is one row; parts of a joined one are claimed by bytes.
                self.claims.take("by value", f"{place.name} bytes", place.begin, place.begin + len(needle))
                return True
        return False

    def _list_vector_places(self, form: str, needle: bytes, size: int) -> Iterator[_Place]:
        """Yield the places that hold the bytes of a vector, at most one that is claimed for each constant."""
        for constant in self.graph.constants.values():
            if constant.dtype != form or len(constant.shape) != 1 or constant.data.size < len(needle):
                continue
            key, data = f"{constant.name} bytes", constant.data.tobytes()
            first = offset = _find_aligned(data, needle, size)
            while offset >= 0:
                free = self.claims.find_free(key, offset, offset + len(needle))
                if free == offset:
                    yield _Place(constant.name, "as is", offset, True)
                    break
                offset = _find_aligned(data, needle, size, free)
            if first >= 0 > offset:
                yield _Place(constant.name, "as is", first, False)

    def _sort_places(self, tensor: TensorInfo, places: Iterable[_Place]) -> list[_Place]:
        """Sort places that may hold a tensor: where no other tensor is before others, its own module first.

        Tensors with equal values are common: copied layers of merged models, zeros of expanded ones.
        """
        module = tensor.name.rpartition(".")[0]
        own = {module, re.sub(r"\.[qkv]_proj$", ".qkv_proj_fused", module)}

        def rank(place: _Place) -> tuple[bool, bool]:
            readers = self.graph.consumers.get(place.name, ())
            return not place.free, not any(node.module in own for node in readers)

        return sorted(places, key=rank)

    def _embedding(self, tensor: TensorInfo) -> None:
        if self.embedding is None:
            raise ExportError("embedding.safetensors holds no table", where=tensor.name, fix=_FIX)
        if self.embedding.shape != tensor.shape:
            shapes = f"{list(self.embedding.shape)}, the checkpoint's {list(tensor.shape)}"
            raise ExportError(f"the exported table is {shapes}", where=tensor.name, fix=_FIX)
        stored = Expected(self.embedding, "FLOAT16")
        if self.embedding.dtype == "F16" and not Expected(tensor, "FLOAT16").equals(stored):
            raise ExportError("the exported table has other values", where=tensor.name, fix=_FIX)
        self.claims.method_counts["embedding"] += 1

    def account(self, tensor: TensorInfo) -> bool:
        """Tell whether the tensor is in the export, and claim the rows that hold it."""
        if tensor.name.endswith(IGNORED_SUFFIXES):
            self.claims.method_counts["not a weight"] += 1
            return True
        if tensor.name.endswith("embed_tokens.weight"):
            self._embedding(tensor)
            named = self.graph.constants.get(PREFIX + "lm_head.weight")
            if self.tied and named is not None and not self._by_name(tensor, named):
                raise ExportError("the tied output layer has other values", where="lm_head.weight", fix=_FIX)
            return True
        named = self.graph.constants.get(PREFIX + tensor.name)
        if int(np.prod(tensor.shape)) == 1:
            return self._scalar(tensor, named)
        if named is not None and self._by_name(tensor, named):
            return True
        if named is not None and not any(f".{part}." in tensor.name for part in JOINED_PROJECTIONS):
            return False
        if len(tensor.shape) == 1:
            return self._vector(tensor)
        return any(self._matrix(tensor, form) for form in list_onnx_forms(tensor.dtype))

    def _matrix(self, tensor: TensorInfo, form: str) -> bool:
        """Claim a matrix: rows of a constant, or columns of one that the exporter transposed."""
        index, expected, rows = self._index(form), Expected(tensor, form), tensor.shape[0]
        candidates = (
            _Place(name, side, begin, self._is_free(name, side, begin, begin + rows))
            for name, side, begin in index.list_candidates(expected)
        )
        place = next((p for p in self._sort_places(tensor, candidates) if index.holds(expected, p)), None)
        if place is None:
            return False
        name, begin = place.name, place.begin
        constant, key = self.graph.constants[name], _claim_key(name, place.side)
        self.claims.take("by value", key, begin, begin + rows)
        # Columns of a transposed matrix are counted against its last dimension.
        if place.side == "transposed" and self.claims.is_covered(key, constant.shape[-1]):
            self.claims.rows[name].append((0, self._rows(constant)))
        return True

    def _is_free(self, name: str, side: str, begin: int, end: int) -> bool:
        other = _claim_key(name, "as is" if side == "transposed" else "transposed")
        key = _claim_key(name, side)
        return not self.claims.rows.get(other) and self.claims.find_free(key, begin, end) == begin

    def list_unexplained(self) -> list[str]:
        """List constants that look like weights but come from no tensor of the checkpoint."""
        names = []
        for name, constant in self.graph.constants.items():
            if constant.elements == 1:
                # A scale of the checkpoint, alone or for joined projections.
                base = re.sub(r"__dup\d+$", "", name.removeprefix(PREFIX))
                bases = {base.replace("qkv_proj_fused", part) for part in JOINED_PROJECTIONS}
                if name.startswith(PREFIX) and not bases & self.names:
                    names.append(name)
                continue
            if constant.dtype in ("INT64", "INT32", "BOOL"):
                continue
            covered_bytes = self.claims.is_covered(f"{name} bytes", constant.data.size)
            is_whole = covered_bytes or self.claims.is_covered(name, self._rows(constant))
            if not is_whole and not _is_neutral(constant):
                names.append(name)
        return names


def _is_neutral(constant: Constant) -> bool:
    """Tell whether a vector is a constant of the graph's arithmetic, or a neutral (folded) scale."""
    if len(constant.shape) != 1 or np.unique(view_bits(constant.array())).size != 1:
        return False
    folded = constant.name.endswith(".pre_quant_scale") and constant.array()[0] == 1
    return bool(folded or not constant.name.startswith(PREFIX))


def check_coverage(
    graph: Graph, tensors: Iterable[TensorInfo], embedding: TensorInfo | None, tied: bool
) -> dict[str, object]:
    """Account for every tensor of a checkpoint.

    Returns:
        Figures for the manifest: tensors by the method that found them, the worst relative error of a scale.

    Raises:
        ExportError: the export lacks tensors of the checkpoint, or has weights that are not from it.
    """
    sorted_tensors = sorted(tensors, key=lambda t: t.name)
    coverage = Coverage(graph, (t.name for t in sorted_tensors), embedding, tied)
    missing_names = [t.name for t in sorted_tensors if not coverage.account(t)]
    if missing_names:
        what = f"{_format_weight_names(missing_names)} of the checkpoint not in the export"
        raise ExportError(what, where=graph.path, fix=_FIX)
    unexplained_names = coverage.list_unexplained()
    if unexplained_names:
        described = _format_weight_names([_describe_constant(graph, name) for name in unexplained_names])
        what = f"{described} in the export, which come from no tensor of the checkpoint"
        raise ExportError(what, where=graph.path, fix=_FIX)
    claims = coverage.claims
    return {
        "tensors": len(sorted_tensors),
        "found": dict(sorted(claims.method_counts.items())),
        "worstScaleError": round(claims.worst_scale, 6),
    }


def _describe_constant(graph: Graph, name: str) -> str:
    """Describe a constant by its shape and the module that reads it, as its name is often a number."""
    shape = "x".join(map(str, graph.constants[name].shape)) or "a number"
    modules = sorted({node.module for node in graph.consumers.get(name, ()) if node.module})
    place = f" of {modules[0]}" if modules else ""
    return f"{name} ({shape}{place})"


def _format_weight_names(names: list[str]) -> str:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{len(names)} weight{'s' * (len(names) > 1)}: {shown}:"
