"""Check that each quantized matrix of an export has its own scales, and that they kept their values.

A constant is followed to the product that reads it: the scales of a weight, its inputs' quantizer and
dequantizer, and its smoothing must be those of the checkpoint's projection whose codes the product reads.
Values are compared, since the exporter stores equal constants once, under one of their names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from enginix.kinds.edgellm.coverage import JOINED_PROJECTIONS, PREFIX
from enginix.kinds.edgellm.errors import ExportError
from enginix.kinds.edgellm.expected_tensors import SCALE_ERROR
from enginix.kinds.edgellm.graph import Constant, Graph, Node
from enginix.model import TensorInfo
from enginix.model.mapped_tensors import map_tensor

Array = npt.NDArray[Any]
CODE_TYPES = {"INT8": 3, "FLOAT8E4M3FN": 17, "FLOAT4E2M1": 23}  # numbers: onnx.TensorProto
_INT4_PRODUCTS = ("Int4GroupwiseGemmPlugin", "Int4GroupwiseGemmPluginV2")
_QUANTIZERS = ("QuantizeLinear", "TRT_FP4DynamicQuantize")
_PASSING_OPS = ("Cast", "Reshape", "Transpose", "DequantizeLinear", *_QUANTIZERS)
_FIX = "quantize the model again; if it stays so, TensorRT Edge-LLM does not support this model"


@dataclass(frozen=True)
class _Product:
    """A product of a quantized matrix: its codes, and the constants on the way to it."""

    node: Node
    codes: Constant
    weight_scales: list[Constant] = field(default_factory=list)
    input_scales: list[Constant] = field(default_factory=list)
    smoothing: list[Constant] = field(default_factory=list)
    quantizers: list[Node] = field(default_factory=list)


def _walk_back(
    graph: Graph, name: str, through: tuple[str, ...]
) -> Iterator[tuple[Constant | None, Node | None]]:
    """Yield the constants and nodes that a value is made of, back to nodes of another kind."""
    pending, seen = [name], set[str]()
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        if value in graph.constants:
            yield graph.constants[value], None
            continue
        node = graph.producer.get(value)
        if node is None:
            continue
        yield None, node
        if node.op in through:
            pending += node.inputs


def _is_float(constant: Constant) -> bool:
    return constant.dtype in ("FLOAT", "FLOAT16", "FLOAT8E4M3FN", "BFLOAT16")


def _list_products(graph: Graph) -> Iterator[_Product]:
    for node in graph.nodes:
        if node.op not in ("MatMul", "Gemm", *_INT4_PRODUCTS):
            continue
        behind = [c for n in node.inputs[1:] for c, _ in _walk_back(graph, n, _PASSING_OPS) if c is not None]
        codes = [c for c in behind if c.name.endswith(".weight") and c.dtype in CODE_TYPES]
        if not codes:
            continue
        product = _Product(node, codes[0])
        product.weight_scales.extend(c for c in behind if c is not codes[0] and _is_float(c))
        for constant, passed in _walk_back(graph, node.inputs[0], _PASSING_OPS):
            if constant is not None and _is_float(constant):
                product.input_scales.append(constant)
            elif passed is not None and passed.op in _QUANTIZERS:
                product.quantizers.append(passed)
            elif passed is not None and passed.op == "Mul" and not product.smoothing:
                product.smoothing.extend(graph.constants[n] for n in passed.inputs if n in graph.constants)
        yield product


class ScaleChecker:
    """Compares scales of a graph with those of a checkpoint."""

    def __init__(self, graph: Graph, tensors: Mapping[str, TensorInfo]) -> None:
        self.graph, self.tensors = graph, tensors
        self.worst = 0.0

    def read_scale(self, bases: tuple[str, ...], name: str) -> Array | None:
        """Return a checkpoint's scale; of joined projections rows in their order, or the largest number."""
        values = []
        for base in bases:
            info = self.tensors.get(f"{base}.{name}")
            if info is None:
                return None
            values.append(map_tensor(info).astype(np.float32))
        if len(values) == 1:
            return values[0]
        return np.concatenate(values) if values[0].size > 1 else np.asarray(np.max(values))

    def find_difference(self, bases: tuple[str, ...], product: _Product) -> str | None:
        """Return what of a product is not the projection's; None if all is."""
        expected = [
            s for n in ("weight_scale", "weight_scale_2") if (s := self.read_scale(bases, n)) is not None
        ]
        found = [c.array() for c in product.weight_scales]
        if len(found) != len(expected):
            return f"{len(found)} scales of its weight, {len(expected)} in the checkpoint"
        for scale in expected:
            near = [n for n, v in enumerate(found) if self._is_near(v, scale)]
            if not near:
                return "another weight_scale"
            found.pop(near[0])
        input_scale = self.read_scale(bases, "input_scale")
        if input_scale is None and product.quantizers:
            return "quantized inputs"
        if input_scale is not None:
            kinds = {n.attributes.get("output_dtype", 23) for n in product.quantizers}
            if kinds != {CODE_TYPES[product.codes.dtype]}:
                return "inputs that are not quantized, or to another type"
            if not all(self._is_near(c.array(), input_scale) for c in product.input_scales):
                return "another input_scale"
        smoothing = self.read_scale(bases[:1], "pre_quant_scale")
        # A scale of ones may be left out.
        is_folded = smoothing is None or (not product.smoothing and bool((smoothing == 1).all()))
        if smoothing is not None and not is_folded:
            near_ones = [c for c in product.smoothing if self._is_near(c.array(), smoothing)]
            return None if near_ones else "another pre_quant_scale"
        return None

    def _is_near(self, found: Array, exact: Array) -> bool:
        """Tell whether values agree but for float16, in the checkpoint's order or transposed."""
        if found.size != exact.size:
            return False
        sides = [exact.reshape(-1)]
        if exact.ndim == 2:
            sides.append(exact.T.reshape(-1))
        for side in sides:
            flat = found.reshape(-1).astype(np.float32)
            with np.errstate(invalid="ignore", divide="ignore"):
                change = np.abs(flat - side) / np.abs(side)
            change = np.where(flat == side, 0, change)
            if (change <= SCALE_ERROR).all():
                self.worst = max(self.worst, float(change.max()))
                return True
        return False

    def list_bases(self, product: _Product) -> Iterator[tuple[str, ...]]:
        """Yield the projections that a product may be: by its codes' name, then by equal codes."""
        base = product.codes.name.removeprefix(PREFIX).removesuffix(".weight")
        yield tuple(dict.fromkeys(base.replace("qkv_proj_fused", part) for part in JOINED_PROJECTIONS))
        named = self.tensors.get(f"{base}.weight")
        if named is None:
            return
        own = map_tensor(named).view(np.uint8)
        for name, info in self.tensors.items():
            alike = info is not named and info.dtype == named.dtype and info.shape == named.shape
            if alike and name.endswith(".weight") and np.array_equal(own, map_tensor(info).view(np.uint8)):
                yield (name.removesuffix(".weight"),)


def check_scales(graph: Graph, tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """Check the scales of every quantized product.

    Returns:
        Number of products, and the largest relative change of a scale.

    Raises:
        ExportError: a product reads scales of another projection, or one that float16 changed or made 0.
    """
    checker, count = ScaleChecker(graph, tensors), 0
    for product in _list_products(graph):
        differences = []
        for bases in checker.list_bases(product):
            difference = checker.find_difference(bases, product)
            if difference is None:
                break
            differences.append((bases[0], difference))
        else:
            base, difference = differences[0]
            raise ExportError(
                f"the product of {base} has {difference}: a scale of another projection, or one that float16 "
                f"changes by more than {SCALE_ERROR:.0%}",
                where=graph.path,
                fix=_FIX,
            )
        count += 1
    return {"products": count, "worstScaleChange": round(checker.worst, 6)}
