"""Whether an export holds every weight of its checkpoint, and nothing that is not one.

The exporter takes a tensor that the checkpoint lacks from uninitialized memory and exits with status 0,
so its word is not enough. Tensors are found by their bits: under their own name, or, where the exporter
folded a transposition or joined projections into one matrix and lost the names, anywhere in the graph.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from enginix.edgellm.errors import ExportError
from enginix.edgellm.graph import Constant, Graph
from enginix.edgellm.values import Bits, Expected, bits, forms, to_float16
from enginix.model import TensorInfo

PREFIX = "_model."
KEY = 64  # elements of a row that find its candidates
IGNORED = ("rotary_emb.inv_freq",)
JOINED = ("q_proj", "k_proj", "v_proj")
SCALE_ERROR = 0.01  # relative; float16 holds a normal number to 0.0005
_FIX = "fetch or quantize the model again; if it stays so, TensorRT Edge-LLM does not support this model"


@dataclass
class Claims:
    """What was found where: tensors by how they were found, rows of constants that are spoken for."""

    how: Counter[str] = field(default_factory=Counter)
    rows: dict[str, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    worst_scale: float = 0.0

    def take(self, how: str, name: str, begin: int, end: int) -> None:
        self.how[how] += 1
        self.rows[name].append((begin, end))

    def covered(self, name: str, rows: int) -> bool:
        at = 0
        for begin, end in sorted(self.rows.get(name, [])):
            if begin > at:
                return False
            at = max(at, end)
        return at >= rows


def _sides(constant: Constant) -> Iterable[tuple[str, Bits]]:
    """A matrix as it lies and, where its elements are whole bytes, transposed."""
    array = bits(constant.array())
    if array.ndim == 1:
        array = array.reshape(1, -1)
    if array.ndim != 2:
        array = array.reshape(array.shape[0], -1) if array.size else array.reshape(1, 0)
    yield "as is", array
    if constant.dtype != "FLOAT4E2M1":
        yield "transposed", array.T


def _equal(want: Expected, have: Bits) -> bool:
    if have.shape != want.shape:
        return False
    return all(np.array_equal(part, have[at : at + len(part)]) for at, part in want.blocks())


class _Index:
    """Rows of all matrices of one type by their first elements."""

    def __init__(self, constants: Iterable[Constant]) -> None:
        self.sides: dict[tuple[str, str], Bits] = {}
        self.rows: dict[bytes, list[tuple[str, str, int]]] = defaultdict(list)
        for constant in constants:
            for side, array in _sides(constant):
                self.sides[constant.name, side] = array
                for row, key in enumerate(np.ascontiguousarray(array[:, :KEY])):
                    self.rows[key.tobytes()].append((constant.name, side, row))

    def find(self, want: Expected) -> tuple[str, str, int] | None:
        rows, columns = want.shape
        # A row that looks like nothing else, so that zeros do not make everything a candidate.
        row = next((r for r in range(min(rows, 64)) if np.unique(want.rows(r, r + 1)[:, :KEY]).size > 1), 0)
        for name, side, at in self.rows.get(want.rows(row, row + 1)[:, :KEY].tobytes(), []):
            array, begin = self.sides[name, side], at - row
            inside = array.shape[1] == columns and begin >= 0 and begin + rows <= array.shape[0]
            if inside and _equal(want, array[begin : begin + rows]):
                return name, side, begin
        return None


def _aligned(data: bytes, needle: bytes, size: int) -> int:
    """Where ``needle`` lies in ``data``, at a whole number of elements of ``size`` bytes; -1 if nowhere."""
    at = data.find(needle)
    while at > 0 and at % size:
        at = data.find(needle, at + 1)
    return at


def _nibbles(data: Bits) -> Bits:
    counts = np.bincount(data.reshape(-1), minlength=256).reshape(16, 16)
    return np.asarray(counts.sum(0) + counts.sum(1))


def _same_nibbles(found: Bits, stored: Bits) -> bool:
    """Four-bit groups in the plugin's order: the same ones, signed or offset by eight, and zeros that pad."""
    for offset in (0, 8):
        more = found - np.roll(stored, offset)
        zeros = more[offset]
        more[offset] = 0
        if zeros >= 0 and not more.any():
            return True
    return False


class Coverage:
    """Accounts for a checkpoint's tensors in a graph and its embedding table."""

    def __init__(self, graph: Graph, names: Iterable[str], embedding: TensorInfo | None, tied: bool) -> None:
        self.graph = graph
        self.names = frozenset(names)
        self.embedding = embedding
        self.tied = tied
        self.claims = Claims()
        self._indexes: dict[str, _Index] = {}

    def _index(self, form: str) -> _Index:
        if form not in self._indexes:
            chosen = (c for c in self.graph.constants.values() if c.dtype == form and c.elements > 1)
            self._indexes[form] = _Index(chosen)
        return self._indexes[form]

    def _by_name(self, tensor: TensorInfo, constant: Constant) -> bool:
        for form in forms(tensor.dtype):
            if form != constant.dtype:
                continue
            want = Expected(tensor, form)
            if any(_equal(want, array) for _, array in _sides(constant)):
                self.claims.take("by name", constant.name, 0, self._rows(constant))
                return True
        if tensor.dtype == "U8" and constant.dtype in ("INT8", "UINT8", "INT4", "UINT4"):
            stored = _nibbles(np.memmap(tensor.path, np.uint8, "r", tensor.begin, (tensor.nbytes,)))
            if _same_nibbles(_nibbles(constant.data), stored):
                self.claims.take("by nibbles", constant.name, 0, self._rows(constant))
                return True
        return False

    @staticmethod
    def _rows(constant: Constant) -> int:
        return constant.shape[0] if len(constant.shape) > 1 else 1

    def _scalar(self, tensor: TensorInfo, named: Constant | None) -> bool:
        """A scale: equal to the constant of its name, to a shared one, or not above a joined one's."""
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
            return constant.elements == 1 and np.float32(constant.array().reshape(-1)[0]) == kinds.get(
                constant.dtype
            )

        if named is not None:
            if holds(named):
                self.claims.take("by name", named.name, 0, 1)
                if named.dtype == "FLOAT16" and value != 0:
                    self.claims.worst_scale = max(self.claims.worst_scale, error)
                return True
            return False
        if any(map(holds, self._scalars)):
            self.claims.how["shared scale"] += 1
            return True
        for part in JOINED:
            joined = self.graph.constants.get(PREFIX + tensor.name.replace(f".{part}.", ".qkv_proj_fused."))
            if joined is not None and joined.elements == 1 and joined.array().reshape(-1)[0] >= narrow:
                self.claims.how["joined scale"] += 1
                return True
        if tensor.name.endswith((".k_scale", ".v_scale")):
            scales = [
                n.attributes.get("qkv_scales", []) for n in self.graph.nodes if n.op == "AttentionPlugin"
            ]
            if any(np.isclose(s, value, rtol=1e-3) for row in scales for s in row):
                self.claims.how["attribute"] += 1
                return True
        return False

    @property
    def _scalars(self) -> list[Constant]:
        return [
            c for c in self.graph.constants.values() if c.elements == 1 and c.dtype in ("FLOAT", "FLOAT16")
        ]

    def _vector(self, tensor: TensorInfo) -> bool:
        """One dimension: whole or a part of a joined vector (a bias of several projections)."""
        for form in forms(tensor.dtype):
            want = Expected(tensor, form)
            needle = want.rows(0, 1).tobytes()
            for constant in self.graph.constants.values():
                if constant.dtype != form or len(constant.shape) != 1:
                    continue
                if constant.data.size < len(needle):
                    continue
                at = _aligned(constant.data.tobytes(), needle, len(needle) // want.shape[1])
                if at >= 0:
                    # A vector is one row; parts of a joined one are claimed by their bytes, which add up.
                    self.claims.take("by value", f"{constant.name} bytes", at, at + len(needle))
                    return True
        return False

    def _embedding(self, tensor: TensorInfo) -> None:
        if self.embedding is None:
            raise ExportError("embedding.safetensors holds no table", where=tensor.name, fix=_FIX)
        if self.embedding.shape != tensor.shape:
            raise ExportError(
                f"the exported table is {list(self.embedding.shape)}, the checkpoint's {list(tensor.shape)}",
                where=tensor.name,
                fix=_FIX,
            )
        if self.embedding.dtype == "F16":
            want = Expected(tensor, "FLOAT16")
            stored = Expected(self.embedding, "FLOAT16")
            if not all(np.array_equal(part, stored.rows(at, at + len(part))) for at, part in want.blocks()):
                raise ExportError("the exported table has other values", where=tensor.name, fix=_FIX)
        self.claims.how["embedding"] += 1

    def account(self, tensor: TensorInfo) -> bool:
        """Whether the tensor is in the export; what it is found in is spoken for afterwards."""
        if tensor.name.endswith(IGNORED):
            self.claims.how["not a weight"] += 1
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
        if named is not None and not self._index_has_joined(tensor):
            return False
        if len(tensor.shape) == 1:
            return self._vector(tensor)
        for form in forms(tensor.dtype):
            found = self._index(form).find(Expected(tensor, form))
            if found:
                name, side, begin = found
                constant = self.graph.constants[name]
                end = begin + tensor.shape[0]
                # Columns of a transposed matrix are counted as they are, against its last size.
                self.claims.take("by value", f"{name}^T" if side == "transposed" else name, begin, end)
                if side == "transposed" and self.claims.covered(f"{name}^T", constant.shape[-1]):
                    self.claims.rows[name].append((0, self._rows(constant)))
                return True
        return False

    @staticmethod
    def _index_has_joined(tensor: TensorInfo) -> bool:
        return any(f".{part}." in tensor.name for part in JOINED)

    def _given(self, name: str) -> bool:
        """Whether a scale of the graph is one that the checkpoint has, alone or for joined projections."""
        name = re.sub(r"__dup\d+$", "", name.removeprefix(PREFIX))
        return any(name.replace("qkv_proj_fused", part) in self.names for part in JOINED)

    def unexplained(self) -> list[str]:
        """Constants that look like weights and come from no tensor of the checkpoint."""
        found = []
        for name, constant in self.graph.constants.items():
            if constant.elements == 1:
                if name.startswith(PREFIX) and not self._given(name):
                    found.append(name)
                continue
            if constant.dtype in ("INT64", "INT32", "BOOL"):
                continue
            whole = self.claims.covered(name, self._rows(constant)) or self.claims.covered(
                f"{name} bytes", constant.data.size
            )
            if not whole and not _neutral(constant):
                found.append(name)
        return found


def _neutral(constant: Constant) -> bool:
    """A vector that changes nothing: what a graph computes with, or a scale that was folded elsewhere."""
    if len(constant.shape) != 1 or np.unique(bits(constant.array())).size != 1:
        return False
    folded = constant.name.endswith(".pre_quant_scale") and constant.array()[0] == 1
    return bool(folded or not constant.name.startswith(PREFIX))


def check(
    graph: Graph, tensors: Iterable[TensorInfo], embedding: TensorInfo | None, tied: bool
) -> dict[str, object]:
    """Accounts for every tensor.

    Returns:
        Figures for the manifest: tensors by how they were found, the worst relative error of a scale.

    Raises:
        ExportError: tensors of the checkpoint that the export lacks, or weights in it that come from nowhere.
    """
    given = sorted(tensors, key=lambda t: t.name)
    coverage = Coverage(graph, (t.name for t in given), embedding, tied)
    lost = [t.name for t in given if not coverage.account(t)]
    if lost:
        raise ExportError(
            f"{_several(lost)} of the checkpoint not in the export", where=str(graph.path), fix=_FIX
        )
    strange = coverage.unexplained()
    if strange:
        raise ExportError(
            f"{_several(strange)} in the export, which come from no tensor of the checkpoint",
            where=str(graph.path),
            fix=_FIX,
        )
    claims = coverage.claims
    return {
        "tensors": len(given),
        "found": dict(sorted(claims.how.items())),
        "worstScaleError": round(claims.worst_scale, 6),
    }


def _several(names: list[str]) -> str:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{len(names)} weight{'s' * (len(names) > 1)}: {shown}:"
