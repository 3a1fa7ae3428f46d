"""Execute an exported graph by ONNX's reference evaluator and the definitions of the plugin nodes.

``rounded`` off computes in float32 where the graph has float16, with smooth quantizers: the same recipe and
the same constants, so that a difference from the model is the recipe's. On, types are the graph's.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np

from enginix.errors import GateError
from enginix.kinds.edgellm.execution.plugin_nodes import PLUGIN_NODES, Array, PluginNode, find_gain
from enginix.kinds.edgellm.graph import Constant, Graph, Node
from enginix.kinds.edgellm.int4_layouts import split_nibbles

SEGMENT_BYTES = 1 << 29  # of constants in float32; what is in memory at once beside one node's work
_FLOAT, _FLOAT16 = 1, 10  # onnx.TensorProto


def load_constant(constant: Constant, *, rounded: bool) -> Array:
    """Return a constant as ONNX's reference evaluator takes it."""
    if constant.dtype == "FLOAT4E2M1":
        codes = split_nibbles(constant.data)[: constant.elements]
        return np.asarray(codes.view(ml_dtypes.float4_e2m1fn).reshape(constant.shape))
    if constant.dtype in ("INT4", "UINT4"):
        raise GateError(f"constant {constant.name} is {constant.dtype}, which the gate does not execute")
    array = constant.array()
    return array.astype(np.float32) if not rounded and constant.dtype == "FLOAT16" else array


def check_nodes(graph: Graph) -> None:
    """Refuse a graph with nodes that have no definition.

    Raises:
        GateError: the first such node.
    """
    for node in graph.nodes:
        if node.domain in ("", "ai.onnx"):
            continue
        definition = PLUGIN_NODES.get((node.domain, node.op))
        if definition is None:
            raise GateError(
                f"node {node.name} is {node.domain}::{node.op}, which has no definition",
                fix="docs/reference/edgellm.md lists the nodes that the gate executes",
            )
        definition.check_attributes(node.name, node.attributes)


def _make_operators(rounded: bool) -> list[type]:
    """Return the operators that replace or complete ONNX's own."""
    from onnx.reference.op_run import OpRun
    from onnx.reference.ops import load_op

    def make_operator(name: str, run: Any, base: type = OpRun, domain: str = "") -> type:
        return type(name, (base,), {"op_domain": domain, "_run": run})

    def make_plugin(definition: PluginNode) -> Any:
        return lambda self, *inputs, **_: definition.compute(
            _read_attributes(self.onnx_node), inputs, rounded
        )

    def multiply(self: Any, a: Array, b: Array) -> tuple[Array]:
        # NumPy multiplies float16 without BLAS; sums are in float32, as on a GPU.
        product = a.astype(np.float32, copy=False) @ b.astype(np.float32, copy=False)
        return (product.astype(a.dtype, copy=False),)

    def multiply_transposed(self: Any, a: Array, b: Array, c: Array | None = None, **_: Any) -> tuple[Array]:
        attributes = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0, **_read_attributes(self.onnx_node)}
        left = a.astype(np.float32, copy=False)
        right = b.astype(np.float32, copy=False)
        product = (left.T if attributes["transA"] else left) @ (right.T if attributes["transB"] else right)
        product = product * np.float32(attributes["alpha"])
        if c is not None:
            product = product + np.float32(attributes["beta"]) * c.astype(np.float32)
        return (product.astype(a.dtype, copy=False),)

    def squash(self: Any, x: Array) -> tuple[Array]:
        # ONNX's own calls Python once for each element.
        with np.errstate(over="ignore"):
            return ((1 / (1 + np.exp(-x.astype(np.float32)))).astype(x.dtype),)

    operators = [
        make_operator(name, make_plugin(row), domain=domain) for (domain, name), row in PLUGIN_NODES.items()
    ]
    operators += [make_operator("Sigmoid", squash), make_operator("MatMul", multiply)]
    operators.append(make_operator("Gemm", multiply_transposed))
    if rounded:
        return operators
    cast: Any = load_op("", "Cast")

    def cast_wide(self: Any, x: Array, to: int | None = None, **options: Any) -> tuple[Array]:
        if to == _FLOAT16:
            return (x.astype(np.float32, copy=False),)
        return cast._run(self, x, to=to, **options)  # type: ignore[no-any-return]

    def quantize_smoothly(
        self: Any, x: Array, scale: Array, zero: Array | None = None, **_: Any
    ) -> tuple[Array]:
        if scale.size != 1 or (zero is not None and zero.astype(np.float32).any()):
            raise GateError(f"node {self.onnx_node.name} quantizes with {scale.size} scales or a zero point")
        factor = np.float32(scale.reshape(()))
        quotient = np.divide(x, factor, out=np.zeros_like(x, np.float32), where=factor != 0)
        return (quotient * find_gain(factor),)

    smooth = [make_operator("Cast", cast_wide, cast), make_operator("QuantizeLinear", quantize_smoothly)]
    return operators + smooth


def _read_attributes(proto: Any) -> dict[str, Any]:
    import onnx

    return {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}


class GraphRunner:
    """Executes one graph as often as asked; constants are read from the file each time.

    Args:
        rounded: compute in the graph's types; otherwise in float32, with smooth quantizers.

    Raises:
        GateError: a node has no definition.
    """

    def __init__(self, graph: Graph, *, rounded: bool) -> None:
        check_nodes(graph)
        self.graph, self.rounded = graph, rounded

    @cached_property
    def _segments(self) -> list[tuple[Any, tuple[str, ...]]]:
        """Evaluators over consecutive nodes, each with the names that may be forgotten after it."""
        import onnx
        from onnx.reference import ReferenceEvaluator

        # The evaluator tells in its log that it was given operators.
        logging.getLogger("onnx").setLevel(logging.ERROR)
        protos = list(onnx.load(str(self.graph.path), load_external_data=False).graph.node)
        operators, opsets = _make_operators(self.rounded), self.graph.opsets
        parts = list(self._split())
        last_reader = {
            name: number
            for number, (begin, end) in enumerate(parts)
            for node in self.graph.nodes[begin:end]
            for name in node.inputs
        }
        segments = []
        for number, (begin, end) in enumerate(parts):
            nodes = self.graph.nodes[begin:end]
            made = {name for node in nodes for name in node.outputs if name}
            read = dict.fromkeys(n for node in nodes for n in node.inputs if n and n not in made)
            kept = [n for n in made if last_reader.get(n, 0) > number or n in self.graph.outputs]
            value = onnx.helper.make_empty_tensor_value_info
            part = onnx.helper.make_graph(
                protos[begin:end], "part", [value(n) for n in read], [value(n) for n in kept]
            )
            model = onnx.helper.make_model(
                part, opset_imports=[onnx.helper.make_opsetid(d, v) for d, v in opsets.items()]
            )
            evaluator = ReferenceEvaluator(model, new_ops=operators)
            spent = tuple(n for n in (*read, *kept) if last_reader.get(n, -1) <= number)
            segments.append((evaluator, spent))
        return segments

    def _split(self) -> Iterator[tuple[int, int]]:
        """Yield ranges of nodes whose constants fit SEGMENT_BYTES."""
        begin = total = 0
        for number, node in enumerate(self.graph.nodes):
            size = sum(4 * self.graph.constants[n].elements for n in node.inputs if n in self.graph.constants)
            if number > begin and total + size > SEGMENT_BYTES:
                yield begin, number
                begin, total = number, 0
            total += size
        yield begin, len(self.graph.nodes)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return the graph's outputs.

        Raises:
            GateError: a node cannot be executed.
        """
        values: dict[str, Array] = dict(feeds)
        outputs: dict[str, Array] = {}
        try:
            for evaluator, spent in self._segments:
                names = evaluator.input_names
                inputs = {n: values[n] if n in values else self._load(n) for n in names}
                # What overflows saturates or is found in the result; NumPy's warnings name no node.
                with np.errstate(all="ignore"):
                    results = evaluator.run(None, inputs)
                for name, value in zip(evaluator.output_names, results, strict=True):
                    values[name] = value
                    if name in self.graph.outputs:
                        outputs[name] = value
                for name in spent:
                    values.pop(name, None)
        except GateError:
            raise
        except Exception as e:  # NumPy's and the evaluator's own errors share no base class
            raise GateError(f"the graph cannot be executed: {type(e).__name__}: {str(e)[:200]}") from e
        return outputs

    def _load(self, name: str) -> Array:
        constant = self.graph.constants.get(name)
        if constant is None:
            raise GateError(f"the graph reads {name!r}, which nothing writes")
        return load_constant(constant, rounded=self.rounded)


def list_plugin_nodes(nodes: tuple[Node, ...]) -> dict[str, int]:
    """Count the plugin nodes of a graph by name."""
    names = sorted({n.op for n in nodes if (n.domain, n.op) in PLUGIN_NODES})
    return {name: sum(n.op == name and (n.domain, n.op) in PLUGIN_NODES for n in nodes) for name in names}
